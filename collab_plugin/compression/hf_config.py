"""config.json of the pruned folder: the plan's counts under the family's own names."""

from __future__ import annotations

from typing import Any

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan

# GGUF key without its prefix -> (key of config.json, what a removed one means). Those of counts are the family's.
_KEYS: dict[str, tuple[str, int | None]] = {
    "expert_group_count": ("n_group", 1),
    "expert_group_used_count": ("topk_group", 1),
}


def pruned_config(
    checkpoint: SafetensorsCheckpoint, plan: Plan, config: dict[str, Any], quantization: dict[str, Any] | None
) -> dict[str, Any]:
    """``config`` with the plan's expert count, experts used and groups, and without MTP layers.

    ``quantization`` is its new quantization_config; None leaves the one it has.
    """
    family = checkpoint.family
    conversion = family.conversion
    assert conversion is not None
    used = next(str(key.config) for key in conversion.keys if key.gguf == "expert_used_count")
    keys = {"expert_count": (family.expert_count, None), "expert_used_count": (used, None), **_KEYS}
    nested = conversion.nested if conversion.nested in config else None
    changed = dict(config)
    parts = [changed]
    if nested:
        changed[nested] = dict(config[nested])
        parts = [changed[nested], changed]
    for key, value in plan.metadata.items():
        name, removed = keys.get(key.removeprefix(f"{checkpoint.architecture}."), ("", None))
        value = removed if value is None else value
        if not name or value is None:
            raise CollabError(f"the plan changes {key}, which config.json has no key for")
        for part in parts:
            names = [other for other in _names(family, name) if other in part]
            part.update(dict.fromkeys(names or ([name] if part is parts[0] else []), value))
    for part in parts:
        if part.get("num_nextn_predict_layers"):
            part["num_nextn_predict_layers"] = 0  # their experts were not calibrated, and one count is for all layers
    if quantization is not None:
        changed["quantization_config"] = quantization
    return changed


def _names(family: Family, key: str) -> tuple[str, ...]:
    """Names under which config.json may have ``key``."""
    assert family.conversion is not None
    others = (other for other, asked in family.conversion.aliases.items() if asked == key)
    return family.expert_counts if key == family.expert_count else (key, *others)
