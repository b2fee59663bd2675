"""Sensitivity documents as JSON files: read strictly, write atomically, schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import JsonFormat
from collab_plugin.stats.sensitivity import SENSITIVITY_VERSION, Sensitivity

MOST_NATS = 1e6
LEAST_ERROR = 1e-12
"""No probe measures more nats or less error: beyond it a weight, their ratio, overflows in sums."""


def _check(sensitivity: Sensitivity) -> None:
    """What the types cannot say."""
    for name in ("ctx", "windows", "level_windows", "tokens", "tokens_run"):
        if getattr(sensitivity, name) < 1:
            raise CollabError(f"$.{name} is {getattr(sensitivity, name)}")
    for index, probe in enumerate(sensitivity.groups):
        _check_figures(f"$.groups[{index}]", probe.kld, probe.stderr)
        if not 0 <= probe.error <= MOST_NATS or 0 < probe.error < LEAST_ERROR:
            raise CollabError(f"$.groups[{index}].error is {probe.error}, which nothing measures")
    for index, pruned in enumerate(sensitivity.prunings):
        _check_figures(f"$.prunings[{index}]", pruned.kld, pruned.stderr)
    for index, whole in enumerate(sensitivity.together):
        _check_figures(f"$.together[{index}]", whole.kld, whole.stderr)
        for field, errors in (("errors", whole.errors), ("inputs", whole.inputs)):
            for name, error in errors.items():
                if not 0 <= error <= MOST_NATS:
                    raise CollabError(f"$.together[{index}].{field}.{name} is {error}, which nothing measures")


def _check_figures(where: str, kld: float, stderr: float) -> None:
    for name, figure in (("kld", kld), ("stderr", stderr)):
        if abs(figure) > MOST_NATS:
            raise CollabError(f"{where}.{name} is {figure}, which nothing measures")


SENSITIVITY_FILE = JsonFormat("collab-plugin sensitivity", SENSITIVITY_VERSION, Sensitivity, 64 * 2**20, _check)


def sensitivity_schema() -> dict[str, Any]:
    """The JSON Schema of a sensitivity file, published as docs/formats/sensitivity.schema.json."""
    return SENSITIVITY_FILE.schema()


def write_sensitivity(path: str | os.PathLike[str], sensitivity: Sensitivity) -> None:
    """Write the document as JSON, whole or not at all."""
    SENSITIVITY_FILE.write(Path(path), sensitivity)


def read_sensitivity(path: str | os.PathLike[str]) -> Sensitivity:
    """Read and check a sensitivity document; CollabError naming the file and the JSON path of what is wrong."""
    return SENSITIVITY_FILE.read(Path(path))
