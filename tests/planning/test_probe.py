"""Probing a real model for seconds: what is kept, what is measured, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from small_models.model_bench import Bench, load

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.inputs import stats_of
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.planning.allocators.knapsack import KNAPSACK
from collab_plugin.planning.candidates import Frames
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.decide import Measuring, decide
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.measure.probe import PROBE_TYPE
from collab_plugin.planning.measure.scratch_copy import Scratch
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.search import sensitivity_of
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.progress import Advance, untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.stats.probes import Probes, TypeProbe
from collab_plugin.stats.stats import BORROW
from collab_plugin.stats.stats_file import read_stats, write_stats

pytestmark = pytest.mark.slow  # the engine runs for seconds

SECONDS = 6.0
CTX = 64
CHUNKS = 4
TYPES = ("Q2_K", "Q4_K", "Q6_K")


def _quiet(done: float, total: float | None = None) -> None: ...


class Counting(LlamaCppEngine):
    """llama.cpp that remembers which files it evaluated."""

    def __init__(self) -> None:
        self.evaluated: list[Path] = []

    def evaluate(self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance) -> Evaluation:
        self.evaluated.append(model)
        return super().evaluate(model, original, windows, threads=threads, progress=progress)


def _evaluate(model: Path, original: Path, text: Path) -> Evaluation:
    return LlamaCppEngine().evaluate(model, original, Windows((text,), CTX, CHUNKS), threads=1, progress=untold)


def _request(bench: Bench) -> PlanRequest:
    budget = int(4.5 * bench.topology.total_parameters / 8)
    return PlanRequest(budget, CRITERIA[0], KNAPSACK, types=TYPES, threads=1)


def _decide(bench: Bench, text: Path, folder: Path, seconds: float | None) -> tuple[Plan, Counting]:
    engine = Counting()
    measuring = None if seconds is None else Measuring(engine, Windows((text,), CTX, CHUNKS), folder, seconds)
    plan = decide(bench.checkpoint, bench.topology, bench.source, _request(bench), bench.kernels, measuring)
    return plan, engine


def _probes(bench: Bench) -> Probes:
    found = read_stats(bench.stats_path).probes
    assert found is not None
    return found


def _probe(
    bench: Bench, text: Path, folder: Path, enough: Callable[[Probes], bool]
) -> tuple[Bench, Plan, list[list[Path]]]:
    """Probe for some seconds, again while a slow machine has not measured ``enough``; what each run evaluated."""
    runs = []
    for _ in range(8):
        plan, engine = _decide(bench, text, folder, SECONDS)
        runs.append(engine.evaluated)
        bench = load(bench.path, bench.stats_path, bench.kernels)
        if enough(_probes(bench)):
            return bench, plan, runs
    pytest.fail("this machine measures next to nothing in 48 seconds")


@dataclass(frozen=True)
class Probed:
    """A model after probing; ``before``: a plan made without. ``runs``: the files that each run evaluated."""

    bench: Bench
    before: Plan
    plan: Plan
    runs: list[list[Path]]
    folder: Path

    @property
    def probes(self) -> Probes:
        return _probes(self.bench)


@pytest.fixture(scope="module")
def probed(runnable: Bench, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("probed")
    stats = folder / "stats.gguf"
    shutil.copy(runnable.stats_path, stats)
    bench = load(runnable.path, stats, runnable.kernels)
    before, _ = _decide(bench, text, folder, None)
    bench, plan, runs = _probe(bench, text, folder, lambda p: len(p.types) > 1)
    return Probed(bench, before, plan, runs, folder)


@pytest.fixture
def again(probed: Probed, tmp_path: Path) -> Bench:
    """The probed model with a copy of its stats."""
    shutil.copy(probed.bench.stats_path, tmp_path / "stats.gguf")
    return load(probed.bench.path, tmp_path / "stats.gguf", probed.bench.kernels)


# -- what is measured


def test_parts_of_the_model_come_first(probed: Probed) -> None:
    groups = [set(g.tensors) for g in coarse(probed.bench.checkpoint)]
    measured = [set(p.types) for p in probed.probes.types]
    assert measured
    assert measured[: len(groups)] == groups[: len(measured)]
    for probe in probed.probes.types:
        assert set(probe.types.values()) <= {PROBE_TYPE, "IQ3_S"}  # IQ3_S where there is no importance vector
        assert probe.kld > 1e-4
        assert 0 < probe.stderr < probe.kld
        assert probe.error > 0
    evaluated = sum(len(files) for files in probed.runs)
    assert evaluated == len(probed.runs) + len(measured) + len(probed.probes.prunes)


def test_probes_say_of_what_they_are(probed: Probed, text: Path) -> None:
    p = probed.probes
    assert (p.texts, p.ctx, p.tokens) == ((text.name,), CTX, CHUNKS * (CTX // 2 - 1))
    assert p.engine == LlamaCppEngine().version()


def test_a_probe_is_what_the_quantized_model_costs(probed: Probed, text: Path, tmp_path: Path) -> None:
    """Embeddings are looked up, so there values and type give the same model; matrices that are multiplied
    meet activations of 8 bits, which adds a little."""
    bench = probed.bench
    for probe, tolerance in zip(probed.probes.types[:2], (1e-3, 0.3), strict=False):
        plan = copy_plan(bench.checkpoint)
        shapes = {n: bench.checkpoint.tensors[n].shape for n in probe.types}
        new = {n: TensorPlan(kind, tensor_bytes(kind, shapes[n]), None) for n, kind in probe.types.items()}
        plan = dataclasses.replace(plan, tensors={**plan.tensors, **new})
        out = tmp_path / "out.gguf"
        stats = dataclasses.replace(bench.source.stats, borrow=BORROW)
        compress(bench.checkpoint, plan, stats, out, kernels=bench.kernels, threads=1, report=_quiet)
        assert _evaluate(out, bench.path, text).mean_kld == pytest.approx(probe.kld, rel=tolerance)
        out.unlink()


def test_predicted_equals_measured_for_what_was_probed(probed: Probed) -> None:
    """Σ ω ε over a probed group, errors measured anew, is its KL divergence."""
    bench = probed.bench
    frames = Frames(bench.checkpoint, bench.topology, bench.source, _request(bench), bench.kernels)
    weights = sensitivity_of(frames).weights
    assert frames.source is not None
    table = ErrorTable(bench.checkpoint, {}, frames.source.stats, bench.kernels, 1, _quiet)
    for probe in probed.probes.types:
        if any(set(other.types) < set(probe.types) for other in probed.probes.types):
            continue  # its parts say more than it does
        errors = table.measure({n: (kind,) for n, kind in probe.types.items()})
        predicted = sum(weights[n] * errors[n][kind] for n, kind in probe.types.items())
        assert predicted == pytest.approx(probe.kld, rel=1e-3)


def test_prunings_follow(probed: Probed, again: Bench, text: Path, tmp_path: Path) -> None:
    """With every part measured, the next is a quarter of the experts dropped: as the pruned file evaluates."""
    known = {frozenset(p.types) for p in probed.probes.types}
    left = [g for g in coarse(again.checkpoint) if frozenset(g.tensors) not in known]
    rest = tuple(TypeProbe(dict.fromkeys(g.tensors, "IQ3_XXS"), 1.0, 1.0, 0.1) for g in left)
    probes = dataclasses.replace(probed.probes, types=(*probed.probes.types, *rest), prunes=())
    write_stats(again.stats_path, dataclasses.replace(again.source.stats, probes=probes))
    bench = load(again.path, again.stats_path, again.kernels)
    bench, _, _ = _probe(bench, text, tmp_path, lambda p: len(p.prunes) > 0)
    first = _probes(bench).prunes[0]
    frames = Frames(bench.checkpoint, bench.topology, bench.source, _request(bench), None)
    assert (first.rule, first.expert_count, first.experts_used) == (frames.rule, 6, 2)
    plan = bench.plan(None, keep_types=True, keep="6", experts_used=2)
    out = tmp_path / "pruned.gguf"
    compress(bench.checkpoint, plan, None, out, kernels=None, threads=1, report=_quiet)
    result = _evaluate(out, bench.path, text)
    assert result.mean_kld > 1e-3
    assert (result.mean_kld, result.mean_kld_stderr) == pytest.approx((first.kld, first.stderr), rel=1e-6)


# -- what is kept


def test_plans_tell_of_probes(probed: Probed) -> None:
    assert probed.before.sensitivity.startswith("defaults learnt on two small models")
    assert probed.plan.sensitivity.startswith(f"probed: {len(probed.probes.types)} groups")
    assert f"on {probed.probes.tokens} tokens" in probed.plan.sensitivity


def test_plans_made_before_still_compress(probed: Probed, tmp_path: Path) -> None:
    stats = stats_of(probed.before, probed.bench.checkpoint, probed.folder, None)
    assert stats is not None
    out = tmp_path / "out.gguf"
    compress(probed.bench.checkpoint, probed.before, stats, out, kernels=probed.bench.kernels, threads=1, report=_quiet)
    assert out.stat().st_size == probed.before.bytes


def test_a_second_plan_costs_nothing(probed: Probed, again: Bench, text: Path, tmp_path: Path) -> None:
    """Without --probe nothing runs; with it and no time, only the copy, for the number of tokens."""
    before = again.stats_path.read_bytes()
    plain, _ = _decide(again, text, tmp_path, None)
    assert plain == probed.plan
    probing, engine = _decide(again, text, tmp_path, 0.01)
    assert probing == probed.plan
    assert [path.name for path in engine.evaluated] == ["scratch.gguf"]
    assert again.stats_path.read_bytes() == before


def test_more_time_goes_on(probed: Probed, again: Bench, text: Path, tmp_path: Path) -> None:
    old = len(probed.probes.types)
    more, _, _ = _probe(again, text, tmp_path, lambda p: len(p.types) > old)
    found = _probes(more)
    assert found.types[:old] == probed.probes.types
    groups = [frozenset(p.types) for p in found.types]
    assert len(set(groups)) == len(groups)
    assert len(set(found.prunes)) == len(found.prunes)


def test_probes_of_another_text_do_not_count(probed: Probed, again: Bench, text: Path, tmp_path: Path) -> None:
    """Also when it has the same name; but nothing measured never replaces something measured."""
    other = tmp_path / text.name
    content = text.read_text("utf-8")
    other.write_text(content[::-1], "utf-8")
    _decide(again, other, tmp_path, 0.01)
    assert _probes(again) == probed.probes
    _probe(again, other, tmp_path, lambda p: p.text_sha256 != probed.probes.text_sha256)
    assert _probes(again).texts == (text.name,)


def test_nothing_is_left_behind(probed: Probed) -> None:
    assert [path.name for path in probed.folder.iterdir()] == ["stats.gguf"]


# -- the copy in which tensors are worse for a while


def test_scratch(runnable: Bench, tmp_path: Path) -> None:
    """Within: these tensors as they come back from their types, all others untouched. Then every byte as before."""
    checkpoint, stats, kernels = runnable.checkpoint, runnable.source.stats, runnable.kernels
    scratch = Scratch(checkpoint, stats, kernels, tmp_path, 2)
    before = scratch.path.read_bytes()
    types = {"blk.0.attn_q.weight": "IQ3_XXS", "blk.1.ffn_down_exps.weight": "Q2_K", "output.weight": "IQ3_S"}
    with scratch.quantized(types) as path:
        worse = open_gguf(path)
        for name, info in checkpoint.tensors.items():
            if name not in types:
                np.testing.assert_array_equal(worse.read(name), checkpoint.read(name))
                continue
            values = checkpoint.read(name)
            slices = values if values.ndim == 3 else values[None]
            for i, (rows, back) in enumerate(zip(slices, worse.read(name).reshape(slices.shape), strict=True)):
                entry = stats.imatrix.get(name)
                vector = None if entry is None else entry.vector(i, info.shape[-1])
                expected = kernels.dequantize(kernels.quantize(rows, types[name], vector), types[name], info.shape[-1])
                np.testing.assert_array_equal(back, expected)
                assert not np.array_equal(back, rows)
    assert scratch.path.read_bytes() == before


def test_scratch_is_restored_after_an_error(runnable: Bench, tmp_path: Path) -> None:
    scratch = Scratch(runnable.checkpoint, runnable.source.stats, runnable.kernels, tmp_path, 1)
    before = scratch.path.read_bytes()
    with pytest.raises(KeyboardInterrupt), scratch.quantized({"output.weight": "Q2_K"}) as path:
        assert path.read_bytes() != before
        raise KeyboardInterrupt
    assert scratch.path.read_bytes() == before


def test_scratch_of_half_precision(softmax: Bench, tmp_path: Path) -> None:
    """Stored as F16, written back as F16."""
    scratch = Scratch(softmax.checkpoint, softmax.source.stats, softmax.kernels, tmp_path, 1)
    name = "blk.1.attn_output.weight"
    before = scratch.path.read_bytes()
    with scratch.quantized({name: "Q4_K"}) as path:
        found = open_gguf(path)
        assert found.tensors[name].type.name == "F16"
        values = softmax.checkpoint.read(name)
        vector = softmax.source.stats.imatrix[name].vector(0, 256)
        back = softmax.kernels.dequantize(softmax.kernels.quantize(values, "Q4_K", vector), "Q4_K", 256)
        np.testing.assert_array_equal(found.read(name), back.astype(np.float16).astype(np.float32))
    assert scratch.path.read_bytes() == before


# -- refused


def test_probing_needs_stats_of_its_own(runnable: Bench, text: Path, tmp_path: Path) -> None:
    without = dataclasses.replace(runnable, source=None)  # type: ignore[arg-type]  # as a user who gave no --stats
    with pytest.raises(CollabError, match="--probe needs --stats: it keeps what it measures there"):
        _decide(without, text, tmp_path, 3.0)
    stats = dataclasses.replace(runnable.source.stats, model_id=None, engine="imatrix of another tool")
    foreign = dataclasses.replace(runnable, source=dataclasses.replace(runnable.source, stats=stats))
    with pytest.raises(CollabError, match="cannot in an imatrix of another tool: calibrate with collab-plugin"):
        _decide(foreign, text, tmp_path, 3.0)
    assert list(tmp_path.iterdir()) == []
