"""Probing a real model: what is measured, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.deep_moe import write_deep_qwen3moe
from small_models.model_bench import Bench, load
from small_models.tiny_moe import write_deepseek2
from test_plan_command import _write_published_imatrix, one_line

from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.disturbance import Disturbance, Effects, ErrorShape
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.planning.measure.error_shapes import error_shapes
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.planning.measure.probe import PROBE_ERROR, probe
from collab_plugin.planning.measure.token_budget import TASKS_AT_ONCE
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.sources import SensitivitySource
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan
from collab_plugin.progress import Advance, untold
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.sensitivity_file import read_sensitivity, write_sensitivity
from collab_plugin.stats.stats_file import write_stats

pytestmark = pytest.mark.slow  # the engine runs for seconds

WINDOWS = 4
CTX = 64
PLENTY = 10**6


class Counting(LlamaCppEngine):
    """llama.cpp that remembers what it was asked to disturb. ``run``: tokens that went through the model."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Disturbance]] = []
        self.run = 0

    def disturb(
        self,
        model: Path,
        disturbances: Sequence[Disturbance],
        shapes: Mapping[str, ErrorShape],
        windows: Windows,
        *,
        most: int | None = None,
        threads: int,
        progress: Advance,
    ) -> Effects:
        self.asked.append(disturbances)
        found = super().disturb(model, disturbances, shapes, windows, most=most, threads=threads, progress=progress)
        self.run += found.tokens_run
        return found


def _windows(text: Path) -> Windows:
    return Windows((text,), CTX, WINDOWS)  # fewer than a probe may have: all of them run


def _evaluate(model: Path, original: Path, text: Path) -> Evaluation:
    return LlamaCppEngine().evaluate(model, original, _windows(text), threads=1, progress=untold)


def _planning(bench: Bench, found: Sensitivity | None) -> PlanningInput:
    source = None if found is None else SensitivitySource.of(found)
    return dataclasses.replace(bench.planning(threads=1), sensitivity_source=source)


def _once(
    bench: Bench, text: Path, found: Sensitivity | None, tokens: int = PLENTY
) -> tuple[Sensitivity, Counting, list[Sensitivity]]:
    """Probe once; what there is then, the engine, and what was to be kept."""
    engine, kept = Counting(), list[Sensitivity]()
    made = probe(_planning(bench, found), Measuring(engine, _windows(text)), tokens, kept.append)
    return made, engine, kept


@dataclass(frozen=True)
class Probed:
    """A model after probing to the end. ``kept``: what there was after each round."""

    bench: Bench
    found: Sensitivity
    engine: Counting
    kept: list[Sensitivity]


@pytest.fixture(scope="module")
def probed(runnable: Bench, text: Path) -> Probed:
    return Probed(runnable, *_once(runnable, text, None))


# -- what is measured


def test_parts_of_the_model_and_prunings_come_first_and_every_tensor_alone_in_the_end(probed: Probed) -> None:
    groups = [set(g.tensors) for g in coarse(probed.bench.checkpoint)]
    first = next(kept for kept in probed.kept if kept.prunings == probed.found.prunings)
    assert [set(p.tensors) for p in first.groups] == groups
    assert all(len(asked) <= TASKS_AT_ONCE for asked in probed.engine.asked)
    assert len(probed.kept[0].groups) + len(probed.kept[0].prunings) == len(probed.engine.asked[0])
    assert first.prunings
    single = {p.tensors[0] for p in probed.found.groups if len(p.tensors) == 1}
    assert single == {name for g in coarse(probed.bench.checkpoint) for name in g.tensors}
    for one in probed.found.groups:
        assert one.error == pytest.approx(PROBE_ERROR * len(one.tensors))
        assert one.kld > 0
        assert 0 < one.stderr < one.kld


def test_all_tensors_at_once_come_before_some_apart(probed: Probed) -> None:
    first = next(kept for kept in probed.kept if kept.together)
    assert len(first.groups) == len(coarse(probed.bench.checkpoint))
    assert first.together == probed.found.together
    klds = [whole.kld for whole in first.together]
    assert len(klds) >= 2
    assert klds == sorted(klds)
    assert all(set(whole.errors) == probed.found.probed for whole in first.together)


def test_probes_say_of_what_they_are(probed: Probed, text: Path) -> None:
    s = probed.found
    assert (s.texts, s.ctx, s.windows, s.level_windows) == ((text.name,), CTX, WINDOWS, WINDOWS)
    assert s.tokens == WINDOWS * (CTX // 2 - 1)
    assert s.tokens_run == probed.engine.run
    assert s.engine == LlamaCppEngine().version()
    assert s.stats_sha256 == probed.bench.source.sha256


def test_prunings_cost_what_pruned_files_do(probed: Probed, text: Path, tmp_path: Path) -> None:
    bench = probed.bench
    first = probed.found.prunings[0]
    assert (first.rule, first.expert_count, first.experts_used) == ("freq-score alpha=0.5 groups=none", 6, 2)
    plan = bench.plan(None, keep_types=True, keep="6", experts_used=2)
    out = tmp_path / "pruned.gguf"
    compress(bench.checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    result = _evaluate(out, bench.path, text)
    assert result.mean_kld > 1e-3
    assert (first.kld, first.stderr) == pytest.approx((result.mean_kld, result.mean_kld_stderr), rel=5e-3)


@pytest.mark.parametrize("name", ["blk.1.ffn_down_exps.weight", "blk.0.ffn_up_exps.weight", "output.weight"])
def test_the_shape_is_what_quantizing_does_to_products(name: str, runnable: Bench, kernels: object, text: Path) -> None:
    """E Σ (E x)² over activations with the importance matrix' mean squares is relative error times energy."""
    checkpoint, info = runnable.checkpoint, runnable.checkpoint.tensors[name]
    matrix = ImportanceMatrix.of(runnable.source.stats, 32.0)
    shape = error_shapes(checkpoint, [name], matrix, 1, untold)[name]
    index = 3 if len(info.shape) == 3 else None
    n = info.shape[-1]
    found = importance_vector(info, index, "Q4_K", matrix)
    weights = np.ones(n, np.float32) if found is None else found
    values = checkpoint.read(name, expert=index)
    runnable.kernels.prepare("Q4_K")
    back = runnable.kernels.dequantize(runnable.kernels.quantize(values, "Q4_K", found), "Q4_K", n)
    relative = float((np.square(values - back) @ weights).sum() / (np.square(values) @ weights).sum())
    x = np.random.default_rng(0).standard_normal((4000, n)).astype(np.float32) * np.sqrt(weights)
    measured = float(np.square(x @ (values - back).T).mean())
    own = 0 if index is None else index
    expected = relative * float(shape.energy[own].mean()) * float(np.square(x).sum(1).mean() / shape.inputs[own])
    assert measured == pytest.approx(expected, rel=0.1)


def test_disbanded_groups_are_not_probed(text: Path, tmp_path: Path, kernels: GgmlKernels) -> None:
    """A running router keeps its groups, so what it would do without them cannot be seen."""
    model = write_deepseek2(tmp_path / "model.gguf", experts=8, groups=2)
    stats = LlamaCppEngine().calibrate(model, Windows((text,), CTX), threads=1, progress=untold)
    write_stats(tmp_path / "stats.gguf", stats)
    bench = load(model, tmp_path / "stats.gguf", kernels)
    for groups, any_pruning in (("balanced", True), ("disband", False)):
        planning = bench.planning(threads=1, groups=groups, allow_few_tokens=True)
        kept: list[Sensitivity] = []
        probe(planning, Measuring(Counting(), Windows((text,), CTX, 1)), 60 * CTX, kept.append)
        assert bool(kept[-1].prunings) is any_pruning


# -- what is kept


def test_a_second_run_measures_nothing_again(probed: Probed, text: Path) -> None:
    found, engine, kept = _once(probed.bench, text, probed.found)
    assert found == probed.found
    assert engine.asked == []
    assert kept == []


def test_a_later_run_goes_on_where_one_stopped(probed: Probed, text: Path) -> None:
    """The same as in one go: noise depends on what is disturbed, not on when."""
    found, engine, _ = _once(probed.bench, text, probed.kept[0])
    assert found == probed.found
    assert len(engine.asked) == len(probed.engine.asked) - 1


@pytest.mark.parametrize("tokens", [30 * CTX, 100 * CTX])
def test_no_more_tokens_run_than_were_given(tokens: int, probed: Probed, text: Path) -> None:
    """A probe gets more windows where there are more tokens, and parts are told apart by what is left."""
    found, engine, _ = _once(probed.bench, text, None, tokens)
    assert found.tokens_run == engine.run <= tokens
    everything = {p.tensors for p in found.groups} >= {(n,) for g in coarse(probed.bench.checkpoint) for n in g.tensors}
    assert everything or tokens - found.tokens_run < 3 * found.windows * CTX, "nothing that would fit is left out"
    assert {frozenset(g.tensors) for g in coarse(probed.bench.checkpoint)} <= {
        frozenset(p.tensors) for p in found.groups
    }
    assert found.windows == (1 if tokens == 30 * CTX else 3)


def test_too_few_tokens_are_refused_before_anything_runs(probed: Probed, text: Path) -> None:
    groups = len(coarse(probed.bench.checkpoint))
    needed = (groups + 1) * CTX
    message = f"`tokens` {needed - 1:,} are too few: one window of 64 tokens for each of {groups} groups of tensors"
    with pytest.raises(CollabError, match=re.escape(message)):
        _once(probed.bench, text, None, needed - 1)
    assert len(_once(probed.bench, text, None, needed)[0].groups) == groups


def test_what_was_measured_is_kept_when_interrupted(probed: Probed, text: Path) -> None:
    class Interrupted(Counting):
        def disturb(self, *arguments: object, **options: object) -> Effects:  # type: ignore[override]
            if self.asked:
                raise KeyboardInterrupt
            return super().disturb(*arguments, **options)  # type: ignore[arg-type]

    kept: list[Sensitivity] = []
    with pytest.raises(KeyboardInterrupt):
        probe(_planning(probed.bench, None), Measuring(Interrupted(), _windows(text)), PLENTY, kept.append)
    assert kept == probed.kept[:1]


def test_a_deep_model_takes_at_most_twice_the_tokens_of_its_calibration(
    kernels: GgmlKernels, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """61 layers, 1,088 tokens of calibration: every part at three depths, prunings, and some layers apart. Nothing the
    size of the model is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_deep_qwen3moe(tmp_path / "model.gguf")
    stats = LlamaCppEngine().calibrate(model, Windows((text,), CTX), threads=1, progress=untold)
    write_stats(tmp_path / "stats.gguf", stats)
    bench = load(model, tmp_path / "stats.gguf", kernels)
    before = sorted(tmp_path.iterdir())
    engine = Counting()
    found = probe(bench.planning(threads=1, allow_few_tokens=True), Measuring(engine, Windows((text,), CTX)))
    assert engine.run == found.tokens_run <= 2 * stats.tokens
    assert found.tokens_run > 1.8 * stats.tokens
    assert len(found.prunings) >= 3
    assert len(found.groups) > len(coarse(bench.checkpoint))
    assert {name for g in coarse(bench.checkpoint) for name in g.tensors} == found.probed
    written = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p not in before)
    assert written < 0.01 * model.stat().st_size


# -- from the command line


def _command(bench: Bench, text: Path, out: Path, *more: object, stats: Path | None = None) -> list[str]:
    return [
        "probe", str(bench.path), "--stats", str(stats or bench.stats_path), "--text", str(text), "--ctx", str(CTX),
        "--threads", "1", "-o", str(out), *map(str, more),
    ]  # fmt: skip


def test_probe_then_plan(runnable: Bench, text: Path, tmp_path: Path) -> None:
    """The document is written and the stats stay as they were; a plan made with it says so; its bytes depend on the
    types alone."""
    before = runnable.stats_path.read_bytes()
    out = tmp_path / "sensitivity.json"
    done = CliRunner().invoke(main, _command(runnable, text, out, "--tokens", 40 * CTX))
    assert done.exit_code == 0, done.output
    found = read_sensitivity(out)
    assert f"{len(found.groups)} groups of tensors and {len(found.prunings)} prunings" in " ".join(done.stdout.split())
    plans = []
    for name, options in (("with.json", ("--sensitivity", out)), ("without.json", ())):
        path = tmp_path / name
        given = ("--stats", runnable.stats_path, "--budget", "6bpw", "--types", "Q4_K,Q6_K", *options, "-o", path)
        assert CliRunner().invoke(main, ["plan", str(runnable.path), *map(str, given)]).exit_code == 0
        plans.append(read_plan(path))
    probed, plain = plans
    assert probed.sensitivity is not None
    assert probed.sensitivity.file == "sensitivity.json"
    assert probed.prediction.startswith(f"probed: {len(found.groups)} groups")
    assert f"on {found.tokens:,} tokens" in probed.prediction
    assert plain.sensitivity is None
    assert plain.prediction.startswith("not probed")
    same = dataclasses.replace(probed, sensitivity=None)
    assert plan_fingerprint(same) == plan_fingerprint(probed)
    assert runnable.stats_path.read_bytes() == before


def test_an_imatrix_of_another_tool_will_do(runnable: Bench, text: Path, tmp_path: Path) -> None:
    foreign = _write_published_imatrix(runnable, tmp_path / "foreign.gguf")
    out = tmp_path / "sensitivity.json"
    done = CliRunner().invoke(main, _command(runnable, text, out, "--tokens", 40 * CTX, stats=foreign))
    assert done.exit_code == 0, done.output
    assert read_sensitivity(out).groups


def test_calibrate_can_probe_in_one_go(runnable: Bench, text: Path, tmp_path: Path) -> None:
    """The same document as `probe` makes of the stats."""
    stats, out, again = tmp_path / "stats.gguf", tmp_path / "sensitivity.json", tmp_path / "again.json"
    options = [str(runnable.path), "--text", str(text), "--ctx", str(CTX), "--threads", "1"]
    command = ["calibrate", *options, "-o", str(stats), "--sensitivity", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "least used quarter" in done.stdout
    assert "tokens run" in done.stdout
    found = read_sensitivity(out)
    assert found.tokens_run <= 2 * runnable.source.stats.tokens
    assert CliRunner().invoke(main, _command(runnable, text, again, stats=stats)).exit_code == 0
    assert read_sensitivity(again) == found
    stats.unlink()
    assert f"{out} is there already: name another file, or go on with it by `probe`" in one_line(
        CliRunner().invoke(main, command)
    )
    assert not stats.exists(), "told before calibration takes its time"
    refused = [*command[:-1], str(tmp_path / "other.json"), "--engine", "vllm"]
    assert "engine 'vllm' cannot disturb a running model" in one_line(CliRunner().invoke(main, refused))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats_sha256": "0" * 64}, "was probed with other stats"),
        ({"text_sha256": "0" * 64}, "was probed on another text"),
        ({"ctx": 128}, "was probed in windows of 128 tokens"),
        ({"engine": "an abacus"}, "was probed by an abacus"),
        ({"model_id": "sha256:0"}, "was probed on another model"),
    ],
)
def test_probes_of_something_else_are_not_gone_on_with(
    change: dict[str, object], message: str, probed: Probed, text: Path, tmp_path: Path
) -> None:
    """Nothing that was measured is lost."""
    out = tmp_path / "sensitivity.json"
    write_sensitivity(out, dataclasses.replace(probed.found, **change))  # type: ignore[arg-type]  # of many types
    before = out.read_bytes()
    assert message in one_line(CliRunner().invoke(main, _command(probed.bench, text, out)))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "nope"], "unknown engine 'nope'"),
        (["--experts-used", "17"], "17 experts a token cannot come from"),
        (["--criterion-option", "beta=1"], "criterion auto has no option 'beta'"),
        (["--groups", "balanced"], "--groups balanced: this model's router has no groups"),
        (["--text", "none.txt"], "cannot read the text none.txt: No such file or directory"),
    ],
)
def test_what_cannot_be_probed(options: list[str], message: str, runnable: Bench, text: Path, tmp_path: Path) -> None:
    """All of it before anything runs."""
    result = CliRunner().invoke(main, _command(runnable, text, tmp_path / "sensitivity.json", *options))
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []


def test_probing_needs_statistics(runnable: Bench, text: Path) -> None:
    planning = dataclasses.replace(runnable.planning(threads=1), stats_source=None)
    with pytest.raises(CollabError, match="probing needs statistics, for errors and prunings to be like real"):
        probe(planning, Measuring(Counting(), _windows(text)))
