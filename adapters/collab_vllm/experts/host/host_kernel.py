"""Experts of a layer, computed by the processor from their blocks in host memory, with ggml's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from collab_vllm.experts.grouped import I64, sorted_places
from collab_vllm.experts.host.expert_graph import ExpertGraphs, Layout
from collab_vllm.experts.host.ggml_cpu import GgmlCpu

_WORKSPACE = 64 * 2**20
"""Bytes of activations that are computed at a time. More than this, and pairs of a token and an expert are sorted by
expert and cut, so that each matrix is read about once."""


@cache
def _graphs(ggml: GgmlCpu) -> ExpertGraphs:
    return ExpertGraphs(ggml)


class HostKernel:
    """SwiGLU experts over ``matrices``: gate, up and down, uint8[experts, rows, bytes a row], contiguous, on the
    processor.

    Weights are taken as they are. Activations are rounded as ggml does it: to BF16 before BF16 weights, to F16 before
    F16, not at all before F32, and before blocks to 8 bits with one scale for 32 values, or for 256 before K and IQ
    types. So a value is off by at most 1/254 of the largest one that shares its scale.
    """

    def __init__(self, ggml: GgmlCpu, layout: Layout, matrices: Sequence[Tensor]) -> None:
        self._graphs = _graphs(ggml)
        self._layout, self._matrices = layout, tuple(matrices)
        # x, out and three matrices in between, in float32
        self._pairs = max(64, _WORKSPACE // (4 * (2 * layout.wide + 3 * layout.narrow)))

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, f32[tokens, wide]: x [tokens, wide], ``weights`` and ``ids`` [tokens, k].

        Every id is one of this kernel's experts.
        """
        tokens, used = ids.shape
        if tokens * used > self._pairs:
            chosen = ids.reshape(-1).numpy().astype(np.int64)
            out = torch.zeros(x.shape, dtype=torch.float32)
            return self.add(out, x, weights, chosen, sorted_places(chosen, chosen >= 0))
        graph = self._graphs.of(self._layout, used, tokens)
        graph.x.copy_(x)
        graph.ids.copy_(ids)
        out = graph.compute(self._matrices)
        return torch.bmm(weights.to(torch.float32).unsqueeze(1), out).squeeze(1)

    def add(self, out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64) -> Tensor:
        """As `grouped.add_experts`: add to ``out`` f32[tokens, wide] what the pairs at ``places`` contribute."""
        used = weights.shape[1]
        share = weights.reshape(-1).to(torch.float32)
        for start in range(0, len(places), self._pairs):
            cut = places[start : start + self._pairs]
            part = torch.from_numpy(cut)
            tokens = part // used
            graph = self._graphs.of(self._layout, 1, len(part))
            graph.x.copy_(x[tokens])
            graph.ids.copy_(torch.from_numpy(chosen[cut]).unsqueeze(1))
            result = graph.compute(self._matrices).squeeze(1)
            out.index_add_(0, tokens, result * share[part].unsqueeze(1))
        return out
