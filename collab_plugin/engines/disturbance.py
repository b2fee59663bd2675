"""What may be disturbed in a running model to see how much its output moves, without a copy of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class ErrorShape:
    """What quantizing one weight tensor to a relative error of ε adds to its products, for ε = 1.

    Quantization's error E of a row is nearly independent of column to column, so it adds Σ_j E_ij x_j, whose mean
    square over tokens is ε Σ_j w_j W_ij² (w: mean squared activations, as in the importance matrix). E is a matrix: the
    same inputs get the same error, and attention does not average it away over tokens. ``energy`` f32[slices, rows] is
    Σ_j w_j W_ij², ``inputs`` f32[slices] is Σ_j w_j; either may have one entry for all slices or all rows. Slices:
    experts, or heads of MLA's tensors; one for a matrix. ``plain`` is like ``energy``, with w = 1.
    """

    energy: F32
    inputs: F32
    plain: F32


@dataclass(frozen=True)
class Disturbance:
    """``errors``: relative squared error (plan's definition) by GGUF tensor name, put in as a random error of an
    `ErrorShape`. ``rounded``: by tensor name, how many of its inputs share a scale where they are rounded to 8 bits, as
    processors do beside quantized tensors (quantize/rounded_inputs.py). ``kept``: the experts of a layer that may still
    be chosen, as if the others were pruned; layers that it does not name keep all. ``experts_used``: only so many of a
    token's experts count, None for the model's own number."""

    errors: Mapping[str, float] = field(default_factory=dict)
    rounded: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    experts_used: int | None = None

    @property
    def tensors(self) -> frozenset[str]:
        """Names of those whose products are disturbed."""
        return frozenset(self.errors) | frozenset(self.rounded)


@dataclass(frozen=True)
class Effect:
    """KL divergence (nats) of the undisturbed model from the disturbed one. ``windows``: of each window, over its
    scored tokens, their sum, the sum of their squares, and their number."""

    windows: tuple[tuple[float, float, int], ...]

    @property
    def mean_kld(self) -> float:
        """Mean over the scored tokens."""
        return self._sum(0) / self._sum(2)

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""
        variance = max(self._sum(1) / self._sum(2) - self.mean_kld**2, 0.0)
        return math.sqrt(variance / self._sum(2))

    def _sum(self, at: int) -> float:
        total = 0.0
        for window in self.windows:  # one by one: sum() rounds otherwise from Python 3.12 on
            total += window[at]
        return total


@dataclass(frozen=True)
class Effects:
    """``each``: one of each disturbance, in order, on the same ``windows`` windows with ``scored`` scored tokens in
    all. ``tokens_run``: tokens that went through the model for it, those of the undisturbed one included."""

    each: tuple[Effect, ...]
    windows: int
    scored: int
    tokens_run: int

    @classmethod
    def joined(cls, parts: Sequence[Effects]) -> Effects:
        """The effects of all windows, of which part i of n measured number i, i + n and so on."""
        return cls(
            tuple(
                Effect(_in_turn([effect.windows for effect in effects]))
                for effects in zip(*(part.each for part in parts), strict=True)
            ),
            sum(part.windows for part in parts),
            sum(part.scored for part in parts),
            sum(part.tokens_run for part in parts),
        )


def _in_turn(parts: Sequence[tuple[tuple[float, float, int], ...]]) -> tuple[tuple[float, float, int], ...]:
    longest = max(map(len, parts), default=0)
    return tuple(part[at] for at in range(longest) for part in parts if at < len(part))
