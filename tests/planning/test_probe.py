"""Probing a real model for seconds: what is measured, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from small_models.model_bench import Bench
from test_plan_command import _write_published_imatrix, one_line

from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.groups import coarse
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.planning.measure.probe import PROBE_TYPE, probe
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.sources import SensitivitySource
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan
from collab_plugin.progress import Advance, untold
from collab_plugin.quantize.error import ErrorTable
from collab_plugin.stats.sensitivity import Sensitivity, TypeProbe
from collab_plugin.stats.sensitivity_file import read_sensitivity, write_sensitivity

pytestmark = pytest.mark.slow  # the engine runs for seconds

SECONDS = 6.0
WINDOWS = 4
CTX = 64


class Counting(LlamaCppEngine):
    """llama.cpp that remembers which files it evaluated."""

    def __init__(self) -> None:
        self.evaluated: list[Path] = []

    def evaluate(self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance) -> Evaluation:
        self.evaluated.append(model)
        return super().evaluate(model, original, windows, threads=threads, progress=progress)


def _windows(text: Path) -> Windows:
    return Windows((text,), CTX, WINDOWS)


def _evaluate(model: Path, original: Path, text: Path) -> Evaluation:
    return LlamaCppEngine().evaluate(model, original, _windows(text), threads=1, progress=untold)


def _planning(bench: Bench, found: Sensitivity | None) -> PlanningInput:
    source = None if found is None else SensitivitySource.of(found)
    return dataclasses.replace(bench.planning(threads=1), sensitivity_source=source)


def _once(
    bench: Bench, text: Path, found: Sensitivity | None, seconds: float = SECONDS
) -> tuple[Sensitivity, Counting, list[Sensitivity]]:
    """Probe once; what there is then, the engine, and what was to be kept."""
    engine, kept = Counting(), list[Sensitivity]()
    made = probe(_planning(bench, found), Measuring(engine, _windows(text)), seconds, kept.append)
    return made, engine, kept


def _enough(
    bench: Bench, text: Path, found: Sensitivity | None, enough: Callable[[Sensitivity], bool]
) -> tuple[Sensitivity, list[list[Path]]]:
    """Probe for some seconds, again while a slow machine has not measured ``enough``; what each run evaluated."""
    runs = []
    for _ in range(8):
        found, engine, _ = _once(bench, text, found)
        runs.append(engine.evaluated)
        if enough(found):
            return found, runs
    pytest.fail("this machine measures next to nothing in 48 seconds")


@dataclass(frozen=True)
class Probed:
    """A model after probing. ``runs``: the files that each run evaluated."""

    bench: Bench
    found: Sensitivity
    runs: list[list[Path]]


@pytest.fixture(scope="module")
def probed(runnable: Bench, text: Path) -> Probed:
    found, runs = _enough(runnable, text, None, lambda s: len(s.types) > 1)
    return Probed(runnable, found, runs)


# -- what is measured


def test_parts_of_the_model_come_first(probed: Probed) -> None:
    groups = [set(g.tensors) for g in coarse(probed.bench.checkpoint)]
    measured = [set(p.types) for p in probed.found.types]
    assert measured
    assert measured[: len(groups)] == groups[: len(measured)]
    for one in probed.found.types:
        assert set(one.types.values()) <= {PROBE_TYPE, "IQ3_S"}  # IQ3_S where there is no importance vector
        assert one.kld > 1e-4
        assert 0 < one.stderr < one.kld
        assert one.error > 0
    evaluated = sum(len(files) for files in probed.runs)
    assert evaluated == len(probed.runs) + len(measured) + len(probed.found.prunings)


def test_probes_say_of_what_they_are(probed: Probed, text: Path) -> None:
    s = probed.found
    assert (s.texts, s.ctx, s.chunks, s.tokens) == ((text.name,), CTX, WINDOWS, WINDOWS * (CTX // 2 - 1))
    assert s.engine == LlamaCppEngine().version()
    assert s.stats_sha256 == probed.bench.source.sha256


def test_a_probe_is_what_the_quantized_model_costs(probed: Probed, text: Path, tmp_path: Path) -> None:
    """Embeddings are looked up, so there values and type give the same model; matrices that are multiplied
    meet activations of 8 bits, which adds a little."""
    bench = probed.bench
    borrowing = bench.plan(None, keep_types=True).calibration
    for one, tolerance in zip(probed.found.types[:2], (1e-3, 0.3), strict=False):
        plan = copy_plan(bench.checkpoint)
        shapes = {n: bench.checkpoint.tensors[n].shape for n in one.types}
        new = {n: TensorPlan(kind, tensor_bytes(kind, shapes[n]), None) for n, kind in one.types.items()}
        plan = dataclasses.replace(plan, tensors={**plan.tensors, **new}, calibration=borrowing)
        out = tmp_path / "out.gguf"
        compress(bench.checkpoint, plan, bench.source.stats, out, kernels=bench.kernels, threads=1, report=untold)
        assert _evaluate(out, bench.path, text).mean_kld == pytest.approx(one.kld, rel=tolerance)
        out.unlink()


def test_predicted_equals_measured_for_what_was_probed(probed: Probed) -> None:
    """Σ ω ε over a probed group, errors measured anew, is its KL divergence."""
    bench = probed.bench
    planning = _planning(bench, probed.found)
    weights = predictor_of(Candidates(planning)).weights
    table = ErrorTable(bench.checkpoint, {}, planning.imatrix, bench.kernels, 1, untold)
    for one in probed.found.types:
        if any(set(other.types) < set(one.types) for other in probed.found.types):
            continue  # its parts say more than it does
        errors = table.measure({n: (kind,) for n, kind in one.types.items()})
        predicted = sum(weights[n] * errors[n][kind] for n, kind in one.types.items())
        assert predicted == pytest.approx(one.kld, rel=1e-3)


def test_prunings_follow(probed: Probed, text: Path, tmp_path: Path) -> None:
    """With every part measured, the next is a quarter of the experts dropped: as the pruned file evaluates."""
    bench = probed.bench
    known = {frozenset(p.types) for p in probed.found.types}
    left = [g for g in coarse(bench.checkpoint) if frozenset(g.tensors) not in known]
    rest = tuple(TypeProbe(dict.fromkeys(g.tensors, "IQ3_XXS"), 1.0, 1.0, 0.1) for g in left)
    begun = dataclasses.replace(probed.found, types=(*probed.found.types, *rest), prunings=())
    found, _ = _enough(bench, text, begun, lambda s: len(s.prunings) > 0)
    first = found.prunings[0]
    assert (first.rule, first.expert_count, first.experts_used) == ("freq-score alpha=0.5 groups=none", 6, 2)
    plan = bench.plan(None, keep_types=True, keep="6", experts_used=2)
    out = tmp_path / "pruned.gguf"
    compress(bench.checkpoint, plan, None, out, kernels=None, threads=1, report=untold)
    result = _evaluate(out, bench.path, text)
    assert result.mean_kld > 1e-3
    assert (result.mean_kld, result.mean_kld_stderr) == pytest.approx((first.kld, first.stderr), rel=1e-6)


# -- what is kept


def test_a_second_run_measures_nothing_again(probed: Probed, text: Path) -> None:
    """With no time left only the copy is evaluated, for the number of tokens."""
    found, engine, kept = _once(probed.bench, text, probed.found, 0.01)
    assert found == probed.found
    assert [path.name for path in engine.evaluated] == ["scratch.gguf"]
    assert kept == []


def test_more_time_goes_on(probed: Probed, text: Path) -> None:
    old = len(probed.found.types)
    found, _ = _enough(probed.bench, text, probed.found, lambda s: len(s.types) > old)
    assert found.types[:old] == probed.found.types
    groups = [frozenset(p.types) for p in found.types]
    assert len(set(groups)) == len(groups)
    assert len(set(found.prunings)) == len(found.prunings)


def test_what_was_measured_is_kept_when_interrupted(probed: Probed, text: Path) -> None:
    class Interrupted(Counting):
        def evaluate(
            self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance
        ) -> Evaluation:
            if len(self.evaluated) == 2:
                raise KeyboardInterrupt
            return super().evaluate(model, original, windows, threads=threads, progress=progress)

    kept: list[Sensitivity] = []
    with pytest.raises(KeyboardInterrupt):
        probe(_planning(probed.bench, None), Measuring(Interrupted(), _windows(text)), 600, kept.append)
    assert [len(s.types) for s in kept] == [1]
    assert set(kept[0].types[0].types) == set(probed.found.types[0].types)


# -- from the command line


def _command(bench: Bench, text: Path, out: Path, *more: object, stats: Path | None = None) -> list[str]:
    return [
        "probe", str(bench.path), "--stats", str(stats or bench.stats_path), "--text", str(text), "--ctx", str(CTX),
        "--chunks", str(WINDOWS), "--threads", "1", "-o", str(out), *map(str, more),
    ]  # fmt: skip


def test_probe_then_plan(runnable: Bench, text: Path, tmp_path: Path) -> None:
    """The document is written and the stats stay as they were; a plan made with it says so; its bytes depend on the
    types alone."""
    before = runnable.stats_path.read_bytes()
    out = tmp_path / "sensitivity.json"
    done = CliRunner().invoke(main, _command(runnable, text, out, "--minutes", 0.3))
    assert done.exit_code == 0, done.output
    found = read_sensitivity(out)
    assert f"{len(found.types)} groups of tensors and {len(found.prunings)} prunings" in " ".join(done.stdout.split())
    plans = []
    for name, options in (("with.json", ("--sensitivity", out)), ("without.json", ())):
        path = tmp_path / name
        given = ("--stats", runnable.stats_path, "--budget", "6bpw", "--types", "Q4_K,Q6_K", *options, "-o", path)
        assert CliRunner().invoke(main, ["plan", str(runnable.path), *map(str, given)]).exit_code == 0
        plans.append(read_plan(path))
    probed, plain = plans
    assert probed.sensitivity is not None
    assert probed.sensitivity.file == "sensitivity.json"
    assert probed.prediction.startswith(f"probed: {len(found.types)} groups")
    assert f"on {found.tokens:,} tokens" in probed.prediction
    assert plain.sensitivity is None
    assert plain.prediction.startswith("defaults learnt on two small models")
    same = dataclasses.replace(probed, sensitivity=None)
    assert plan_fingerprint(same) == plan_fingerprint(probed)
    assert runnable.stats_path.read_bytes() == before


def test_an_imatrix_of_another_tool_will_do(runnable: Bench, text: Path, tmp_path: Path) -> None:
    foreign = _write_published_imatrix(runnable, tmp_path / "foreign.gguf")
    out = tmp_path / "sensitivity.json"
    done = CliRunner().invoke(main, _command(runnable, text, out, "--minutes", 0.3, stats=foreign))
    assert done.exit_code == 0, done.output
    assert read_sensitivity(out).types


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats_sha256": "0" * 64}, "was probed with other stats"),
        ({"text_sha256": "0" * 64}, "was probed on another text"),
        ({"ctx": 128}, "was probed in windows of 128 tokens"),
        ({"chunks": None}, "was probed on all windows of each text"),
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
        (["--criterion-option", "beta=1"], "criterion freq-score has no option 'beta'"),
        (["--groups", "balanced"], "--groups balanced: this model's router has no groups"),
        (["--text", "none.txt"], "the text none.txt does not exist"),
    ],
)
def test_what_cannot_be_probed(options: list[str], message: str, runnable: Bench, text: Path, tmp_path: Path) -> None:
    """All of it before anything runs."""
    result = CliRunner().invoke(main, _command(runnable, text, tmp_path / "sensitivity.json", *options))
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []


def test_probing_needs_statistics(runnable: Bench, text: Path) -> None:
    planning = dataclasses.replace(runnable.planning(threads=1), stats_source=None)
    with pytest.raises(CollabError, match="probing needs statistics to quantize and prune by: give `stats`"):
        probe(planning, Measuring(Counting(), _windows(text)), 3.0)


def test_after_a_kill_the_next_start_clears_up(
    runnable: Bench, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves a copy as large as the model in the user's cache, and nothing beside the output."""
    cache, folder = tmp_path / "cache", tmp_path / "out"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    command = [sys.executable, "-m", "collab_plugin", *_command(runnable, text, folder / "sensitivity.json")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    scratch = cache / "collab-plugin" / "scratch"
    limit = time.monotonic() + 120
    while not list(scratch.glob("*/scratch.gguf")):
        assert child.poll() is None, "probing ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert list(scratch.glob("*/scratch.gguf"))
    assert not [path for path in folder.iterdir() if path.name != "sensitivity.json"]
    _once(runnable, text, None, 0.01)
    assert list(scratch.iterdir()) == []
