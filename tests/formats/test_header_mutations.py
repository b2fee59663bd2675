"""Headers with bytes, fields and numbers changed: a model or one line, and never much memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models.gguf_bytes import ARCHITECTURE, V, array_key, gguf, key, tensor, text_key
from small_models.hf_folder import raw_safetensors

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import read_header

MEMORY = 2_000_000  # bytes that parsing a file of some kilobytes may take
TEXT = b"".join(len(w).to_bytes(8, "little") + w for w in (b"", b"th", "ü".encode()))
WHOLE = gguf(
    (
        ARCHITECTURE,
        text_key("general.name", "tiny"),
        key("qwen3moe.expert_count", V.UINT32, (4).to_bytes(4, "little")),
        key("general.alignment", V.UINT32, (32).to_bytes(4, "little")),
        array_key("tokenizer.ggml.tokens", V.STRING, 3, TEXT),
        array_key("tokenizer.ggml.scores", V.FLOAT32, 3, np.ones(3, "<f4").tobytes()),
    ),
    (
        tensor("token_embd.weight", [8, 4]),
        tensor("blk.0.ffn_up_exps.weight", [32, 2, 4], kind=8, offset=128),
        tensor("blk.0.ffn_gate_inp.weight", [8, 4], offset=416),
    ),
    bytes(416 + 128),
)
HEADER = len(WHOLE) - 544
WORDS = st.sampled_from([0, 1, 2**8, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def bounded(open_it: Callable[[], object]) -> None:
    """Succeeds or fails as a user's mistake, within MEMORY."""
    tracemalloc.start()
    try:
        open_it()
    except CollabError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


def _use_gguf(path: Path) -> None:
    checkpoint = open_gguf(path)
    for name in checkpoint.tensors:
        checkpoint.read_raw(name)


def test_the_unchanged_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    _use_gguf(path)
    assert len(open_gguf(path).tensors) == 3


SETTINGS = settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(changes=st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_gguf_bytes(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    bounded(lambda: _use_gguf(path))


@SETTINGS
@given(at=st.integers(4, HEADER - 8), word=WORDS, width=st.sampled_from([4, 8]))
def test_gguf_numbers(at: int, word: int, width: int, tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    data[at : at + width] = (word % 256**width).to_bytes(width, "little")
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    bounded(lambda: _use_gguf(path))


@SETTINGS
@given(cut=st.integers(0, len(WHOLE)), insert=st.binary(max_size=24), drop=st.integers(0, 24))
def test_gguf_shifted(cut: int, insert: bytes, drop: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE[:cut] + insert + WHOLE[cut + drop :])
    bounded(lambda: _use_gguf(path))


ENTRIES: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
    "b": {"dtype": "F32", "shape": [8], "data_offsets": [64, 96]},
    "c": {"dtype": "F8_E4M3", "shape": [2, 16], "data_offsets": [96, 128]},
}
BODY = bytes(128)


def _use_safetensors(path: Path) -> None:
    for stored in read_header(LocalFile(path)).values():
        item = {"BF16": 2, "F32": 4}.get(stored.dtype)
        assert item is None or stored.data.nbytes == item * int(np.prod(stored.shape, dtype=object))
        stored.data.tobytes()


@SETTINGS
@given(data=st.data())
def test_safetensors_bytes(data: st.DataObject, tmp_path: Path) -> None:
    whole = bytearray(raw_safetensors(json.dumps(ENTRIES).encode(), BODY))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - len(BODY) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    bounded(lambda: _use_safetensors(path))


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@SETTINGS
@given(name=st.sampled_from("abc"), field=st.sampled_from(["dtype", "shape", "data_offsets", "extra"]), value=ANY)
def test_safetensors_fields(name: str, field: str, value: Any, tmp_path: Path) -> None:
    entries = {**ENTRIES, name: {**ENTRIES[name], field: value}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(json.dumps(entries).encode("utf-8", "surrogatepass"), BODY))
    bounded(lambda: _use_safetensors(path))


@SETTINGS
@given(header=ANY)
def test_safetensors_of_any_json(header: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(json.dumps(header).encode(), BODY))
    bounded(lambda: _use_safetensors(path))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_tiny_files(size: int, tmp_path: Path) -> None:
    for fill in (b"\0", b"\xff", b"G"):
        path = tmp_path / "model.safetensors"
        path.write_bytes(fill * size)
        with pytest.raises(CollabError):
            read_header(LocalFile(path))
