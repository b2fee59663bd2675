"""Figures from outside the plan: evaluations of its artifact, and rivals' files to compare with."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_plugin.engines.results import Evaluation
from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Measured:
    """One evaluation of the plan's artifact, from `evaluate --json`; ``file`` is where it was read.

    Units as in engine.Evaluation: KL divergence in nats a token.
    """

    file: str
    mean_kld: float
    mean_kld_stderr: float
    ppl: float
    ppl_original: float
    same_top1: float
    tokens: int


@dataclass(frozen=True)
class Rival:
    """Another file of the same model: ``bytes`` and measured KL divergence (nats a token)."""

    name: str
    bytes: int
    mean_kld: float


NAMES = ("rival", "variant", "name")
"""Columns that may hold a rival's name: the first that is there."""


def read_evaluation(path: Path) -> Measured:
    """Read what `evaluate --json` printed; members that the report does not show are passed over."""
    try:
        data = json.loads(_text(path, "evaluation"))
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {error}; give what `evaluate` printed as JSON") from None
    if not isinstance(data, dict):
        raise CollabError(f"{path} is no evaluation; give what `evaluate` printed as JSON")
    number = _Numbers(path, data)
    return Measured(
        file=path.name,
        mean_kld=number.real("mean_kld"),
        mean_kld_stderr=number.real("mean_kld_stderr"),
        ppl=number.real("ppl"),
        ppl_original=number.real("ppl_original"),
        same_top1=number.real("same_top1"),
        tokens=int(number.real("tokens")),
    )


def measured(evaluation: Evaluation) -> Measured:
    """What a report shows of an evaluation made in this process."""
    e = evaluation
    return Measured("evaluation", e.mean_kld, e.mean_kld_stderr, e.ppl, e.ppl_original, e.same_top1, e.tokens)


class _Numbers:
    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self._path, self._data = path, data

    def real(self, key: str) -> float:
        value = self._data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CollabError(
                f"{self._path} has {key} = {str(value)[:40]!r}, not a number; give what `evaluate` printed as JSON"
            )
        return float(value)


def read_rivals(path: Path, model: str) -> tuple[Rival, ...]:
    """Read a CSV with the columns ``rival`` (or ``variant`` or ``name``), ``bytes`` and ``mean_kld``.

    With a column ``model``, only the rows of ``model`` count. Ascending in bytes.
    """
    reader = csv.DictReader(_text(path, "rivals").splitlines())
    columns = [name for name in reader.fieldnames or () if name is not None]
    name = next((column for column in NAMES if column in columns), None)
    missing = [column for column in ("bytes", "mean_kld") if column not in columns]
    if name is None or missing:
        raise CollabError(f"{path} has no column {', '.join(missing) or 'rival'}; it needs rival, bytes and mean_kld")
    rows = [(number, row) for number, row in enumerate(reader, 2) if row.get("model", model) == model]
    if not rows:
        raise CollabError(f"{path} has no row of {model!r}: its column model names others")
    return tuple(sorted((_rival(path, at, row, name) for at, row in rows), key=lambda rival: rival.bytes))


def _rival(path: Path, line: int, row: Mapping[str, Any], name: str) -> Rival:
    try:
        size, kld = int(row["bytes"].replace(",", "")), float(row["mean_kld"])
    except (ValueError, AttributeError, TypeError):
        raise CollabError(
            f"{path}:{line}: bytes {row['bytes']!r} or mean_kld {row['mean_kld']!r} is no number"
        ) from None
    if size <= 0 or not math.isfinite(kld):
        raise CollabError(f"{path}:{line}: bytes {size} or mean_kld {kld} is impossible")
    return Rival(str(row[name]), size, kld)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CollabError(f"cannot read the {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CollabError(f"the {what} {path} is not UTF-8 text") from None


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation of (predicted, measured); None below three pairs or when all are alike."""
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
