"""Arguments in all their forms: a path or what was read from it, one text or many; checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from collab_plugin.api.cores import cores
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.errors import CollabError
from collab_plugin.formats.text_file import text_file
from collab_plugin.formats.text_pieces import open_text
from collab_plugin.planning.allocators.allocator import Allocator
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.measure.measuring import Measuring, default_ctx
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.plugins.manager import pick, registry
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import Stats

AnyPath = str | os.PathLike[str]
_WEIGHTED = re.compile(r"(?P<path>.+):(?P<weight>\d+(?:\.\d+)?)$")
Model = AnyPath | Checkpoint
"""The path of a GGUF file or of a Hugging Face folder, or what `open_checkpoint` gave."""


def opened(model: Model) -> Checkpoint:
    return open_checkpoint(model) if isinstance(model, (str, os.PathLike)) else model


def plan_of(plan: Plan | AnyPath) -> tuple[Plan, Path | None]:
    """The plan and the folder of its file, where its stats may lie."""
    if not isinstance(plan, (str, os.PathLike)):
        return plan, None
    return read_plan(plan), Path(plan).parent


def source_of(stats: Stats | AnyPath) -> StatsSource:
    return StatsSource.read(Path(stats)) if isinstance(stats, (str, os.PathLike)) else StatsSource.of(stats)


def sensitivity_of(sensitivity: Sensitivity | AnyPath) -> SensitivitySource:
    if isinstance(sensitivity, (str, os.PathLike)):
        return SensitivitySource.read(Path(sensitivity))
    return SensitivitySource.of(sensitivity)


def criterion_of(criterion: str | ImportanceCriterion) -> ImportanceCriterion:
    return pick(registry().criteria, criterion, "criterion") if isinstance(criterion, str) else criterion


def allocator_of(allocator: str | Allocator) -> Allocator:
    return pick(registry().allocators, allocator, "allocator") if isinstance(allocator, str) else allocator


def object_or_path(stats: Stats | AnyPath | None) -> Stats | Path | None:
    return Path(stats) if isinstance(stats, (str, os.PathLike)) else stats


def text_files(texts: AnyPath | Sequence[AnyPath]) -> tuple[tuple[Path, ...], tuple[float, ...]]:
    """Files that can be read as often as an engine likes (what comes through a pipe is kept), and their weights."""
    given = [_weighted(text) for text in ((texts,) if isinstance(texts, (str, os.PathLike)) else texts)]
    return tuple(text_file(path) for path, _ in given), tuple(weight for _, weight in given)


def _weighted(text: AnyPath) -> tuple[AnyPath, float]:
    """``code.jsonl:2`` is code.jsonl with the weight 2, unless there is a file of that name."""
    found = _WEIGHTED.match(str(text))
    if not found or Path(text).exists():
        return text, 1.0
    weight = float(found["weight"])
    if weight <= 0:
        raise CollabError(f"`texts` has {text} with the weight 0: leave it out, or give it a weight above 0")
    return found["path"], weight


def windows_of(texts: AnyPath | Sequence[AnyPath], ctx: int, chunks: int | None, seed: int | None = None) -> Windows:
    """Checked here, before a model is converted for them."""
    files, weights = text_files(texts)
    if not files:
        raise CollabError("`texts` is empty: give UTF-8 files")
    at_least("ctx", ctx, 16)
    if chunks is not None:
        at_least("chunks", chunks, 1)
    for file in files:
        open_text(file)
    return Windows(files, ctx, chunks, weights, seed)


def existing(path: AnyPath, what: str) -> Path:
    if not Path(path).is_file():
        raise CollabError(f"the {what} {path} does not exist")
    return Path(path)


def at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise CollabError(f"`{name}` {value} is less than {least}")


def threads_of(threads: int | None) -> int:
    if threads is None:
        return cores()
    at_least("threads", threads, 1)
    return threads


def engine_of(engine: str | Engine) -> Engine:
    return pick(registry().engines, engine, "engine") if isinstance(engine, str) else engine


def measuring_of(
    engine: str | Engine,
    texts: AnyPath | Sequence[AnyPath],
    ctx: int | None,
    chunks: int | None,
    stats: Stats | None,
    cluster: str | None = None,
) -> Measuring:
    """``ctx`` None: windows as long as those of the calibration. ``cluster``: address of a Ray cluster."""
    windows = windows_of(texts, default_ctx(stats) if ctx is None else ctx, chunks)
    return Measuring(engine_of(engine), windows, cluster)
