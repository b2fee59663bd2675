"""Plans as JSON files: read strictly, write atomically, fingerprint, schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.ggml_types import stored_type
from collab_plugin.formats.json_document import from_plain, schema_of, to_plain
from collab_plugin.plans.plan import PLAN_VERSION, Plan, Pruning, requirements_of

FORMAT = "collab-plugin plan"
MAX_BYTES = 256 * 2**20


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan file, published as docs/formats/plan.schema.json."""
    schema = schema_of(Plan)
    schema["properties"] = {
        "format": {"const": FORMAT},
        "version": {"const": PLAN_VERSION},
        "fingerprint": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        **schema["properties"],
    }
    schema["required"] = list(schema["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **schema}


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
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_plan(path: Path, plan: Plan) -> None:
    """Write the plan as JSON, whole or not at all."""
    head = {"format": FORMAT, "version": PLAN_VERSION, "fingerprint": plan_fingerprint(plan)}
    write_bytes(path, (json.dumps({**head, **to_plain(plan)}, indent=1, ensure_ascii=False) + "\n").encode())


def read_plan(path: Path) -> Plan:
    """Read and check a plan; CollabError naming the file and the JSON path of what is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CollabError(f"{path} is larger than any plan")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CollabError(f"cannot read the plan {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CollabError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CollabError(f"{path} is not a plan of collab-plugin")
    if (version := data.pop("version", None)) != PLAN_VERSION or version is True:
        raise CollabError(f"{path} has plan version {version}; this collab-plugin reads {PLAN_VERSION}")
    recorded = data.pop("fingerprint", None)
    try:
        plan = from_plain(Plan, data)
        _check(plan)
    except CollabError as error:
        raise CollabError(f"{path}: {error}") from None
    if recorded != plan_fingerprint(plan):
        raise CollabError(f"{path} was changed after it was made (its fingerprint differs); make it again")
    return plan


def _check(plan: Plan) -> None:
    """What the types cannot say."""
    for name, tensor in plan.tensors.items():
        if len(name.encode()) > 63:
            raise CollabError(f"$.tensors has a name longer than 63 bytes: {name[:70]!r}")
        stored_type(tensor.type)
    if plan.calibration is not None and Path(plan.calibration.file).name != plan.calibration.file:
        raise CollabError(f"$.calibration.file is {plan.calibration.file!r}, not a plain file name")
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
