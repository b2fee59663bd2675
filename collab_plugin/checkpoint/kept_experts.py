"""Which experts of its source a pruned GGUF holds, as its own metadata says."""

from __future__ import annotations

from collections.abc import Mapping

from collab_plugin.formats.gguf_values import MetaValue

KEEP = "collab.kept_experts"
"""With the layer after a dot: the source's ids of the experts kept, in the file's order."""
SOURCE_MODEL_ID = "collab.source.model_id"
SOURCE_EXPERTS = "collab.source.expert_count"
"""Experts a layer of the source, where that was a pruned file itself: ids are then of that file's experts."""


def kept_experts(metadata: Mapping[str, MetaValue]) -> dict[int, tuple[int, ...]]:
    """The source's expert ids by layer, in the file's order; empty for a file that nothing was pruned from."""
    prefix = f"{KEEP}."
    found = {
        key.removeprefix(prefix): meta.value
        for key, meta in metadata.items()
        if key.startswith(prefix) and isinstance(meta.value, list)
    }
    return {int(layer): tuple(ids) for layer, ids in sorted(found.items()) if layer.isdecimal()}
