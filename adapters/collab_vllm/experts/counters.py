"""Counts what the routers of a running model select: a custom operation, so that compiled graphs hold it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.utils.torch_utils import direct_register_custom_op


class Counters(nn.Module):
    """``count`` i64[E], ``weight`` f64[E]: selections of each expert and sum of their router weights.

    ``tokens`` i64[1]. E counts the experts of this model, pruned ones not among them.
    """

    count: Tensor
    weight: Tensor
    tokens: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(experts, dtype=torch.int64), persistent=False)
        self.register_buffer("weight", torch.zeros(experts, dtype=torch.float64), persistent=False)
        self.register_buffer("tokens", torch.zeros(1, dtype=torch.int64), persistent=False)

    def add(self, ids: Tensor, weights: Tensor) -> None:
        """Book the selection of a batch: [tokens, k] each."""
        torch.ops.vllm.collab_count(ids, weights, self.count, self.weight, self.tokens)

    def reset(self) -> None:
        for buffer in (self.count, self.weight, self.tokens):
            buffer.zero_()


def real_tokens(most: int) -> int:
    """How many rows of the batch are tokens of requests: none while vLLM warms up, all but padding else."""
    if not is_forward_context_available():
        return most
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, list):  # micro-batches
        metadata = metadata[0] if metadata else None
    if not metadata:
        return 0
    actual = getattr(next(iter(metadata.values())), "num_actual_tokens", most)
    return min(int(actual), most)


def _count(ids: Tensor, weights: Tensor, count: Tensor, weight: Tensor, tokens: Tensor) -> None:
    rows = real_tokens(ids.shape[0])
    if rows == 0:
        return
    chosen = ids[:rows].reshape(-1).to(torch.int64)
    count.index_add_(0, chosen, torch.ones_like(chosen))
    weight.index_add_(0, chosen, weights[:rows].reshape(-1).to(torch.float64))
    tokens += rows


def _count_fake(ids: Tensor, weights: Tensor, count: Tensor, weight: Tensor, tokens: Tensor) -> None:
    return


direct_register_custom_op(
    op_name="collab_count", op_func=_count, mutates_args=["count", "weight", "tokens"], fake_impl=_count_fake
)
