"""Every hook, used as a plugin uses it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.hf_folder import qwen, write_folder
from small_models.tiny_moe import WIDTH

from collab_plugin import (
    Advance,
    Allocator,
    Checkpoint,
    CheckpointFormat,
    Choice,
    CollabError,
    Config,
    CriterionOptions,
    Decoding,
    Engine,
    Family,
    Generation,
    ImportanceCriterion,
    Item,
    Kernels,
    LayerRouting,
    LayerUse,
    LoadedTasks,
    Loader,
    LocalFiles,
    ModelFiles,
    PlacementPolicy,
    PluginCommand,
    Score,
    Served,
    Target,
    TargetInfo,
    TargetProvider,
    TaskRun,
    TaskRunner,
    TensorRule,
    hookimpl,
    open_gguf,
)
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.engines.supported_types import allowed_types, refuse_types
from collab_plugin.evaluation.tasks import evaluate_tasks
from collab_plugin.placement.policy import hot_experts
from collab_plugin.plugins import hookspecs
from collab_plugin.plugins.manager import Registry, build_registry, plugin_manager, registry

HOOKS = sorted(name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("collab_"))


def registered(*plugins: object) -> Registry:
    manager = plugin_manager()
    for plugin in plugins:
        manager.register(plugin, type(plugin).__name__)
    return build_registry(manager)


def test_every_hook_has_a_test() -> None:
    assert HOOKS
    missing = [hook for hook in HOOKS if not callable(getattr(sys.modules[__name__], f"test_hook_{hook}", None))]
    assert not missing


class BackupFiles:
    """Opens NAME.gguf.bak as the GGUF that it is."""

    @hookimpl
    def collab_register_checkpoint_formats(self, register: Callable[[CheckpointFormat], None]) -> None:
        register(CheckpointFormat("backup", "GGUF backups", lambda files: str(files.named).endswith(".bak"), self.open))

    def open(self, files: ModelFiles) -> Checkpoint:
        return open_gguf(files)


def test_hook_collab_register_checkpoint_formats(qwen3moe: Path, tmp_path: Path) -> None:
    formats = registered(BackupFiles()).checkpoint_formats
    assert list(formats) == ["backup", "gguf", "safetensors"], "asked in this order: plugins before built-ins"
    backup = tmp_path / "model.gguf.bak"
    backup.symlink_to(qwen3moe)
    first = next(candidate for candidate in formats.values() if candidate.matches(LocalFiles(backup)))
    assert first.name == "backup"
    assert list(first.open(LocalFiles(backup)).tensors) == list(open_gguf(qwen3moe).tensors)


class Renamed:
    """Qwen3-MoE under a class of our own, whose experts are called otherwise."""

    @hookimpl
    def collab_register_families(self, register: Callable[[Family], None]) -> None:
        conversion = QWEN3_MOE.conversion
        assert conversion is not None

        def tensors(config: Config) -> tuple[TensorRule, ...]:
            rules = conversion.tensors(config)
            return tuple(replace(rule, stored=rule.stored.replace("mlp.experts", "moe.specialists")) for rule in rules)

        own = replace(conversion, tensors=tensors)
        register(replace(QWEN3_MOE, name="our-moe", classes=("OurMoeForCausalLM",), conversion=own))


def test_hook_collab_register_families(tmp_path: Path) -> None:
    families = registered(Renamed()).families
    assert list(families)[:2] == ["our-moe", "qwen3-moe"], "plugins before built-ins"
    config, tensors = qwen()
    plain = open_safetensors(write_folder(tmp_path / "plain", config, tensors))
    renamed = {name.replace("mlp.experts", "moe.specialists"): tensor for name, tensor in tensors.items()}
    folder = write_folder(tmp_path / "ours", config | {"architectures": ["OurMoeForCausalLM"]}, renamed)
    ours = open_safetensors(folder, tuple(families.values()))
    assert list(ours.tensors) == list(plain.tensors)
    for name in plain.tensors:
        np.testing.assert_array_equal(ours.read(name), plain.read(name))
    with pytest.raises(CollabError, match="is a OurMoeForCausalLM; Hugging Face folders of Qwen3MoeForCausalLM, "):
        open_safetensors(folder)


class Rarest:
    """The less an expert is used, the more it counts."""

    @hookimpl
    def collab_register_criteria(self, register: Callable[[ImportanceCriterion], None]) -> None:
        register(ImportanceCriterion("rarest", "prefers rarely used experts", self.score))

    def score(self, routing: LayerRouting, options: CriterionOptions) -> np.ndarray:
        return -routing.count.astype(np.float64)


def test_hook_collab_register_criteria() -> None:
    criterion = registered(Rarest()).criteria["rarest"]
    routing = LayerRouting(tokens=10, count=np.array([7, 1, 2]), weight_sum=None, reap_sum=None)
    assert int(criterion.score(routing, CriterionOptions()).argmax()) == 1


class Smallest:
    """Gives every tensor its smallest type."""

    @hookimpl
    def collab_register_allocators(self, register: Callable[[Allocator], None]) -> None:
        register(Allocator("smallest", "the smallest type everywhere", self.solve))

    def solve(self, items: Sequence[Item], budget: int, options: Mapping[str, float | int | str]) -> Mapping[str, int]:
        return {item.name: 0 for item in items}


def test_hook_collab_register_allocators() -> None:
    allocators = registered(Smallest()).allocators
    assert list(allocators) == ["smallest", "knapsack", "uniform"]
    items = [Item(name, (Choice("IQ1_S", 50, 9.0), Choice("Q8_0", 272, 1.0))) for name in ("a", "b")]
    assert dict(allocators["smallest"].solve(items, 1000, {})) == {"a": 0, "b": 0}
    assert dict(allocators["knapsack"].solve(items, 1000, allocators["knapsack"].values({}))) == {"a": 1, "b": 1}


class LastOnes:
    """The last experts stay on the device; one that is not there, when asked for 3."""

    @hookimpl
    def collab_register_placement_policies(self, register: Callable[[PlacementPolicy], None]) -> None:
        register(PlacementPolicy("last", "the last ones", self.hot))

    def hot(self, use: LayerUse, number: int) -> Sequence[int]:
        return [use.experts if number == 3 else use.experts - 1 - index for index in range(number)]


def test_hook_collab_register_placement_policies() -> None:
    policies = registered(LastOnes()).placement_policies
    assert list(policies)[:2] == ["last", "most-selected"]
    dynamic = [name for name, policy in policies.items() if policy.dynamic]
    assert dynamic == ["lru", "lru-warm", "lfu-decay", "lfru", "lfu-steady"]
    routing = LayerRouting(tokens=10, count=np.array([7, 1, 2, 7]), weight_sum=None, reap_sum=None)
    seen = LayerUse(5, 4, routing)
    assert hot_experts(policies["most-selected"], seen, 3) == [0, 2, 3]
    assert hot_experts(policies["most-selected"], seen, 1) == [0], "the first of equals"
    assert hot_experts(policies["most-selected"], LayerUse(5, 4, None), 2) == [0, 1]
    assert hot_experts(policies["last"], seen, 2) == [2, 3]
    with pytest.raises(CollabError, match=r"'last' chose \[4\] in layer 5, not 3 of its 4 experts"):
        hot_experts(policies["last"], seen, 3)


class ForcedImatrix:
    """ggml's kernels under another name, with an importance vector demanded for every type."""

    @hookimpl
    def collab_register_kernels(self, register: Callable[[Kernels], None]) -> None:
        class StrictKernels(GgmlKernels):
            name = "strict"

            def requires_imatrix(self, type_name: str) -> bool:
                return True

        register(StrictKernels())


@pytest.mark.native
def test_hook_collab_register_kernels() -> None:
    kernels = registered(ForcedImatrix()).kernels["strict"]
    assert kernels.requires_imatrix("Q4_K")
    values = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]
    kernels.prepare("Q8_0")
    data = kernels.quantize(values, "Q8_0", np.ones(WIDTH, np.float32))
    assert np.abs(kernels.dequantize(data, "Q8_0", WIDTH) - values).max() < 0.01


class Parrot(Engine):
    """Continues a prompt with itself."""

    name = "parrot"
    abilities = frozenset({"generate"})
    reads = ("safetensors", "gguf")

    def version(self) -> str:
        return "parrot 1"

    def generate(
        self, model: Path, prompt: str, decoding: Decoding, *, threads: int, write: Callable[[str], None]
    ) -> Generation:
        text = prompt[: decoding.max_tokens]
        write(text)
        return Generation(text, len(prompt), len(text), 1.0, 1.0)


class Aviary:
    @hookimpl
    def collab_register_engines(self, register: Callable[[Engine], None]) -> None:
        register(Parrot())


def test_hook_collab_register_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = registered(Aviary()).engines
    assert {"parrot", "llamacpp", "ollama", "vllm"} == set(engines)
    monkeypatch.setattr(registry(), "engines", engines)
    folder = Path(__file__).parents[1] / "models" / "tiny-qwen3moe"
    done = CliRunner().invoke(main, ["run", str(folder), "-p", "hello", "-n", "4", "--engine", "parrot", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["text"] == "hell"
    refused = CliRunner().invoke(main, ["evaluate", str(folder), "--tasks", "mmlu", "--engine", "parrot"])
    assert refused.exit_code == 2
    assert "engine 'parrot' cannot serve models to tasks: it can generate text" in refused.stderr


class OldLoader:
    """A program that loads nothing but Q8_0, Q4_K and floats."""

    @hookimpl
    def collab_register_loaders(self, register: Callable[[Loader], None]) -> None:
        register(Loader("old", "an old program", frozenset({"Q8_0", "Q4_K", "F32", "F16"})))


def test_hook_collab_register_loaders() -> None:
    loaders = registered(OldLoader()).loaders
    assert list(loaders) == ["ollama", "old"]
    old = loaders["old"]
    assert allowed_types(old, ("Q2_K", "Q4_K", "Q8_0"), given=False) == ("Q4_K", "Q8_0")
    with pytest.raises(CollabError, match="`loader` old does not load Q2_K"):
        allowed_types(old, ("Q2_K", "Q4_K"), given=True)
    with pytest.raises(CollabError, match=r"b has type IQ1_S, which old does not load \(2 tensors\)"):
        refuse_types(old, {"a": "Q8_0", "b": "IQ1_S", "c": "IQ1_S"}, "the plan")


class NoSuchChip:
    """Knows one target, whose hardware is absent."""

    @hookimpl
    def collab_register_targets(self, register: Callable[[TargetProvider], None]) -> None:
        class Provider(TargetProvider):
            name = "chip"

            def find(self) -> Sequence[TargetInfo]:
                return [TargetInfo("chip:0", "chip", "1", None, absent="no chip is plugged in")]

            def open(self, name: str) -> Target:
                raise CollabError(f"{name} cannot be opened")

        register(Provider())


def test_hook_collab_register_targets() -> None:
    targets = registered(NoSuchChip()).targets
    assert [(info.name, info.absent) for info in targets["chip"].find()] == [("chip:0", "no chip is plugged in")]
    assert not targets["chip"].command("chip:0"), "the child runs this Python unless told otherwise"


class CountsTasks:
    """Scores a model by how many tasks were asked for."""

    @hookimpl
    def collab_register_task_runners(self, register: Callable[[TaskRunner], None]) -> None:
        class Loaded(LoadedTasks):
            def __init__(self, tasks: int) -> None:
                self.tasks = tasks

            def run(self, served: Served, progress: Advance) -> TaskRun:
                progress(self.tasks, self.tasks)
                score = Score("all", "count", "none", float(self.tasks), None, True, 1, 0, "1", (float(self.tasks),))
                return TaskRun((score,), 0)

        class Counter(TaskRunner):
            name = "counter"

            def version(self) -> str:
                return "counter 1"

            @contextmanager
            def load(self, names: Sequence[str], *, limit: int | None, folder: Path | None) -> Iterator[LoadedTasks]:
                yield Loaded(len(names))

        register(Counter())


@pytest.mark.native
def test_hook_collab_register_task_runners(qwen3moe: Path) -> None:
    runners = registered(CountsTasks()).task_runners
    assert set(runners) == {"lm_eval", "counter"}
    model = open_gguf(qwen3moe)
    engine = LlamaCppEngine()
    report = evaluate_tasks(
        engine,
        runners["counter"],
        model,
        model,
        ["one", "two"],
        limit=None,
        folder=None,
        ctx=64,
        threads=1,
        warn=pytest.fail,
    )
    assert report.harness == "counter 1"
    assert [(row.task, row.value, row.original, row.recovery) for row in report.rows] == [("all", 2.0, 2.0, 100.0)]


GREET = click.Command("greet", callback=lambda: click.echo("hello"), help="Say hello.")


class Greeter:
    """A command of its own, and one in the built-in group `export`."""

    @hookimpl
    def collab_register_commands(self, register: Callable[[PluginCommand], None]) -> None:
        register(PluginCommand("greet", "Say hello.", f"{__name__}:GREET"))
        register(PluginCommand("export letter", "Say hello in writing.", f"{__name__}:GREET"))
        register(PluginCommand("broken", "Cannot be loaded.", "nowhere_to_be_found:command"))
        register(PluginCommand("empty", "A group without commands."))
        register(PluginCommand("plan", "Not ours.", f"{__name__}:GREET"))


def test_hook_collab_register_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = registered(Greeter()).commands
    monkeypatch.setattr("collab_plugin.cli.plugin_commands.plugin_commands", lambda: commands)
    runner = CliRunner()
    assert runner.invoke(main, ["greet"]).output == "hello\n"
    assert runner.invoke(main, ["export", "letter"]).output == "hello\n"
    assert "letter" in runner.invoke(main, ["export", "--help"]).output
    listed = main.list_commands(click.Context(main))
    assert {"inspect", "greet", "export", "ollama"} <= set(listed)
    assert "empty" not in listed
    assert runner.invoke(main, ["empty"]).exit_code == 2
    broken = runner.invoke(main, ["broken"])
    assert broken.exit_code == 2
    assert "the command 'broken' of a plugin cannot be loaded (ModuleNotFoundError" in broken.output
    # Help still shows the others, and says what is left out.
    output = runner.invoke(main, ["--help"]).output
    assert "greet" in output
    assert "error: a plugin's command 'plan' has a built-in one's name and is left out" in output
    assert listed.count("plan") == 1


class RarestAgain(Rarest):
    pass


class TakesBuiltinName:
    @hookimpl
    def collab_register_criteria(self, register: Callable[[ImportanceCriterion], None]) -> None:
        register(ImportanceCriterion("reap", "not REAP", Rarest().score))


@pytest.mark.parametrize(
    ("plugins", "names"),
    [((Rarest(), RarestAgain()), ("Rarest", "RarestAgain")), ((TakesBuiltinName(),), ("TakesBuiltinName", "builtins"))],
)
def test_name_clash_names_both_plugins(plugins: tuple[object, ...], names: tuple[str, str]) -> None:
    with pytest.raises(CollabError) as caught:
        registered(*plugins)
    assert all(name in str(caught.value) for name in names)
