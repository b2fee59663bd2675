"""Headers of safetensors files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models.hf_folder import (
    qwen,
    raw_safetensors,
    write_folder,
)
from small_models.refused_folder import refused

GOOD = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def _one(**changes: Any) -> bytes:
    return json.dumps({"t": GOOD | changes}).encode()


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\1" * 7, "shorter than its header"),
    "header past the end": (raw_safetensors(b"{}", size=3), "claims a header of 3 bytes"),
    "huge header": (raw_safetensors(b"{}", size=2**63), "claims a header of"),
    "not JSON": (raw_safetensors(b"{nope}"), "not JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not JSON"),
    "a list": (raw_safetensors(b"[]"), "no JSON object"),
    "deep": (raw_safetensors(b"[" * 50_000), "not JSON"),
    "a huge number": (raw_safetensors(b'{"t": ' + b"9" * 5000 + b"}"), "safetensors file"),
    "name twice": (
        raw_safetensors(b'{"t": %b, "t": %b}' % (json.dumps(GOOD).encode(), json.dumps(GOOD).encode()), bytes(32)),
        "a name appears twice",
    ),
    "dtype twice": (
        raw_safetensors(b'{"t": {"dtype": "F32", "dtype": "F16", "shape": [8], "data_offsets": [0, 32]}}', bytes(32)),
        "a name appears twice",
    ),
    "past the end": (raw_safetensors(_one(), bytes(31)), "lies at [0, 32] in 31 bytes"),
    "starts past the end": (raw_safetensors(_one(data_offsets=[64, 96]), bytes(32)), "lies at [64, 96]"),
    "offsets reversed": (raw_safetensors(_one(data_offsets=[32, 0]), bytes(32)), "lies at [32, 0]"),
    "negative offset": (raw_safetensors(_one(data_offsets=[-32, 0]), bytes(32)), "no lists of numbers"),
    "three offsets": (raw_safetensors(_one(data_offsets=[0, 32, 32]), bytes(32)), "lies at"),
    "offset as text": (raw_safetensors(_one(data_offsets=["0", "32"]), bytes(32)), "no lists of numbers"),
    "offset as truth": (raw_safetensors(_one(data_offsets=[False, 32]), bytes(32)), "no lists of numbers"),
    "fractional offset": (raw_safetensors(_one(data_offsets=[0.5, 32]), bytes(32)), "no lists of numbers"),
    "size disagrees": (raw_safetensors(_one(shape=[2, 5]), bytes(40)), "do not agree"),
    "other dtype": (raw_safetensors(_one(dtype="BF16"), bytes(32)), "do not agree"),
    "unknown dtype": (raw_safetensors(_one(dtype="F12"), bytes(32)), "unknown dtype 'F12'"),
    "dtype is a number": (raw_safetensors(_one(dtype=32), bytes(32)), "unknown dtype"),
    "shape overflows": (raw_safetensors(_one(shape=[2**40, 2**40, 2**40]), bytes(32)), "do not agree"),
    "negative shape": (raw_safetensors(_one(shape=[-2, -4]), bytes(32)), "no lists of numbers"),
    "shape as text": (raw_safetensors(_one(shape="24"), bytes(32)), "no lists of numbers"),
    "nothing": (raw_safetensors(b'{"t": null}', bytes(32)), "has no dtype, shape and data_offsets"),
    "more than is known": (raw_safetensors(_one(extra=1), bytes(32)), "has no dtype, shape and data_offsets"),
    "overlap": (
        raw_safetensors(json.dumps({"a": GOOD, "b": GOOD | {"data_offsets": [16, 48]}}).encode(), bytes(48)),
        "overlaps another",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_header_that_lies(what: str, tmp_path: Path) -> None:
    data, says = LIES[what]
    folder = write_folder(tmp_path / "m", *qwen())
    (folder / "model.safetensors").write_bytes(data)
    message = refused(folder)
    assert says in message
    assert "model.safetensors" in message
