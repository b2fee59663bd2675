"""Models that are trained to be measured and thrown away: other architectures, seeds, widths and tokenizers than those
that are kept."""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.bench import ROOT
from benchmarks.train.shapes import SHAPES

MODELS = ROOT / "tests" / "models"


@dataclass(frozen=True)
class Recipe:
    """``tokenizer``: a kept model that lends it; None: one of its own, of the shape's vocabulary. ``options``: for
    `benchmarks.train.train`."""

    shape: str
    tokenizer: str | None
    minutes: int
    options: tuple[str, ...]


RECIPES = (
    Recipe("unseen-deepseek-v3", "tiny-deepseek-v3", 13, (
        "--seed", "7", "--embeddings", str(MODELS / "tiny-deepseek-v3"), "--shared-dropout", "0.25",
    )),
    Recipe("unseen-olmoe", "tiny-qwen3moe", 13, ("--seed", "8", "--embeddings", str(MODELS / "tiny-qwen3moe"))),
    Recipe("unseen-mixtral", None, 13, ("--seed", "9")),
    Recipe("unseen-deep-olmoe", None, 20, ("--seed", "10", "--lr", "2e-3")),
)  # fmt: skip


def trained(recipe: Recipe, folder: Path, python: Path) -> Path:
    """The model's folder in ``folder``, trained there once. ``python`` has torch, safetensors and tokenizers."""
    out = folder / recipe.shape
    if (out / "config.json").exists():
        return out
    if not (folder / "corpora").is_dir():
        _module(python, "corpora", folder / "corpora", folder / "held-out")
    if recipe.tokenizer is None:
        tokenizer = folder / f"tokenizer-{recipe.shape}"
        _module(python, "make_tokenizer", "qwen", folder / "corpora", tokenizer, SHAPES[recipe.shape].vocabulary)
    else:
        tokenizer = MODELS / recipe.tokenizer
    tokens, run = folder / f"tokens-{recipe.tokenizer or recipe.shape}", folder / f"run-{recipe.shape}"
    if not tokens.is_dir():
        _module(python, "encode", tokenizer, folder / "corpora", tokens)
    until = dt.datetime.now() + dt.timedelta(minutes=recipe.minutes)
    _module(
        python, "train", recipe.shape, "--tokens", tokens, "--out", run, "--until", f"{until:%H:%M}", *recipe.options
    )
    _module(python, "export", run / "model.pt", tokenizer, out)
    return out


def _module(python: Path, name: str, *arguments: object) -> None:
    command: Sequence[str] = [str(python), "-m", f"benchmarks.train.{name}", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True)
