"""Plans as JSON files: read strictly, write atomically, fingerprint, schema."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import stored_type
from collab_plugin.formats.json_document import JsonFormat, to_plain
from collab_plugin.plans.plan import PLAN_VERSION, Plan, Pruning, requirements_of


def plan_fingerprint(plan: Plan) -> str:
    """Return "sha256:..." over what decides the artifact's bytes: not over notes, versions or paths."""
    parts = {
        "version": PLAN_VERSION,
        "source": [plan.source.fingerprint, plan.source.model_id, plan.source.name],
        "calibration": [plan.calibration.sha256, plan.calibration.text_sketch, plan.calibration.borrow]
        if plan.calibration
        else None,
        "kept": to_plain(plan.pruning.kept),
        "experts_used": [plan.activation.original, plan.activation.used],
        "metadata": to_plain(plan.metadata),
        "types": {name: tensor.type for name, tensor in plan.tensors.items()},
    }
    if plan.repair:  # else as plans that know of no repair
        parts["repair"] = plan.repair.sha256
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _check(plan: Plan) -> None:
    """What the types cannot say."""
    for name, tensor in plan.tensors.items():
        if len(name.encode()) > 63:
            raise CollabError(f"$.tensors has a name longer than 63 bytes: {name[:70]!r}")
        stored_type(tensor.type)
    for name, document in (
        ("calibration", plan.calibration),
        ("sensitivity", plan.sensitivity),
        ("repair", plan.repair),
    ):
        if document is not None and Path(document.file).name != document.file:
            raise CollabError(f"$.{name}.file is {document.file!r}, not a plain file name")
    _check_kept(plan.pruning, by_layer="expert-count-by-layer" in plan.requires)
    if (needed := requirements_of(plan.pruning)) != plan.requires:
        raise CollabError(f"$.requires is {list(plan.requires)}, what the plan keeps requires {list(needed)}")
    fewest = min((plan.pruning.expert_count, *plan.pruning.counts))
    if not 1 <= plan.activation.used <= fewest:
        raise CollabError(f"$.activation.used is {plan.activation.used} of {fewest} experts")


def _check_kept(pruning: Pruning, *, by_layer: bool) -> None:
    """``by_layer``: ``expert_count`` is the mean of all layers, not the number in each."""
    if pruning.expert_count < 1:
        raise CollabError(f"$.pruning.expert_count is {pruning.expert_count}")
    for layer, kept in pruning.kept.items():
        if len(kept) != pruning.expert_count and not by_layer:
            raise CollabError(f"$.pruning.kept.{layer} lists {len(kept)} experts, not {pruning.expert_count}")
        if not kept or len(set(kept)) != len(kept) or min(kept) < 0 or max(kept) > 65535:
            raise CollabError(f"$.pruning.kept.{layer} is empty, repeats an expert or names an impossible one")
    if sum(pruning.counts) != pruning.expert_count * len(pruning.kept):
        raise CollabError(f"$.pruning.expert_count is {pruning.expert_count}, which is not the mean of $.pruning.kept")


PLAN_FILE = JsonFormat("collab-plugin plan", PLAN_VERSION, Plan, 256 * 2**20, _check, plan_fingerprint)


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan file, published as docs/formats/plan.schema.json."""
    return PLAN_FILE.schema()


def write_plan(path: str | os.PathLike[str], plan: Plan) -> None:
    """Write the plan as JSON, whole or not at all."""
    PLAN_FILE.write(Path(path), plan)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read and check a plan; CollabError naming the file and the JSON path of what is wrong."""
    return PLAN_FILE.read(Path(path))
