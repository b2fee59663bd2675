"""The examples of docs/plugins.md run, and they and the example wheel import nothing but `collab_plugin`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.tiny_moe import WIDTH

from collab_plugin import (
    Choice,
    CollabError,
    CriterionOptions,
    Engine,
    Item,
    LayerRouting,
    LayerUse,
    LoadOptions,
    LocalFiles,
    NotOfferedError,
    Windows,
    open_gguf,
)
from collab_plugin.checkpoint.families.family import family_of
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.placement.policy import hot_experts
from collab_plugin.plugins.check_hooks import HOOKS
from collab_plugin.plugins.manager import build_registry, plugin_manager, registry
from collab_plugin.progress import untold

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
EXAMPLES = dict(re.findall(r"^### `(\w+)\((?:(?!^###).)*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
WHEEL = sorted((Path(__file__).parent / "plugin_wheel").rglob("*.py"))


def test_every_hook_has_an_example() -> None:
    assert list(EXAMPLES) == list(HOOKS)
    assert len(EXAMPLES) == PAGE.count("```python\n")


def imported(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("source", [*EXAMPLES.values(), *(path.read_text() for path in WHEEL)])
def test_only_the_public_address_is_imported(source: str) -> None:
    names = imported(source)
    assert [name for name in names if name.startswith("collab_plugin.")] == []
    own = {"collab_plugin", "collab_example"}
    assert {name.split(".")[0] for name in names if name.startswith("collab")} <= own


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What the example of this test's hook registers; its module lies where imports find it."""
    kind = request.node.name.removeprefix("test_example_of_")
    hook = f"collab_register_{kind}"
    module = ModuleType(f"example_of_{kind}")
    sys.modules[module.__name__] = module
    exec(compile(EXAMPLES[hook], f"docs/plugins.md {hook}", "exec"), module.__dict__)
    manager = plugin_manager()
    manager.register(module, "docs")
    found = build_registry(manager, (kind,))
    names = [name for (_, name), plugin in found.providers.items() if plugin == "docs"]
    assert len(names) == 1
    yield getattr(found, kind)[names[0]]
    del sys.modules[module.__name__]


def test_example_of_checkpoint_formats(made: Any, qwen3moe: Path, tmp_path: Path) -> None:
    backup = tmp_path / "model.gguf.bak"
    backup.symlink_to(qwen3moe)
    assert made.matches(LocalFiles(backup)) and not made.matches(LocalFiles(qwen3moe))
    assert made.open(LocalFiles(backup)).tensors == open_gguf(qwen3moe).tensors


def test_example_of_families(made: Any) -> None:
    known = [*registry().families.values(), made]
    assert family_of(["PhimoeForCausalLM"], known, "the model", "known: {known}") is made
    assert made.counts_in({"num_local_experts": 8}) == ("num_local_experts",)
    assert made.conversion is None and made.decoder is None


def test_example_of_criteria(made: Any) -> None:
    routing = LayerRouting(10, np.array([7, 1, 2]))
    for given, order in (({}, [0, 2, 1]), ({"most": "1"}, [1, 2, 0])):
        assert made.score(routing, CriterionOptions(made.values(given))).argsort().tolist() == order


def test_example_of_allocators(made: Any) -> None:
    sizes = {"small": (10, 20), "large": (100, 200), "middle": (50, 90)}
    items = [Item(name, tuple(Choice("F16", size, 1.0) for size in both)) for name, both in sizes.items()]
    assert made.solve(items, 272, {}) == {"small": 1, "large": 1, "middle": 0}
    assert made.solve(items, 160, {}) == {"small": 0, "large": 0, "middle": 0}
    with pytest.raises(ValueError, match="take 1 bytes more"):
        made.solve(items, 159, {})


def test_example_of_placement_policies(made: Any) -> None:
    assert hot_experts(made, LayerUse(0, 8, None), 4) == [0, 2, 4, 6]


def test_example_of_kernels(made: Any) -> None:
    """The bytes are ggml's, but for what ggml rounds half away from zero."""
    values = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    values[1, :32] = 0
    data = made.quantize(values, "Q8_0")
    ggml = GgmlKernels()
    ggml.prepare("Q8_0")
    assert (data == ggml.quantize(values, "Q8_0")).mean() > 0.999
    np.testing.assert_array_equal(made.dequantize(data, "Q8_0", WIDTH), ggml.dequantize(data, "Q8_0", WIDTH))
    with pytest.raises(ValueError, match="not whole blocks"):
        made.quantize(values[:, :33], "Q8_0")


@pytest.mark.native
def test_example_of_engines(
    made: Any, llama_tools: Path, qwen3moe: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name for name in made.abilities if getattr(type(made), name) is not getattr(Engine, name)} == {"calibrate"}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CollabError, match="llama-imatrix is not on PATH"):
        made.version()
    monkeypatch.setenv("PATH", str(llama_tools))
    assert made.version().startswith("version: ")
    stats = made.calibrate(qwen3moe, Windows((text,), 64, 2), threads=1, progress=untold)
    assert {int(layer.count.sum()) for layer in stats.routing.values()} == {2 * 64 * 2}, (
        "windows, tokens, experts of each"
    )
    with pytest.raises(CollabError, match="llama-imatrix failed: "):
        made.calibrate(text, Windows((text,), 64), threads=1, progress=untold)


def test_example_of_loaders(made: Any) -> None:
    assert made.types <= set(TYPES)


def test_example_of_targets(made: Any) -> None:
    (info,) = made.find()
    target = made.open(info.name)
    with pytest.raises(NotOfferedError), target.load(Path("model.gguf"), LoadOptions()):
        pass
    weights = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    kernels = GgmlKernels()
    kernels.prepare("Q8_0")
    packed = np.stack([kernels.quantize(one, "Q8_0") for one in weights])
    x = np.ones((3, 32), np.float32)
    with target.kernels() as bench:
        assert set(bench.types()) <= set(TYPES)
        np.testing.assert_allclose(bench.mul_mat("Q8_0", packed[0], x), x @ weights[0].T, atol=0.3)
        found = bench.mul_mat_id("Q8_0", packed, x, np.array([[0, 1], [1, 0], [1, 1]], np.int32))
        np.testing.assert_allclose(found[1, 0], weights[1].sum(-1), atol=0.3)


@pytest.mark.native
def test_example_of_task_runners(made: Any, qwen3moe: Path, tmp_path: Path) -> None:
    with LlamaCppEngine().serve(qwen3moe, ctx=64, threads=1) as served:
        (tmp_path / "own.tsv").write_text("The cat\t\nThe dog\tcannot be right\nnot read\tat all\n")
        with made.load(["own"], limit=2, folder=tmp_path) as loaded:
            (score,) = loaded.run(served, untold).scores
    assert (score.value, score.documents) == (0.5, (1.0, 0.0))
    with (
        pytest.raises(CollabError, match=r"no task 'two': .*two\.tsv does not exist"),
        made.load(["two"], limit=None, folder=tmp_path),
    ):
        pass


def test_example_of_commands(made: Any, qwen3moe: Path) -> None:
    module, _, attribute = made.target.partition(":")
    done = CliRunner().invoke(getattr(sys.modules[module], attribute), [str(qwen3moe)])
    assert done.exit_code == 0, done.output
    name, size = re.fullmatch(r"(\S+): (\d+) bytes of \w+\n", done.output).groups()  # type: ignore[union-attr]
    assert int(size) == max(tensor.nbytes for tensor in open_gguf(qwen3moe).tensors.values())
    assert open_gguf(qwen3moe).tensors[name].nbytes == int(size)
