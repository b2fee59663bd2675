"""Calibrate, evaluate and run from Python, with llama.cpp."""

from __future__ import annotations

from pathlib import Path

import collab_plugin as cp
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.engines.packed_logits import kld_bound


def test_calibrated_stats_are_of_the_model(qwen3moe: Path, text: Path) -> None:
    told: list[cp.Progress] = []
    stats = cp.calibrate(qwen3moe, texts=str(text), ctx=64, chunks=2, threads=1, progress=told.append)
    assert stats.model_id == model_id(cp.open_checkpoint(qwen3moe))
    assert (stats.tokens, stats.chunk_size, stats.datasets) == (128, 64, (text.name,))
    assert {event.step for event in told} == {"calibrating"} and told[-1].finished and told[-1].complete


def test_a_reference_stands_for_the_original(qwen3moe: Path, text: Path, tmp_path: Path) -> None:
    worse = tmp_path / "worse.gguf"
    cp.compress(qwen3moe, cp.plan(qwen3moe, budget="7bpw", types="Q4_K", threads=1), worse, threads=1)
    options = {"texts": [text], "ctx": 64, "chunks": 2, "threads": 1}
    cp.reference(qwen3moe, tmp_path / "original.npy", **options)
    directly = cp.evaluate(worse, against=qwen3moe, **options)
    assert directly.mean_kld > 0
    kept = cp.evaluate(worse, against=tmp_path / "original.npy", **options)
    assert abs(kept.mean_kld - directly.mean_kld) < kld_bound(directly.mean_kld)
    assert (kept.ppl, kept.same_top1, kept.tokens) == (directly.ppl, directly.same_top1, directly.tokens)


def test_pieces_are_the_text(qwen3moe: Path) -> None:
    pieces: list[str] = []
    made = cp.run(qwen3moe, "abc", max_tokens=5, ctx=64, threads=1, write=pieces.append)
    assert "".join(pieces) == made.text
    assert made.tokens <= 5
