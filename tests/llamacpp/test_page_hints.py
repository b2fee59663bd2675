"""Hints for the page cache: asked for what the router chose, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.page_hints import AVAILABLE, PageHints
from small_models.tiny_moe import tokens_of

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.formats.tensor_names import Role
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
