"""Experts of a layer, computed by the processor from their blocks in host memory, with ggml's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from collab_plugin.placement.policy import Mask
from collab_vllm.experts.grouped import I64, add_experts, sorted_places
from collab_vllm.experts.host.expert_graph import ExpertGraphs, ExpertShape
from collab_vllm.experts.host.ggml_cpu import GgmlCpu
from collab_vllm.experts.host.tile_cost import TILE, TileCost, tile_cost
from collab_vllm.experts.tiering.miss_cost import MissCost, measured_cost, shortest

_WORKSPACE = 64 * 2**20
"""Bytes of activations that are computed at a time. More than this, and pairs of a token and an expert are sorted by
expert and cut, so that each matrix is read about once."""
_FEW = 4
"""Tokens of an expert up to which it is not worth thinking of dequantizing it."""
_ROWS = (16, 64)
_Key = tuple[int, int, tuple[str, str, str], torch.dtype, int]
_COSTS: dict[_Key, MissCost] = {}
_TILES: dict[_Key, TileCost] = {}


@cache
def _graphs(ggml: GgmlCpu) -> ExpertGraphs:
    return ExpertGraphs(ggml)


class HostKernel:
    """SwiGLU experts over ``matrices``: gate, up and down, uint8[experts, rows, bytes a row], contiguous, on the
    processor.

    Weights are taken as they are. Activations are rounded as ggml does it: to BF16 before BF16 weights, to F16 before
    F16, not at all before F32, and before blocks to 8 bits with one scale for 32 values, or for 256 before K and IQ
    types. So a value is off by at most 1/254 of the largest one that shares its scale. An expert that many tokens
    chose is dequantized and multiplied in PyTorch, where that is faster; its activations are not rounded.
    """

    def __init__(self, ggml: GgmlCpu, layout: ExpertShape, matrices: Sequence[Tensor]) -> None:
        self._ggml, self._graphs = ggml, _graphs(ggml)
        self._layout, self._matrices = layout, tuple(matrices)
        # x, out and three matrices in between, in float32
        self._pairs = max(64, _WORKSPACE // (4 * (2 * layout.wide + 3 * layout.narrow)))

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, f32[tokens, wide]: x [tokens, wide], ``weights`` and ``ids`` [tokens, k].

        Every id is one of this kernel's experts.
        """
        tokens, used = ids.shape
        if tokens > 1:
            chosen = ids.reshape(-1).numpy().astype(np.int64)
            rows = np.bincount(chosen, minlength=self._layout.experts)
            if len(chosen) > self._pairs or rows.max() >= TILE or self._tiles(x.dtype).gain(rows) > 0:
                out = torch.zeros(x.shape, dtype=torch.float32)
                return self.add(out, x, weights, chosen, sorted_places(chosen, chosen >= 0))
        graph = self._graphs.of(self._layout, used, tokens)
        graph.x.copy_(x)
        graph.ids.copy_(ids)
        out = graph.compute(self._matrices)
        return torch.bmm(weights.to(torch.float32).unsqueeze(1), out).squeeze(1)

    def add(self, out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64) -> Tensor:
        """As `grouped.add_experts`: add to ``out`` f32[tokens, wide] what the pairs at ``places`` contribute."""
        rows = np.bincount(chosen[places], minlength=self._layout.experts)
        if rows.max(initial=0) > _FEW:
            many = (rows > _FEW) & self._cost(x.dtype).copies(rows)
            if many.any():
                apart = many[chosen[places]]
                add_experts(out, x, weights, chosen, places[apart], lambda e: self._dequantized(e, x.dtype))
                places, rows = places[~apart], np.where(many, 0, rows)
        # A few tokens of an expert take longer than a tile of them: the first is computed again to fill it up.
        short = np.flatnonzero(self._tiles(x.dtype).filled_up(rows)) if rows.max(initial=0) > 1 else ()
        if not len(short):
            return self._add_by_ggml(out, x, weights, chosen, places)
        first = places[np.searchsorted(chosen[places], short)]
        again = np.concatenate([places, np.repeat(first, TILE - rows[short])])
        order = np.argsort(chosen[again], kind="stable")
        return self._add_by_ggml(out, x, weights, chosen, again[order], order < len(places))

    def _add_by_ggml(
        self, out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64, counts: Mask | None = None
    ) -> Tensor:
        """``counts``: which of ``places`` do, the others are computed for nothing; None: all."""
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
            if counts is not None:
                kept = torch.from_numpy(counts[start : start + self._pairs])
                result, part, tokens = result[kept], part[kept], tokens[kept]
            out.index_add_(0, tokens, result * share[part].unsqueeze(1))
        return out

    def _tiles(self, dtype: torch.dtype) -> TileCost:
        """Measured once for layers of one shape."""
        key = self._key(dtype)
        if key not in _TILES:
            one, seven, eight = (self._seconds(rows, dtype) for rows in (1, TILE - 1, TILE))
            _TILES[key] = tile_cost(one, seven, eight)
        return _TILES[key]

    def _dequantized(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, down = (
            self._ggml.dequantize(matrix[expert], kind).to(dtype)
            for matrix, kind in zip(self._matrices, self._layout.types, strict=True)
        )
        return gate, up, down

    def _key(self, dtype: torch.dtype) -> _Key:
        """Of what is measured. Not of the number of experts: the tiers of a layer must compute alike."""
        shape = self._layout
        return shape.wide, shape.narrow, shape.types, dtype, torch.get_num_threads()

    def _seconds(self, rows: int, dtype: torch.dtype) -> float:
        return shortest(lambda: self._some(self._add_by_ggml, rows, dtype))

    def _cost(self, dtype: torch.dtype) -> MissCost:
        """Measured once for layers of one shape."""
        key = self._key(dtype)
        if key not in _COSTS:
            matrices = self._dequantized(0, dtype)

            def by_pytorch(out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64) -> Tensor:
                return add_experts(out, x, weights, chosen, places, lambda _: matrices)

            _COSTS[key] = measured_cost(
                _ROWS,
                lambda: self._dequantized(0, dtype),
                lambda rows: self._some(self._add_by_ggml, rows, dtype),
                lambda rows: self._some(by_pytorch, rows, dtype),
                lambda: None,
            )
        return _COSTS[key]

    def _some(self, add: Callable[[Tensor, Tensor, Tensor, I64, I64], object], rows: int, dtype: torch.dtype) -> None:
        """Compute ``rows`` tokens of expert 0, for its time."""
        x = torch.zeros(rows, self._layout.wide, dtype=dtype)
        out = torch.zeros(rows, self._layout.wide)
        add(out, x, torch.ones(rows, 1), np.zeros(rows, np.int64), np.arange(rows))
