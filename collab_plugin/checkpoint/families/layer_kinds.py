"""Which layers attend within a window, and how many of the first have no experts."""

from __future__ import annotations

from collections.abc import Callable

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.gguf_keys import flags
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

FULL, WINDOW = "full_attention", "sliding_attention"


def windows(c: Config, every: int = 4) -> list[bool]:
    """For each layer whether it has a window. ``every``: that many layers to one without, where layer_types does not
    say so."""
    kinds = c.kinds("layer_types", (FULL, WINDOW))
    if kinds is None:
        return [(layer + 1) % max(every, 1) != 0 for layer in range(c.integer("num_hidden_layers"))]
    return [kind == WINDOW for kind in kinds]


def window_keys(c: Config, every: int = 4) -> dict[str, MetaValue]:
    """The window and which layers have it."""
    return {"attention.sliding_window_pattern": flags(windows(c, every))}


def leading_dense(c: Config, told: str = "first_k_dense_replace") -> int:
    """How many of the first layers have no experts, by mlp_layer_types or the key ``told``; CollabError when others
    have none either."""
    kinds = c.kinds("mlp_layer_types", ("dense", "sparse"))
    if kinds is None:
        return c.integer(told)
    count = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    if "dense" in kinds[count:]:
        raise CollabError(f"{c.where} has mlp_layer_types with a layer without experts behind one with them")
    return count


def behind_dense(told: str = "first_k_dense_replace") -> Callable[[Config, int], bool]:
    """`Conversion.dense` of models whose first layers, by `leading_dense`, have no experts."""
    return lambda c, layer: layer < leading_dense(c, told)
