"""Which stored tensors become which tensors of a GGUF, said as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.rearranged_sources import Order, Rearranged
from collab_plugin.checkpoint.storage.stored_matrix import Matrix
from collab_plugin.checkpoint.tensor_sources import FusedExperts, KeyValueHeads, Single, Stack, TensorSource
from collab_plugin.errors import CollabError

Sizes = Mapping[str, int]
"""Named sizes of a model, such as "hidden" or "heads", which shapes are told in."""
Take = Callable[[list[Matrix], bool, Sizes], TensorSource]
"""Stored matrices (one, or one for each expert), whether a GGUF holds them as F32, and sizes, to the GGUF tensor."""


def whole(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """As it is stored."""
    return Single(matrices[0], wide)


def stacked(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """A tensor of each expert, one behind the other."""
    return Stack(matrices)


def vector(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """A matrix of one row as a vector."""
    return Rearranged(matrices[0], True, shape=matrices[0].shape[1:])


def squeezed(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """Without axes of length one, as the kernel of a convolution by channel [channels, 1, kernel]."""
    return Rearranged(matrices[0], wide, shape=tuple(n for n in matrices[0].shape if n != 1))


def computed(function: Callable[[F32], F32]) -> Take:
    """Every value through ``function``, as float32."""
    return lambda matrices, wide, sizes: Rearranged(matrices[0], True, function=function)


def folded(rows: str, function: Callable[[F32], F32] | None = None) -> Take:
    """A vector as a matrix of so many rows, values through ``function`` where there is one."""

    def take(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
        shape = (sizes[rows], matrices[0].shape[0] // max(sizes[rows], 1))
        if shape[0] * shape[1] != matrices[0].shape[0]:
            raise CollabError(f"{matrices[0].name} has {matrices[0].shape[0]} values, which are no {shape[0]} rows")
        return Rearranged(matrices[0], True, function=function, shape=shape)

    return take


plus_one = computed(lambda values: values + 1)
"""A norm that is stored less one."""


def ordered(
    rows: Callable[[Sizes], Order] | None = None,
    columns: Callable[[Sizes], Order] | None = None,
    function: Callable[[F32], F32] | None = None,
) -> Take:
    """Rows or columns in another order, axes of length one removed, values through ``function`` where there is one."""

    def take(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
        order = rows(sizes) if rows else None
        stored = matrices[0].shape
        turned = columns(sizes) if columns else None
        inner = tuple(n for n in stored[1:] if n != 1) if turned is None else (len(turned),)
        shape = (stored[0] if order is None else len(order), *inner)
        return Rearranged(matrices[0], wide, rows=order, columns=turned, function=function, shape=shape)

    return take


def half(number: int) -> Take:
    """The first (0) or the second (1) half of a matrix's rows."""

    def take(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
        count = matrices[0].shape[0] // 2
        return Rearranged(matrices[0], wide, rows=np.arange(number * count, (number + 1) * count))

    return take


def rotary_pairs(heads: str) -> Take:
    """Rows of each head reordered: what rotates halves of a head becomes what rotates neighbouring pairs.

    Row p of the first half and row p of the second become rows 2p and 2p + 1 (conversion/llama.py, permute).
    """

    def take(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
        rows, count = matrices[0].shape[0], sizes[heads]
        if count < 1 or rows % (2 * count):
            name = matrices[0].name
            raise CollabError(f"{name} has {rows} rows, which {count} heads do not divide into pairs")
        order = np.arange(rows).reshape(count, 2, -1).swapaxes(1, 2).reshape(-1)
        return Rearranged(matrices[0], wide, rows=order)

    return take


def key_heads(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """The key part of MLA's kv_b_proj, by head, transposed."""
    return KeyValueHeads(matrices[0], "k", sizes["heads"], sizes["nope"], sizes["value"])


def value_heads(matrices: list[Matrix], wide: bool, sizes: Sizes) -> TensorSource:
    """The value part of MLA's kv_b_proj, by head."""
    return KeyValueHeads(matrices[0], "v", sizes["heads"], sizes["nope"], sizes["value"])


def fused_experts(part: int = 0, parts: int = 1, *, interleaved: bool = False, transposed: bool = False) -> Take:
    """All experts stored in one tensor [experts, out, in], or [experts, in, out] when ``transposed``; of biases
    [experts, out].

    Of ``parts`` projections that lie behind each other in a matrix's rows (or, ``interleaved``, in turn row by row)
    the GGUF tensor is number ``part``.
    """
    return lambda matrices, wide, sizes: FusedExperts(matrices[0], part, parts, interleaved, transposed, wide)


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a GGUF and where a checkpoint stores it.

    ``stored``: name in the checkpoint, ``gguf``: name in the GGUF; both with {layer} within blocks, and ``stored``
    with {expert} where each expert has a tensor of its own. ``shape``: as stored, dimensions apart by spaces, each a
    product of sizes: "heads*head hidden". ``layers``: the blocks that have it: "all", those with "experts", "dense"
    ones, a set that the family names (`Conversion.layer_sets`), or "outside" of blocks. Several rules may give one
    tensor of a GGUF: the first that the checkpoint has the tensors of is taken, and one of them must be there unless
    ``optional``.
    """

    stored: str
    gguf: str
    shape: str
    take: Take = whole
    layers: str = "all"
    optional: bool = False

    @property
    def by_expert(self) -> bool:
        return "{expert}" in self.stored

    def names(self, layer: int, experts: int) -> Iterator[str]:
        """Stored names, one or one for each expert."""
        if not self.by_expert:
            yield self.stored.replace("{layer}", str(layer))
            return
        name = self.stored.replace("{layer}", str(layer))
        for expert in range(experts):
            yield name.replace("{expert}", str(expert))

    def wanted(self, sizes: Sizes) -> tuple[int, ...]:
        """The stored shape in numbers."""
        return tuple(prod(_size(part, sizes) for part in dimension.split("*")) for dimension in self.shape.split())


def _size(part: str, sizes: Sizes) -> int:
    return int(part) if part.isdecimal() else sizes[part]


def block_tensor(
    stored: str,
    gguf: str,
    shape: str,
    take: Take | None = None,
    layers: str = "all",
    optional: bool = False,
    prefix: str = "model.layers.{layer}.",
) -> TensorRule:
    """A rule for a tensor of each block: names without the block's prefix."""
    default = stacked if "{expert}" in stored else whole
    return TensorRule(f"{prefix}{stored}", f"blk.{{layer}}.{gguf}", shape, take or default, layers, optional)


OUTSIDE_BLOCKS = (
    TensorRule("model.embed_tokens.weight", "token_embd.weight", "vocabulary hidden", layers="outside"),
    TensorRule("model.norm.weight", "output_norm.weight", "hidden", layers="outside"),
    TensorRule("lm_head.weight", "output.weight", "vocabulary hidden", layers="outside"),
)
"""Embedding, last norm and head, as most decoders of transformers name them."""

BLOCK_NORMS = (
    block_tensor("input_layernorm.weight", "attn_norm.weight", "hidden"),
    block_tensor("post_attention_layernorm.weight", "ffn_norm.weight", "hidden"),
)

GROUPED_QUERY = (
    block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*head hidden"),
    block_tensor("self_attn.k_proj.weight", "attn_k.weight", "kv_heads*head hidden"),
    block_tensor("self_attn.v_proj.weight", "attn_v.weight", "kv_heads*head hidden"),
    block_tensor("self_attn.o_proj.weight", "attn_output.weight", "hidden heads*head"),
)
"""Attention with queries that share keys and values; "head" is the length of one head."""

PAIRED_QUERY = (
    block_tensor("self_attn.q_proj.weight", "attn_q.weight", "heads*head hidden", rotary_pairs("heads")),
    block_tensor("self_attn.k_proj.weight", "attn_k.weight", "kv_heads*head hidden", rotary_pairs("kv_heads")),
    *GROUPED_QUERY[2:],
)
"""The same where llama.cpp rotates pairs and the checkpoint halves."""

BIASES = (
    block_tensor("self_attn.q_proj.bias", "attn_q.bias", "heads*head"),
    block_tensor("self_attn.k_proj.bias", "attn_k.bias", "kv_heads*head"),
    block_tensor("self_attn.v_proj.bias", "attn_v.bias", "kv_heads*head"),
)
"""Of queries, keys and values."""


QUERY_KEY_NORMS = (
    block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", "head"),
    block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", "head"),
)
"""Of each head."""

WIDE_QUERY_KEY_NORMS = (
    block_tensor("self_attn.q_norm.weight", "attn_q_norm.weight", "heads*head"),
    block_tensor("self_attn.k_norm.weight", "attn_k_norm.weight", "kv_heads*head"),
)
"""Of all heads together."""

ROUTER_BIAS = block_tensor("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", "experts", layers="experts")
"""Sways the choice of experts, not their weights."""


def router_weights(name: str = "mlp.gate.weight") -> TensorRule:
    return block_tensor(name, "ffn_gate_inp.weight", "experts hidden", layers="experts")


def gated_experts(
    path: str = "mlp.experts",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    width: str = "expert_width",
) -> tuple[TensorRule, ...]:
    """Gate, up and down matrices: a tensor of each expert, or fused as transformers 5 holds them in memory."""
    gate, up, down = (f"ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    stored = [f"{path}.{{expert}}.{name}.weight" for name in names]
    both, rows = f"{path}.gate_up_proj", f"experts 2*{width} hidden"
    return (
        block_tensor(stored[0], gate, f"{width} hidden", layers="experts"),
        block_tensor(both, gate, rows, fused_experts(0, 2), layers="experts"),
        block_tensor(stored[1], up, f"{width} hidden", layers="experts"),
        block_tensor(both, up, rows, fused_experts(1, 2), layers="experts"),
        block_tensor(stored[2], down, f"hidden {width}", layers="experts"),
        block_tensor(f"{path}.down_proj", down, f"experts hidden {width}", fused_experts(), layers="experts"),
    )


def dense_feed_forward(
    path: str = "mlp", suffix: str = "", width: str = "width", layers: str = "dense"
) -> tuple[TensorRule, ...]:
    """Gate, up and down of a block without experts; ``suffix`` "_shexp" for shared experts."""
    return (
        block_tensor(f"{path}.gate_proj.weight", f"ffn_gate{suffix}.weight", f"{width} hidden", layers=layers),
        block_tensor(f"{path}.up_proj.weight", f"ffn_up{suffix}.weight", f"{width} hidden", layers=layers),
        block_tensor(f"{path}.down_proj.weight", f"ffn_down{suffix}.weight", f"hidden {width}", layers=layers),
    )


BIASED_SHARED_EXPERTS = (
    router_weights(),
    ROUTER_BIAS,
    *gated_experts(),
    *dense_feed_forward("mlp.shared_experts", "_shexp", "shared*expert_width", "experts"),
)
"""Experts chosen with a bias, and those that every token uses: as DeepSeek-V3 names them."""
