"""The trained models are good judges: what their cards claim, measured with our own commands.

Figures and how they were made: the README.md of each model.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine

from collab_plugin.api.cores import cores
from collab_plugin.cli import main
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold

ROOT = Path(__file__).parents[1]
DOMAIN = {"tiny-qwen3moe": "python", "tiny-deepseek-v3": "german", "tiny-qwen3moe-seed1": "english"}
CHUNKS, CTX = 12, 512
MODELS = sorted(DOMAIN)
OTHERS = ROOT.parent / "benchmarks" / "models"


def folder_of(model: str) -> Path:
    """Models that only benchmarks use lie beside them."""
    return next(p / model for p in (ROOT / "models", OTHERS) if (p / model).is_dir())


def call(*arguments: str | Path) -> dict[str, object]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    parsed: dict[str, object] = json.loads(result.stdout)
    return parsed


@cache
def calibrated(model: str, folder: Path) -> tuple[Path, float]:
    """Stats of the model's domain, and the share of the least used quarter (mean over layers)."""
    stats = folder / f"{model}.stats.gguf"
    text = ROOT / "texts" / f"{DOMAIN[model]}.calibration.txt"
    result = call("calibrate", folder_of(model), "--text", text, "--chunks", "24", "-o", stats)
    layers = result["layers"]
    assert isinstance(layers, list)
    return stats, mean(layer["least_used_quarter"] for layer in layers)


def validation(model: str) -> Windows:
    return Windows((ROOT / "texts" / f"{DOMAIN[model]}.validation.txt",), CTX, CHUNKS)


@cache
def original(model: str, folder: Path) -> Path:
    """What evaluating needs of the whole model: made once, for nine pruned ones to be compared with."""
    out = folder / f"{model}.npy"
    LlamaCppEngine().reference(
        as_gguf(open_checkpoint(folder_of(model)), cores()), validation(model),
        out=out, threads=cores(), progress=untold,
    )  # fmt: skip
    return out


def pruned(model: str, folder: Path, keep: str, criterion: str, seed: int | None = None) -> Evaluation:
    """Evaluate the model with a share of its experts, nothing quantized, on its domain."""
    stats, _ = calibrated(model, folder)
    source = folder_of(model)
    plan, out = folder / "pruned.json", folder / "pruned.gguf"
    options = () if seed is None else ("--criterion-option", f"seed={seed}")
    call(
        "plan", source, "--stats", stats, "--keep", keep, "--keep-types",
        "--criterion", criterion, *options, "-o", plan,
    )  # fmt: skip
    call("compress", source, "--plan", plan, "-o", out)
    return LlamaCppEngine().evaluate(out, original(model, folder), validation(model), threads=cores(), progress=untold)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_least_used_quarter_carries_at_most_12_percent(model: str, folder: Path) -> None:
    assert calibrated(model, folder)[1] <= 0.12


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_freq_score_beats_random_by_30_percent(model: str, folder: Path) -> None:
    ours = pruned(model, folder, "75%", "freq-score").mean_kld
    random = mean(pruned(model, folder, "75%", "random", seed).mean_kld for seed in range(5))
    assert ours <= 0.7 * random, f"{ours:.4f} against {random:.4f}"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_half_at_random_hurts(model: str, folder: Path) -> None:
    results = [pruned(model, folder, "50%", "random", seed) for seed in range(3)]
    assert mean(r.ppl / r.ppl_original for r in results) >= 1.5
