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
