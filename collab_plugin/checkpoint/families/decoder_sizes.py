"""Names for the sizes of a decoder, which the shapes of its tensors are told in."""

from __future__ import annotations

from collab_plugin.checkpoint.families.config import Config


def head_length(c: Config) -> int:
    """head_dim, or what an older config.json means without it."""
    return even_head(c) if c.get("head_dim") is None else c.integer("head_dim")


def even_head(c: Config) -> int:
    """The heads share the hidden size evenly, whatever head_dim says."""
    return c.integer("hidden_size") // max(c.integer("num_attention_heads"), 1)


def decoder_sizes(c: Config, **own: str | int) -> dict[str, int]:
    """ "vocabulary", "hidden", "heads", "kv_heads" and "head" of config.json, and ``own`` sizes: each by its key there,
    or the number itself."""
    kv_heads = "num_attention_heads" if c.get("num_key_value_heads") is None else "num_key_value_heads"
    usual = {"vocabulary": "vocab_size", "hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": kv_heads}
    told: dict[str, str | int] = {**usual, **({} if "head" in own else {"head": head_length(c)}), **own}
    return {name: size if isinstance(size, int) else c.integer(size) for name, size in told.items()}
