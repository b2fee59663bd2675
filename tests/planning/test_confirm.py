"""--confirm: candidates are built and measured, and the measured winner is the plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from small_models.model_bench import Bench

from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.inputs import stats_of
from collab_plugin.engines.engine import Windows
from collab_plugin.planning.measure.confirm import confirm_plans
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.progress import untold

pytestmark = pytest.mark.slow  # the engine runs for seconds

CTX = 64
CHUNKS = 3
ROUNDED = 1e-4
"""Relative: kept logits have 16 bits."""


def _measured(bench: Bench, plan: Plan, text: Path, out: Path, ctx: int = CTX, chunks: int = CHUNKS) -> float:
    """KL divergence of the file that `collab-plugin compress` makes, the original running beside it."""
    stats = stats_of(plan, bench.checkpoint, bench.stats_path.parent, None)
    compress(
        bench.checkpoint, plan, stats, out, kernels=bench.kernels, threads=1,
        report=lambda done, total=None: None,
    )  # fmt: skip
    return (
        LlamaCppEngine().evaluate(out, bench.path, Windows((text,), ctx, chunks), threads=1, progress=untold).mean_kld
    )


def _confirm(bench: Bench, plans: tuple[Plan, ...], text: Path) -> Plan:
    measuring = Measuring(LlamaCppEngine(), Windows((text,), CTX, CHUNKS))
    return confirm_plans(plans, bench.planning(threads=1), measuring)


def test_the_measured_winner_is_taken(runnable: Bench, text: Path, tmp_path: Path) -> None:
    """Whatever was predicted: here half of the experts, predicted to be better, is measured to be worse."""
    budget = int(6.5 * runnable.topology.total_parameters / 8)
    both = {n: runnable.plan(budget, types=("Q4_K", "Q6_K"), keep=str(n), experts_used=2) for n in (4, 8)}
    searched = runnable.plan(budget, types=("Q4_K", "Q6_K"), experts_used=2)
    wrong = {4: 0.001, 8: 9.0}
    plans = tuple(
        dataclasses.replace(plan, predicted_kld=wrong[n], considered=searched.considered) for n, plan in both.items()
    )
    best = _confirm(runnable, plans, text)
    figures = {n: _measured(runnable, plan, text, tmp_path / f"{n}.gguf") for n, plan in both.items()}
    assert figures[8] < figures[4], "half of the experts must be worse, or the test proves nothing"
    assert best.pruning.expert_count == 8
    assert dataclasses.replace(best, considered=()) == dataclasses.replace(plans[1], considered=())
    told = {p.expert_count: p for p in best.considered if p.measured_kld is not None}
    assert {n: p.measured_kld for n, p in told.items()} == pytest.approx(figures, rel=ROUNDED)
    assert {n: (p.bytes, p.predicted_kld, p.chosen) for n, p in told.items()} == {
        n: (both[n].bytes, wrong[n], n == 8) for n in both
    }
    assert [p.expert_count for p in best.considered if p.chosen] == [8]
    assert len(best.considered) == len(searched.considered)
    assert [p.bytes for p in best.considered] == sorted(p.bytes for p in best.considered)


def test_confirm_from_the_command_line(runnable: Bench, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = [
        "plan", runnable.path, "--stats", runnable.stats_path, "--budget", "6bpw", "--types", "Q4_K,Q6_K",
        "--confirm", 2, "--text", text, "--chunks", 1, "--threads", 1, "-o", out,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    plan = read_plan(out)
    shown = json.loads(result.stdout)
    assert shown["considered"] == json.loads(out.read_text())["considered"]
    told = [p for p in plan.considered if p.measured_kld is not None]
    assert len(told) == 2
    (chosen,) = [p for p in plan.considered if p.chosen]
    assert chosen.measured_kld == min(p.measured_kld or 0.0 for p in told)
    assert (chosen.expert_count, chosen.bytes) == (plan.pruning.expert_count, plan.bytes)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_one_candidate_is_a_measurement(runnable: Bench, text: Path, tmp_path: Path) -> None:
    """Nothing is left to choose: the plan tells what it was measured to cost."""
    out = tmp_path / "plan.json"
    arguments = [
        "plan", runnable.path, "--stats", runnable.stats_path, "--budget", "6bpw", "--types", "Q4_K,Q6_K", "--keep", 8,
        "--confirm", 1, "--text", text, "--chunks", 1, "--threads", 1, "-o", out,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "predicted KL divergence: " in shown
    plan = read_plan(out)
    (point,) = plan.considered
    assert (point.kind, point.chosen, point.bytes) == ("candidate", True, plan.bytes)
    # Windows as long as those of the calibration.
    figure = _measured(runnable, plan, text, tmp_path / "out.gguf", ctx=runnable.source.stats.chunk_size, chunks=1)
    assert point.measured_kld == pytest.approx(figure, rel=ROUNDED)
    assert f"measured: {figure:.4f} nats with 8 experts kept, 2 a token, taken" in shown
