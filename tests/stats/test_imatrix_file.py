"""Importance matrices of other tools: what is taken from them, and what is refused."""

from __future__ import annotations

import re
import shlex
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models.imatrix_files import write_imatrix, write_old_imatrix
from small_models.odd_stats import small_stats

from collab_plugin.errors import CollabError
from collab_plugin.stats.stats import ImatrixEntry
from collab_plugin.stats.stats_file import read_stats

QUERY, GATE = "blk.1.attn_q.weight", "blk.1.ffn_gate_exps.weight"
F32 = np.float32


def test_signed_sums_beside_are_passed_over(tmp_path: Path) -> None:
    """Newer llama-imatrix writes Σx beside Σx²: of either sign, and no importance."""
    entries = small_stats().imatrix
    signed = {f"{name}.in_sum": np.where(np.arange(e.sum2.size) % 2, -1, 1).astype(F32) for name, e in entries.items()}
    read = read_stats(write_imatrix(tmp_path / "imatrix.gguf", entries, beside=signed))
    assert set(read.imatrix) == set(entries)
    for name, entry in entries.items():
        np.testing.assert_array_equal(read.imatrix[name].sum2, entry.sum2)
        np.testing.assert_array_equal(read.imatrix[name].count, entry.count)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (f"{QUERY}.counts", f"{QUERY} has sums without matching counts"),
        (f"{QUERY}.in_sum2", f"{QUERY} has counts without matching sums"),
    ],
)
def test_sums_and_counts_come_together(missing: str, line: str, tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "imatrix.gguf", small_stats().imatrix, without=[missing])
    with pytest.raises(CollabError, match=re.escape(line)):
        read_stats(path)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.ones((1, 64), np.float16), f"{QUERY}.in_sum2 is F16, not F32"),
        (np.full((1, 64), np.nan, F32), f"{QUERY}.in_sum2 holds values that are not finite or negative"),
        (np.full((1, 64), -1, F32), f"{QUERY}.in_sum2 holds values that are not finite or negative"),
    ],
)
def test_sums_that_cannot_be(values: np.ndarray, line: str, tmp_path: Path) -> None:
    """float16 would else be passed over in silence."""
    beside = {f"{QUERY}.in_sum2": values}
    path = write_imatrix(tmp_path / "imatrix.gguf", small_stats().imatrix, beside=beside)
    with pytest.raises(CollabError, match=re.escape(line)):
        read_stats(path)


def test_a_count_that_cannot_be(tmp_path: Path) -> None:
    beside = {f"{QUERY}.counts": np.full((1, 1), 1e20, F32)}
    path = write_imatrix(tmp_path / "imatrix.gguf", small_stats().imatrix, beside=beside)
    with pytest.raises(CollabError, match=r"blk\.1\.attn_q\.weight counts 1e\+20 tokens"):
        read_stats(path)


def test_an_expert_with_a_count_but_no_sums_was_not_seen(tmp_path: Path) -> None:
    entry = ImatrixEntry(np.array([[1, 2], [0, 0], [0, 3]], F32), np.array([5, 7, 0], F32))
    routing = read_stats(write_imatrix(tmp_path / "imatrix.gguf", {GATE: entry})).routing[1]
    assert routing.count.tolist() == [5, 0, 0]
    assert routing.unseen.tolist() == [False, True, True]


def test_one_count_for_all_experts_tells_no_routing(tmp_path: Path) -> None:
    entry = ImatrixEntry(np.ones((1, 8), F32), np.array([5], F32))
    assert read_stats(write_imatrix(tmp_path / "imatrix.gguf", {GATE: entry})).routing == {}


def test_tokens_of_a_file_that_does_not_count_its_chunks(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "imatrix.gguf", small_stats().imatrix, keys={"chunk_count": 0})
    assert read_stats(path).tokens == 512  # of the attention's tensors


# -- the old layout

OLD = {GATE: np.arange(1, 4 * 64 + 1, dtype=F32), QUERY: np.ones(64, F32)}


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("imatrix.dat", "imatrix.gguf"),
        ("Model-Q8_0.imatrix", "Model-Q8_0.gguf"),
        ("imatrix_unsloth.gguf", "imatrix_unsloth-new.gguf"),
        ("an imatrix", "'an imatrix.gguf'"),
    ],
)
def test_old_layout_says_how_to_convert(name: str, out: str, tmp_path: Path) -> None:
    path = write_old_imatrix(tmp_path / name, OLD)
    with pytest.raises(CollabError, match=re.escape("is in llama.cpp's old imatrix format: convert it with")) as error:
        read_stats(path)
    assert str(error.value).split("-o ")[1].split("`")[0].replace(f"{tmp_path}/", "") == out


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04 a zip of some kind", struct.pack("<ii", 2, 5) + b"\0\1\2\3\4"])
def test_other_files_are_no_old_imatrix(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(head)
    with pytest.raises(CollabError, match=r"is empty|is not a GGUF file"):
        read_stats(path)


@pytest.mark.slow
def test_the_printed_command_converts(llama_tools: Path, tmp_path: Path) -> None:
    """Run as it is printed, by the real tool: the result is read, with the same means."""
    path = write_old_imatrix(tmp_path / "old imatrix.dat", OLD)
    with pytest.raises(CollabError) as error:
        read_stats(path)
    tool, *arguments = shlex.split(str(error.value).split("`")[1])
    done = subprocess.run([llama_tools / tool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    read = read_stats(tmp_path / "old imatrix.gguf")
    assert set(read.imatrix) == set(OLD)
    for expert in range(4):
        # Four calls: a mean is a fourth of the sum that the old layout holds.
        np.testing.assert_allclose(read.imatrix[GATE].vector(expert, 64), OLD[GATE][64 * expert :][:64] / 4)
