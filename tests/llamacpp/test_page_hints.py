"""Hints for the page cache: asked for what the router chose, what leaves, and nothing else changes."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp import pages_policy
from collab_llamacpp.native import page_hints
from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.page_hints import AVAILABLE, PageHints
from small_models.memory_limit import memory_limit
from small_models.tiny_moe import tokens_of

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.tensor_names import Role
from collab_plugin.placement.builtin_policies import LFU_STEADY
from collab_plugin.placement.placement import (
    ExpertPlacement,
    PlacedArtifact,
    Placement,
    PolicyUse,
    TensorPlacement,
)
from collab_plugin.placement.usable_memory import usable_memory

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="not run: this system has no madvise")


def test_chosen_experts_are_asked_for_and_the_logits_stay(qwen3moe: Path) -> None:
    tokens = tokens_of("hints change nothing")
    hints = PageHints()
    found = []
    for callback in (None, hints.callback):
        with LoadedModel(qwen3moe, ctx=64, threads=1, callback=callback) as session:
            rows = []
            for at, token in enumerate(tokens):
                session.decode([token], 0, at)
                rows.append(session.logits(1).copy())
        found.append(np.concatenate(rows))
    hints.finish()
    np.testing.assert_array_equal(*found)
    checkpoint = open_gguf(qwen3moe)
    topology = topology_of(checkpoint)
    a_token = sum(i.nbytes // i.shape[0] for i in checkpoint.tensors.values() if i.role == Role.EXPERT)
    assert hints.asked == a_token * topology.experts_used * (len(tokens) - 1), "all but the first token's"


def test_usable_memory_is_some() -> None:
    assert 0 < usable_memory() < 2**50


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="not run: this system does not tell how it maps")
def test_only_what_is_being_computed_is_mapped_as_random(qwen3moe: Path) -> None:
    """Linux does not see that pages of a random mapping are used, and would take the hottest ones too."""
    hints = PageHints()
    tokens = tokens_of("a hint is taken back")
    with LoadedModel(qwen3moe, ctx=64, threads=1, callback=hints.callback) as session:
        for at, token in enumerate(tokens):
            session.decode([token], 0, at)
        session.logits(1)
        random = _mapped_as_random(qwen3moe)
    hints.finish()
    checkpoint = open_gguf(qwen3moe)
    sizes = [i.nbytes for i in checkpoint.tensors.values() if i.role == Role.EXPERT and i.layer == 0]
    assert 0 < random < sum(sizes), "less than the experts of one layer"


def _mapped_as_random(file: Path) -> int:
    """Bytes of ``file`` with the flag rr (/proc/PID/smaps)."""
    found, size, own = 0, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            size, own = end - start, line.endswith(str(file))
        elif first == "VmFlags:" and own and "rr" in line.split():
            found += size
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="not run: only Linux takes pages out when it is told")
def test_experts_that_a_policy_gives_up_leave_memory_and_the_logits_stay(
    qwen3moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with qwen3moe.open("r+b") as file:
        os.fsync(file.fileno())  # pages that are not on the disk yet stay
    tokens = tokens_of("those that are worth least leave before others come")
    found, held = [], []
    for room in (2**40, 2**16):
        monkeypatch.setattr(page_hints, "room_for_experts", lambda _, room=room: room)
        hints = PageHints(LFU_STEADY)
        with LoadedModel(qwen3moe, ctx=64, threads=1, callback=hints.callback) as session:
            rows = []
            for at, token in enumerate(tokens):
                session.decode([token], 0, at)
                rows.append(session.logits(1).copy())
            found.append(np.concatenate(rows))
            held.append(_pages_in_memory(qwen3moe))
        hints.finish()
        assert (hints.left > 0) == (room < 2**20)
    np.testing.assert_array_equal(*found)
    assert held[1] < held[0]


def test_the_placement_s_policy_decides_where_it_moves_experts(qwen3moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_gguf(qwen3moe)
    assert pages_policy.pages_policy(checkpoint, None) is None, "memory holds it"
    monkeypatch.setattr(pages_policy, "usable_memory", lambda: 1000)
    assert pages_policy.pages_policy(checkpoint, None) == pages_policy.DEFAULT
    for name, dynamic in (("lfu-decay", True), ("most-selected", False), ("of no plugin here", True)):
        use = PolicyUse(name, {"decay": 0.5}, dynamic)
        given = Placement(
            PlacedArtifact("a", 0), (), TensorPlacement({}, True, {}, None), ExpertPlacement(use, {}, {}, None),
            None, 512, (),
        )  # fmt: skip
        expected = use if name == "lfu-decay" else pages_policy.DEFAULT
        assert pages_policy.pages_policy(checkpoint, given) == expected
    assert pages_policy.policy_of(PolicyUse("lfu-decay", {"decay": 0.5}, True)).values == {"decay": 0.5}
    assert pages_policy.policy_of(PolicyUse("lfu-steady", {"rate": 0.5}, True)).values == {
        "trust": 0.9,
        "rate": 0.5,
    }


def test_memory_that_a_control_group_holds_is_not_usable() -> None:
    code = (
        "from collab_plugin.placement.usable_memory import usable_memory; import numpy as np\n"
        "before = usable_memory(); taken = np.ones(2**24, np.float32); print(before, before - usable_memory())"
    )
    with memory_limit(2**29) as join:
        if join is None:
            pytest.skip("not run: this system lets us make no control group with a memory limit")
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, preexec_fn=join, capture_output=True, text=True, check=True)
    before, taken = map(int, done.stdout.split())
    assert 2**28 < before < 2**29
    assert 0.9 * 2**26 < taken < 1.2 * 2**26


def _pages_in_memory(file: Path) -> int:
    """Pages of ``file`` that the page cache holds (mincore)."""
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        called = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped)), ctypes.byref(flags)
        )
        del anchor
        assert called == 0
        return sum(flag & 1 for flag in flags)
