"""The experts of one layer in two memories: each choice is served where its expert lies, or after a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from collab_vllm.experts.grouped import I64, add_experts, sorted_places
from collab_vllm.experts.host.expert_graph import ExpertShape
from collab_vllm.experts.host.ggml_cpu import GgmlCpu
from collab_vllm.experts.host.host_kernel import HostKernel
from collab_vllm.experts.on_device import dequantized
from collab_vllm.experts.tiering.miss_cost import MissCost, measured_cost
from collab_vllm.experts.tiering.resident_set import Move, ResidentSet
from collab_vllm.experts.tiering.tier_counts import TierCounts
from collab_vllm.selection.loader_options import Misses

_ROWS = (1, 16)
_COSTS: dict[tuple[ExpertShape, torch.device, int], MissCost] = {}


class TieredLayer:
    """``whole``: gate, up and down of all experts, uint8[experts, rows, bytes a row] in host memory, where they stay:
    giving up a place on the device loses nothing. ``slots``: those of ``resident`` on ``device``. ``counts``: what was
    served how.

    Host memory is pinned where ``device`` is a GPU. Without ``ggml`` every miss is copied. ``interval``: after so many
    steps experts that have become worth more change places with ones that are worth less, an eighth of the room at
    most. ``real_tokens``: how many of so many rows are tokens of requests; the rest is warm-up or padding, and teaches
    nothing.
    """

    def __init__(
        self,
        layout: ExpertShape,
        whole: Sequence[Tensor],
        resident: ResidentSet,
        device: torch.device,
        ggml: GgmlCpu | None,
        misses: Misses,
        interval: int,
        counts: TierCounts,
        real_tokens: Callable[[int], int],
    ) -> None:
        self.resident, self._device, self.layout = resident, device, layout
        self._misses: Misses = misses if ggml is not None else "copy"
        self._interval, self._steps, self.counts, self._real_tokens = interval, 0, counts, real_tokens
        self._most = max(1, resident.room // 8)
        self.whole = [tensor.pin_memory() if device.type == "cuda" else tensor for tensor in whole]
        self._bytes = sum(tensor[0].nbytes for tensor in whole)
        shapes = ((resident.room, *tensor.shape[1:]) for tensor in whole)
        self.slots = [torch.zeros(shape, dtype=torch.uint8, device=device) for shape in shapes]
        for expert in resident.experts:
            self._copy(expert, int(resident.slot[expert]))
        self._host = None if ggml is None else HostKernel(ggml, layout, self.whole)
        on_processor = ggml is not None and device.type == "cpu"
        few = ExpertShape(resident.room, layout.wide, layout.narrow, layout.types)
        self._fast = HostKernel(ggml, few, self.slots) if ggml is not None and on_processor else None

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, f32[tokens, wide]; ids below 0 are other ranks'."""
        tokens = self._real_tokens(len(x))
        chosen = ids.reshape(-1).cpu().numpy().astype(np.int64)
        valid = chosen >= 0
        rows = np.bincount(chosen[valid], minlength=self.layout.experts)
        missing = np.flatnonzero((rows > 0) & (self.resident.slot < 0))
        copied = missing[self._copies(rows[missing])]
        real = np.flatnonzero(valid[: tokens * ids.shape[1]])
        hit = self.resident.slot[chosen[real]] >= 0
        if tokens:
            self._learn(chosen[real], copied[np.argsort(-rows[copied], kind="stable")])
        slot = np.append(self.resident.slot, -1)[chosen]
        there = slot >= 0
        hosted = valid & ~there & ~np.isin(chosen, copied) if self._host is not None else np.zeros_like(valid)
        if self._fast is not None:  # a processor computes what cannot stay where it lies: the same memory, and rounding
            hosted = valid & ~there
        passing = valid & ~there & ~hosted
        on_host = int(hosted[real].sum())
        passed = len(np.unique(chosen[passing])) if passing.any() else 0
        self.counts.add(hits=int(hit.sum()), host=on_host, copied=len(real) - int(hit.sum()) - on_host)
        self.counts.add(bytes=passed * self._bytes)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        # The device first: it works while the processor does.
        if there.any():
            self._on_device(out, x, weights, slot, sorted_places(slot, there))
        if passing.any():
            add_experts(out, x, weights, chosen, sorted_places(chosen, passing), lambda e: self._copied(e, x.dtype))
        if hosted.any():
            self._on_host(out, x, weights, chosen, sorted_places(chosen, hosted))
        if tokens:
            self._steps += 1
            if self._steps % self._interval == 0:
                self._move(self.resident.rearrange(self._most))
        return out

    def _learn(self, real: I64, wanted: Sequence[int] | I64) -> None:
        """Show the policy a step, and bring in what is to be copied."""
        mask = np.zeros(self.layout.experts, np.bool_)
        mask[real] = True
        self.resident.saw(mask)
        self._move(self.resident.bring_in([int(expert) for expert in wanted], mask))

    def _move(self, moves: Sequence[Move]) -> None:
        for expert, slot in moves:
            self._copy(expert, slot)
        if moves:
            self.counts.add(moves=len(moves), bytes=len(moves) * self._bytes)

    def _copy(self, expert: int, slot: int) -> None:
        """In the device's own order of work, after what still reads the slot."""
        for slots, whole in zip(self.slots, self.whole, strict=True):
            slots[slot].copy_(whole[expert], non_blocking=True)

    def _copies(self, rows: I64) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        if self._misses != "auto":
            return np.full(len(rows), self._misses == "copy")
        return self._cost.copies(rows)

    @cached_property
    def _cost(self) -> MissCost:
        """Measured once for layers of one shape."""
        key = (self.layout, self._device, self.resident.room)
        if key not in _COSTS:
            spare = [torch.empty_like(slots[:1]) for slots in self.slots]

            def inputs(rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, I64, I64]:
                x = torch.zeros(rows, self.layout.wide, device=device)
                share = torch.ones(rows, 1, device=device)
                return x.clone(), x, share, np.zeros(rows, np.int64), np.arange(rows)

            def copy() -> None:
                for to, whole in zip(spare, self.whole, strict=True):
                    to[0].copy_(whole[0], non_blocking=True)

            def finish() -> None:
                if self._device.type != "cpu":
                    torch.accelerator.synchronize(self._device)

            _COSTS[key] = measured_cost(
                _ROWS,
                copy,
                lambda rows: self._on_host(*inputs(rows, self._device)),
                lambda rows: self._on_device(*inputs(rows, self._device)),
                finish,
            )
        return _COSTS[key]

    def _on_device(self, out: Tensor, x: Tensor, weights: Tensor, slot: I64, places: I64) -> None:
        if self._fast is not None:
            self._fast.add(out, x, weights, slot, places)
        else:
            add_experts(out, x, weights, slot, places, lambda number: self._in_slot(number, x.dtype))

    def _on_host(self, out: Tensor, x: Tensor, weights: Tensor, chosen: I64, places: I64) -> None:
        assert self._host is not None
        if self._device.type == "cpu":
            self._host.add(out, x, weights, chosen, places)
            return
        # Rows of tokens that need it, and no others.
        tokens, new = np.unique(places // weights.shape[1], return_inverse=True)
        at = torch.from_numpy(tokens).to(x.device)
        rows, share = x[at].cpu(), weights[at].cpu()
        local = new * weights.shape[1] + places % weights.shape[1]
        experts = np.full(share.numel(), -1, np.int64)
        experts[local] = chosen[places]
        result = self._host.add(torch.zeros(rows.shape, dtype=torch.float32), rows, share, experts, local)
        out.index_add_(0, at, result.to(out.device))

    def _copied(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """For one use."""
        blocks = [whole[expert].to(self._device, non_blocking=True) for whole in self.whole]
        return dequantized(blocks, self.layout.types, dtype)

    def _in_slot(self, slot: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return dequantized([slots[slot] for slots in self.slots], self.layout.types, dtype)
