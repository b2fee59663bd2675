"""Packs on disk: pack.json and arrays beside it in a folder, read strictly, written whole. A pack may come from
anyone, so nothing in it is trusted before it was checked."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from collab_conformance.pack.check import check_arrays, check_document
from collab_conformance.pack.pack_document import PACK_VERSION, Pack, PackDocument, Recording, Routes
from collab_conformance.pack.scale_directions import Scales, scale_arrays, scales_of
from collab_plugin.engines.target import LogProbabilities
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.json_document import JsonFormat

DOCUMENT, TENSORS, SCALES = "pack.json", "pack.safetensors", "scales.safetensors"
PACK_FILE = JsonFormat("collab-plugin pack", PACK_VERSION, PackDocument, 64 * 2**20, check_document)
MOST_TENSOR_BYTES = 4 * 2**30
_NUMBERS = re.compile(r"\[[\d,\s]+\]")  # lists of token ids, which would take a line a token
Arrays = dict[str, NDArray[Any]]


def pack_schema() -> dict[str, Any]:
    """The JSON Schema of pack.json, published as docs/formats/pack.schema.json."""
    return PACK_FILE.schema()


def write_pack(folder: Path, pack: Pack) -> PackDocument:
    """Write ``pack`` into ``folder`` (made when missing); the document comes last, so a pack that has one is whole.
    The same pack gives the same bytes. Returns the document with the hashes filled in."""
    arrays = _arrays(pack)
    check_arrays(str(folder), pack.document, arrays)
    data = save(arrays)
    scales = save(scale_arrays(pack.scales)) if pack.scales else None
    document = replace(
        pack.document, tensors_sha256=_sha256(data), scales_sha256=None if scales is None else _sha256(scales)
    )
    check_document(document)
    try:
        folder.mkdir(exist_ok=True)
        for old in (DOCUMENT, SCALES):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise CollabError(f"cannot write the pack {folder}: {error.strerror}") from None
    write_bytes(folder / TENSORS, data)
    if scales is not None:
        write_bytes(folder / SCALES, scales)
    text = PACK_FILE.text(document)
    write_bytes(folder / DOCUMENT, _NUMBERS.sub(lambda m: " ".join(m[0].split()), text).encode())
    return document


def read_document(folder: Path) -> PackDocument:
    """Read and check pack.json alone."""
    return PACK_FILE.read(folder / DOCUMENT)


def read_pack(folder: Path) -> Pack:
    """Read a pack. CollabError naming the file and what is wrong: unlike hash, shape, type or range."""
    document = read_document(folder)
    path = folder / TENSORS
    arrays = _read(path, document.tensors_sha256)
    check_arrays(str(path), document, arrays)
    recordings = tuple(_recording(document, arrays, i) for i in range(len(document.prompts)))
    return Pack(document, recordings, _scales(folder / SCALES, document))


def _scales(path: Path, document: PackDocument) -> Scales | None:
    """A file that the document does not name is not read."""
    if document.scales_sha256 is None:
        return None
    arrays = _read(path, document.scales_sha256)
    try:
        return scales_of(arrays, [len(p.tokens) for p in document.prompts], document.artifact.vocabulary)
    except ValueError as error:
        raise CollabError(f"{path} is not sound: {error}; record the pack again") from None


def _read(path: Path, sha256: str) -> Arrays:
    """The arrays of a file of the pack, whose hash must be that."""
    data = _bytes(path)
    if _sha256(data) != sha256:
        raise CollabError(f"{path} is not the file that {DOCUMENT} is of (its sha256 differs); record the pack again")
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CollabError(f"{path} is no safetensors file: {' '.join(str(error).split())}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MOST_TENSOR_BYTES:
            raise CollabError(f"{path} has {size:,} bytes, more than any pack")
        return path.read_bytes()
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}; is its folder a pack?") from None


def _arrays(pack: Pack) -> Arrays:
    arrays: Arrays = {}
    for i, recording in enumerate(pack.recordings):
        parts: dict[str, NDArray[Any] | None] = {
            "top.ids": recording.top.ids,
            "top.values": recording.top.values,
            "logits": recording.logits,
            "routing.ids": recording.routes.ids if recording.routes else None,
            "routing.margins": recording.routes.margins if recording.routes else None,
            "greedy.ids": recording.greedy.ids if recording.greedy else None,
            "greedy.values": recording.greedy.values if recording.greedy else None,
        }
        arrays |= {f"{i}.{name}": np.ascontiguousarray(part) for name, part in parts.items() if part is not None}
    return arrays


def _recording(document: PackDocument, arrays: Arrays, i: int) -> Recording:
    routes = Routes(arrays[f"{i}.routing.ids"], arrays[f"{i}.routing.margins"]) if document.routing else None
    greedy = document.prompts[i].greedy_steps > 0
    return Recording(
        LogProbabilities(arrays[f"{i}.top.ids"], arrays[f"{i}.top.values"]),
        arrays[f"{i}.logits"],
        routes,
        LogProbabilities(arrays[f"{i}.greedy.ids"], arrays[f"{i}.greedy.values"]) if greedy else None,
    )
