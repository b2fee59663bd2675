"""What repair leaves is told by tokens that it did not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_fit_down import CTX, block_of, sample_of

from collab_plugin.repair.feedback import Moments, fed_back
from collab_plugin.repair.held_out import LEAST_TOKENS, HeldOut

F32 = NDArray[np.float32]
EXPERT = 1


def grid(name: str, values: F32) -> F32:
    """A kernel with sixteen levels a row."""
    step = np.maximum(np.abs(values).max(1, keepdims=True), 1e-6) / 8
    return np.asarray(np.rint(values / step) * step, np.float32)


def alike(name: str) -> None:
    """No column is more important than another."""


def held_out_of(model: Path, tokens: int = 1600) -> HeldOut:
    block = block_of(model)
    sample = sample_of(block, tokens)
    t = block.topology
    choice = block.choose(sample.inputs, tuple(range(t.expert_count)), t.experts_used, grouped=False)
    return HeldOut(block, sample, CTX, choice, EXPERT)


def test_feedback_and_fit_leave_less_of_tokens_that_they_did_not_see(qwen3moe: Path) -> None:
    expert = held_out_of(qwen3moe)
    gate_and_up, down = expert.left_of_gate_and_up(grid, alike), expert.left_of_down(grid, alike)
    assert gate_and_up is not None
    assert down is not None
    assert 0.05 < gate_and_up < 0.9
    assert 0.05 < down < 0.9


def test_share_of_down_is_that_of_the_formula(qwen3moe: Path) -> None:
    expert = held_out_of(qwen3moe)
    down, seen, held = expert.matrices[expert.down], expert.hidden[~expert.held], expert.hidden[expert.held]
    target = fed_back(down, Moments(seen), lambda rows: grid("", rows))
    after = np.square(held @ (down - grid("", target)).T).sum()
    random = np.square(down - grid("", down)).mean() * down.shape[0] * np.square(held).sum()
    assert expert.left_of_down(grid, alike) == pytest.approx(after / random, rel=1e-4)


def test_random_errors_make_what_they_are_said_to(qwen3moe: Path) -> None:
    """Gate and up with noise in place of rounding, many times over; nothing is fed back, so nothing is left out."""
    expert = held_out_of(qwen3moe)
    random, gate_and_up = np.random.default_rng(0), [name for name in expert.matrices if name != expert.down]
    size = 0.02 * np.sqrt(np.square(expert.matrices[gate_and_up[0]]).mean())

    def noisy() -> dict[str, F32]:
        matrices = {name: expert.matrices[name] for name in gate_and_up}
        return {n: v + size * random.standard_normal(v.shape).astype(np.float32) for n, v in matrices.items()}

    made = [np.square(expert._missing(noisy())[0][expert.held]).sum() for _ in range(30)]
    said = [expert._random_in_gate_and_up(noisy(), alike) for _ in range(30)]
    assert np.mean(said) == pytest.approx(np.mean(made), rel=0.1)


def test_tokens_held_out_are_those_of_every_fifth_window(qwen3moe: Path) -> None:
    expert = held_out_of(qwen3moe)
    assert expert.enough
    assert 0.1 < expert.held.mean() < 0.3
    few = held_out_of(qwen3moe, 2 * LEAST_TOKENS)
    assert not few.held.any()
    assert not few.enough


def test_nothing_is_left_to_tell_where_the_kernel_loses_nothing(qwen3moe: Path) -> None:
    expert = held_out_of(qwen3moe)
    assert expert.left_of_down(lambda name, values: values, alike) is None
    assert expert.left_of_gate_and_up(lambda name, values: values, alike) is None
