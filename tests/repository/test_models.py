"""The trained models are good judges: what their cards claim, measured through the Python interface.

Figures and how they were made: the README.md of each model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import collab_plugin as cp
from collab_plugin.cli.calibrate import summary

ROOT = Path(__file__).parents[1]
DOMAIN = {
    "tiny-qwen3moe": "python",
    "tiny-deepseek-v3": "german",
    "tiny-qwen3moe-seed1": "english",
    "skewed-qwen2moe": "german",
}
MODELS = sorted(DOMAIN)
# Judges of pruning that tests use; the others' cards say what pruning does to them.
PRUNABLE = ("tiny-deepseek-v3", "tiny-qwen3moe")
WINDOW = {"skewed-qwen2moe": 192}  # of training, where it is not 512
OTHERS = ROOT.parent / "benchmarks" / "models"


def folder_of(model: str) -> Path:
    """Models that only benchmarks use lie beside them."""
    return next(p / model for p in (ROOT / "models", OTHERS) if (p / model).is_dir())


@cache
def calibrated(model: str, folder: Path) -> cp.Stats:
    """Stats of the model's domain."""
    text = ROOT / "texts" / f"{DOMAIN[model]}.calibration.txt"
    return cp.calibrate(folder_of(model), texts=text, chunks=24, ctx=WINDOW.get(model, 512))


def validation(model: str) -> dict[str, Any]:
    """The windows to evaluate on: none that was calibrated on."""
    return {"texts": ROOT / "texts" / f"{DOMAIN[model]}.validation.txt", "chunks": 12}


@cache
def original(model: str, folder: Path) -> Path:
    """What evaluating needs of the whole model: made once, for seven pruned ones to be compared with."""
    out = folder / f"{model}.npy"
    cp.reference(folder_of(model), out, **validation(model))
    return out


def pruned(model: str, folder: Path, keep: str, criterion: str, seed: int | None = None) -> cp.Evaluation:
    """Evaluate the model with a share of its experts, nothing quantized, on its domain."""
    out = folder / "pruned.gguf"
    options = {} if seed is None else {"seed": seed}
    plan = cp.plan(folder_of(model), stats=calibrated(model, folder), keep=keep, keep_types=True, criterion=criterion,
                   criterion_options=options)  # fmt: skip
    cp.compress(folder_of(model), plan, out)
    return cp.evaluate(out, against=original(model, folder), **validation(model))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_least_used_quarter_carries_little(model: str, folder: Path) -> None:
    """Of all selections, mean over layers."""
    stats = calibrated(model, folder)
    most = 0.10 if model.startswith("skewed") else 0.12
    assert mean(summary(layer, routing)["least_used_quarter"] for layer, routing in stats.routing.items()) <= most


@pytest.mark.slow
@pytest.mark.parametrize("model", PRUNABLE)
def test_freq_score_beats_random_by_30_percent(model: str, folder: Path) -> None:
    ours = pruned(model, folder, "75%", "freq-score").mean_kld
    random = mean(pruned(model, folder, "75%", "random", seed).mean_kld for seed in range(3))
    assert ours <= 0.7 * random, f"{ours:.4f} against {random:.4f}"


@pytest.mark.slow
@pytest.mark.parametrize("model", PRUNABLE)
def test_half_at_random_hurts(model: str, folder: Path) -> None:
    results = [pruned(model, folder, "50%", "random", seed) for seed in range(3)]
    assert mean(r.ppl / r.ppl_original for r in results) >= 1.5
