"""Every way in which a GGUF header can be wrong is one line that names the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as T
from small_models.gguf_bytes import ARCHITECTURE, V, array_key, gguf, key, tensor, text_key

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.gguf_header import read_header

HUGE = 2**63
U32 = struct.pack("<I", 32)


def _align(value: bytes, kind: int = V.UINT32) -> tuple[bytes, ...]:
    return (ARCHITECTURE, key("general.alignment", kind, value))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "shorter than the magic": (b"GG", "does not start with 'GGUF'"),
    "wrong magic": (gguf(magic=b"GGML"), "does not start with 'GGUF'"),
    "magic alone": (b"GGUF", "it ends inside the version"),
    "no counts": (gguf()[:12], "it ends inside the tensor count"),
    "version 1": (gguf(version=1), "version 1 is neither 2 nor 3"),
    "version 4": (gguf(version=4), "version 4 is neither 2 nor 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "huge key count": (gguf(n_keys=HUGE), f"it claims {HUGE} keys"),
    "huge tensor count": (gguf(n_tensors=HUGE), f"and {HUGE} tensors"),
    "one key too many": (gguf((text_key("general.architecture", "x" * 64),), n_keys=2), "key 1"),
    "cut inside a key": (gguf()[:40], "it ends inside"),
    "huge name": (gguf((struct.pack("<Q", HUGE) + b"x" * 40,)), "it ends inside key 0"),
    "name not UTF-8": (gguf((key(b"\xff\xfe\xff", V.UINT32, U32), ARCHITECTURE)), "key 0 is not UTF-8"),
    "value not UTF-8": (gguf((text_key("general.name", b"\xc3\x28"),)), "'general.name' is not UTF-8"),
    "unknown value type": (gguf((key("a", 13, U32), ARCHITECTURE)), "has unknown type 13"),
    "huge string": (gguf((key("a", V.STRING, struct.pack("<Q", HUGE)),)), "it ends inside key 'a'"),
    "huge array": (gguf((array_key("a", V.UINT8, HUGE, b""),)), f"claims {HUGE} values"),
    "huge array of strings": (gguf((array_key("a", V.STRING, HUGE, b""),)), f"claims {HUGE} strings"),
    "array of arrays": (gguf((array_key("a", V.ARRAY, 1, bytes(12)),)), "array of arrays"),
    "unknown element type": (gguf((array_key("a", 99, 1, bytes(12)),)), "unknown type 99"),
    "key twice": (gguf((ARCHITECTURE, ARCHITECTURE)), "'general.architecture' appears twice"),
    "tensor twice": (
        gguf(tensors=(tensor("t", [8]), tensor("t", [8], offset=32)), data=bytes(64)),
        "tensor 't' appears twice",
    ),
    "tensor name not UTF-8": (gguf(tensors=(tensor(b"\xff", [8]),), data=bytes(32)), "tensor 0 is not UTF-8"),
    "tensor name too long": (gguf(tensors=(tensor("t" * 64, [8]),), data=bytes(32)), "longer than 63 bytes"),
    "no dimensions": (gguf(tensors=(tensor("t", []),), data=bytes(64)), "has 0 dimensions"),
    "five dimensions": (gguf(tensors=(tensor("t", [1] * 5),), data=bytes(32)), "has 5 dimensions"),
    "huge dimension count": (gguf(tensors=(tensor("t", [8], n_dims=2**32 - 1),), data=bytes(32)), "dimensions"),
    "a dimension of zero": (gguf(tensors=(tensor("t", [8, 0]),), data=bytes(32)), "impossible shape"),
    "dimensions that overflow": (
        gguf(tensors=(tensor("t", [2**32, 2**32]),), data=bytes(32)),
        "impossible shape",
    ),
    "unknown tensor type": (gguf(tensors=(tensor("t", [8], 1000),), data=bytes(32)), "has type 1000"),
    "removed tensor type": (gguf(tensors=(tensor("t", [8], 4),), data=bytes(32)), "has type 4"),
    "rows not of whole blocks": (
        gguf(tensors=(tensor("t", [100], T.Q4_K),), data=bytes(256)),
        "not a multiple of Q4_K's 256",
    ),
    "tensor past the end": (gguf(tensors=(tensor("t", [9]),), data=bytes(32)), "the file is truncated"),
    "offset past the end": (gguf(tensors=(tensor("t", [8], offset=2**40),), data=bytes(32)), "truncated"),
    "offset that overflows": (
        gguf(tensors=(tensor("t", [8], offset=2**64 - 32),), data=bytes(32)),
        "the file is truncated",
    ),
    "offset not aligned": (gguf(tensors=(tensor("t", [8], offset=4),), data=bytes(64)), "not aligned to 32"),
    "tensors overlap": (
        gguf(tensors=(tensor("a", [16]), tensor("b", [8], offset=32)), data=bytes(96)),
        "tensors 'a' and 'b' overlap",
    ),
    "two tensors in one place": (
        gguf(tensors=(tensor("a", [8]), tensor("b", [8])), data=bytes(64)),
        "overlap",
    ),
    "alignment of zero": (gguf(_align(struct.pack("<I", 0))), "general.alignment is 0"),
    "alignment of 24": (gguf(_align(struct.pack("<I", 24))), "general.alignment is 24"),
    "huge alignment": (gguf(_align(struct.pack("<I", 2**31))), "general.alignment is 2147483648"),
    "alignment as text": (gguf((ARCHITECTURE, text_key("general.alignment", "32"))), "general.alignment is '32'"),
    "no architecture": (gguf((text_key("general.name", "x"),)), "no general.architecture"),
    "architecture is a number": (gguf((key("general.architecture", V.UINT32, U32),)), "no general.architecture"),
}


@pytest.mark.parametrize("what", BAD)
def test_refused(what: str, tmp_path: Path) -> None:
    data, says = BAD[what]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(CollabError) as error:
        open_gguf(path)
    message = str(error.value)
    assert says in message
    assert str(path) in message
    assert "\n" not in message
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines() == [f"error: {message}"]


def test_what_is_right_is_read(tmp_path: Path) -> None:
    keys = (
        ARCHITECTURE,
        key("a.bool", V.BOOL, b"\1"),
        key("a.i8", V.INT8, b"\xff"),
        key("a.u64", V.UINT64, struct.pack("<Q", 2**64 - 1)),
        key("a.f64", V.FLOAT64, struct.pack("<d", 0.1)),
        array_key("a.bools", V.BOOL, 2, b"\1\0"),
        array_key("a.none", V.STRING, 0, b""),
    )
    values = np.arange(16, dtype=np.float32)
    tensors = (tensor("second", [4, 2], offset=64), tensor("first", [2, 2, 2], offset=0))
    path = tmp_path / "model.gguf"
    for version in (2, 3):
        path.write_bytes(gguf(keys, tensors, values[:8].tobytes() + bytes(32) + values[8:].tobytes(), version=version))
        header = read_header(LocalFile(path))
        assert {k: v.value for k, v in header.metadata.items()} == {
            "general.architecture": "qwen3moe",
            "a.bool": True,
            "a.i8": -1,
            "a.u64": 2**64 - 1,
            "a.f64": 0.1,
            "a.bools": [True, False],
            "a.none": [],
        }
        assert list(header.tensors) == ["second", "first"]
        checkpoint = open_gguf(path)
        np.testing.assert_array_equal(checkpoint.read("first"), values[:8].reshape(2, 2, 2))
        np.testing.assert_array_equal(checkpoint.read("second"), values[8:].reshape(2, 4))


@pytest.mark.parametrize("align", [8, 64, 4096])
def test_other_alignments(align: int, tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    path = tmp_path / "model.gguf"
    keys = _align(struct.pack("<I", align))
    data = values.tobytes() + bytes(-16 % align) + values[::-1].tobytes()
    offset = -(-16 // align) * align
    path.write_bytes(gguf(keys, (tensor("a", [4]), tensor("b", [4], offset=offset)), data, align=align))
    checkpoint = open_gguf(path)
    np.testing.assert_array_equal(checkpoint.read("a"), values)
    np.testing.assert_array_equal(checkpoint.read("b"), values[::-1])


def test_every_truncation_is_refused(qwen3moe: Path, tmp_path: Path) -> None:
    whole = np.memmap(qwen3moe, np.uint8, "r")
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    # Cuts inside the header, and the last byte of the last tensor missing.
    for size in (*rng.integers(1, 6000, 60), len(whole) - 1):
        path.write_bytes(whole[:size].tobytes())
        with pytest.raises(CollabError):
            open_gguf(path)
