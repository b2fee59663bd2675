"""Stats as a valid llama.cpp imatrix GGUF with our own keys and tensors beside.

llama.cpp's reader (common/imatrix-loader.cpp:118-165) takes tensors ending in .in_sum2 and .counts and
passes over all others. Page: docs/formats/stats.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from collab_plugin.checkpoint.gguf import open_shard
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.byte_file import ByteFile
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.formats.gguf_header import Header, StoredTensor
from collab_plugin.formats.gguf_layout import TensorSpec, layout
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.stats.imatrix_file import counted_routing, counted_tokens, imatrix_entries, old_format_hint
from collab_plugin.stats.stats import InputRounding, LayerRouting, Stats, Stream

VERSION = 1
UNMEASURED = "collab.stats.unmeasured"
SEED = "collab.stats.seed"
"""Sums of LayerRouting that the engine does not measure, and "imatrix"; absent when it measures all."""
_SUMS = re.compile(r"^blk\.(\d+)\.collab_router$")
_STREAM = re.compile(r"^blk\.(\d+)\.collab_stream$")
_ROUNDING = ".collab_rounding"
_GATE = re.compile(r"^blk\.(\d+)\.collab_shared_gate$")
TINY = float(np.finfo(np.float32).tiny)
T = TypeVar("T")


def sha256_when_written(stats: Stats) -> str:
    """The SHA-256 of the file that `write_stats` would write of ``stats``."""
    return hashlib.sha256(_file_bytes(stats)).hexdigest()


def as_stored(stats: Stats) -> Stats:
    """``stats`` as `read_stats` would give them back: sums with the 48 bits that the file keeps of each, streams with
    the 24 of a float32."""

    def stored(values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        return None if values is None else np.add(*np.split(_two_floats(values).astype(np.float64), 2))

    routing = {
        layer: replace(r, weight_sum=stored(r.weight_sum), reap_sum=stored(r.reap_sum))
        for layer, r in stats.routing.items()
    }
    streams = {layer: Stream(*_floats(stream).tolist()) for layer, stream in stats.streams.items()}
    rounding = {name: InputRounding(*_floats(each).tolist()) for name, each in stats.rounding.items()}
    gates = {layer: float(np.float32(gate)) for layer, gate in stats.shared_gates.items()}
    return replace(stats, routing=routing, streams=streams, rounding=rounding, shared_gates=gates)


def _floats(pair: Stream | InputRounding) -> NDArray[np.float32]:
    return np.array(astuple(pair), np.float32)


def write_stats(path: str | os.PathLike[str], stats: Stats) -> None:
    """Write ``stats``; complete or not at all."""
    write_bytes(Path(path), _file_bytes(stats))


def _file_bytes(stats: Stats) -> bytes:
    """The file's bytes: the same for the same stats, and for stats read back from it.

    Per layer, tensor ``blk.N.collab_router`` F32[3, 2E]: activation counts, weight sums and REAP sums,
    each as a float32 and the float32 rest that it lost, so that 48 bits survive.
    ``blk.N.collab_stream`` F32[2]: `Stream`. ``TENSOR.collab_rounding`` F32[2]: `InputRounding`.
    ``blk.N.collab_shared_gate`` F32[1].
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, entry in sorted(stats.imatrix.items()):
        arrays[f"{name}.in_sum2"] = entry.sum2
        arrays[f"{name}.counts"] = entry.count.reshape(-1, 1)
    for layer, routing in sorted(stats.routing.items()):
        zero = np.zeros(len(routing.count))
        rows = [
            routing.count.astype(np.float64),
            zero if routing.weight_sum is None else routing.weight_sum,
            zero if routing.reap_sum is None else routing.reap_sum,
        ]
        arrays[f"blk.{layer}.collab_router"] = np.stack([_two_floats(row) for row in rows])
    for layer, stream in sorted(stats.streams.items()):
        arrays[f"blk.{layer}.collab_stream"] = _floats(stream)
    for name, each in sorted(stats.rounding.items()):
        arrays[name + _ROUNDING] = _floats(each)
    for layer, gate in sorted(stats.shared_gates.items()):
        arrays[f"blk.{layer}.collab_shared_gate"] = np.array([gate], np.float32)
    specs = [TensorSpec(name, array.shape, GGMLQuantizationType.F32) for name, array in arrays.items()]
    plan = layout(_keys(stats), specs)
    data = bytearray(plan.total)
    data[: len(plan.header)] = plan.header
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, np.float32).tobytes()
        data[plan.offsets[name] : plan.offsets[name] + len(raw)] = raw
    return bytes(data)


def _two_floats(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each value as float32 and the rest it lost. Twice: a rest that was rounded up to half of the last
    place could else round otherwise when it is read and written again."""
    for _ in range(2):
        high = values.astype(np.float32)
        low = (values - high).astype(np.float32)
        values = high.astype(np.float64) + low
    return np.concatenate([high, low])


def _keys(stats: Stats) -> dict[str, MetaValue]:
    text, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    chunks = stats.tokens // stats.chunk_size
    keys = {
        "general.type": MetaValue("imatrix", text),
        "imatrix.datasets": MetaValue(list(stats.datasets), array, text),
        "imatrix.chunk_count": MetaValue(chunks, GGUFValueType.UINT32),
        "imatrix.chunk_size": MetaValue(stats.chunk_size, GGUFValueType.UINT32),
        "collab.stats.version": MetaValue(VERSION, GGUFValueType.UINT32),
        "collab.stats.tokens": MetaValue(stats.tokens, GGUFValueType.UINT64),
        "collab.stats.engine": MetaValue(stats.engine, text),
        "collab.stats.model_id": MetaValue(stats.model_id or "", text),
        "collab.stats.ngrams": MetaValue(stats.text_sketch.tolist(), array, GGUFValueType.UINT64),
    }
    if stats.seed is not None:
        keys[SEED] = MetaValue(stats.seed, GGUFValueType.UINT32)
    for layer, routing in sorted(stats.routing.items()):
        keys[f"collab.stats.layer_tokens.{layer}"] = MetaValue(routing.tokens, GGUFValueType.UINT64)
    if without := unmeasured(stats):
        keys[UNMEASURED] = MetaValue(list(without), array, text)
    return keys


def unmeasured(stats: Stats) -> tuple[str, ...]:
    """What the engine of ``stats`` did not measure: "weight_sum", "reap_sum", "imatrix"."""
    sums = [
        name
        for name in ("weight_sum", "reap_sum")
        if stats.routing and all(getattr(routing, name) is None for routing in stats.routing.values())
    ]
    return tuple(sums) if stats.imatrix else (*sums, "imatrix")


def read_plans_stats(path: Path, sha256: str, remedy: str) -> Stats:
    """Read the stats that a plan records as ``sha256``; CollabError with the ``remedy`` when these are others."""
    stats = read_stats(path)
    if file_sha256(path) != sha256:
        raise CollabError(f"{path} is not the stats file that the plan was made with; {remedy}")
    return stats


def read_stats(path: str | os.PathLike[str]) -> Stats:
    """Read our stats, or an imatrix GGUF of anyone: then routing has counts only.

    Raises CollabError for a file that is damaged, a model, or in llama.cpp's old format.
    """
    path = Path(path)
    header, file = _open(path)
    meta = header.metadata
    if _value(meta, "general.type", str, "") != "imatrix":
        raise CollabError(f"{path} is a GGUF but no importance matrix or stats file; give what `calibrate` wrote")
    without = _value(meta, UNMEASURED, list, [])
    imatrix = imatrix_entries(path, header.tensors, file)
    if not imatrix and "imatrix" not in without:
        raise CollabError(f"{path} holds no importance matrix; give what `calibrate` wrote")
    chunk = _value(meta, "imatrix.chunk_size", int, 512) or 512
    ours = "collab.stats.version" in meta
    if ours and meta["collab.stats.version"].value != VERSION:
        raise CollabError(f"{path} has stats version {meta['collab.stats.version'].value}, not {VERSION}")
    routing = _our_routing(path, header, file, without) if ours else counted_routing(imatrix)
    tokens = _value(meta, "collab.stats.tokens", int, 0) or _value(meta, "imatrix.chunk_count", int, 0) * chunk
    if not tokens:
        tokens = counted_tokens(imatrix)
    if tokens < 0 or chunk < 1:
        raise CollabError(f"{path} claims {tokens} tokens in windows of {chunk}; calibrate again")
    return Stats(
        routing=routing,
        imatrix=imatrix,
        tokens=tokens,
        chunk_size=chunk,
        datasets=tuple(str(d) for d in _value(meta, "imatrix.datasets", list, [])),
        model_id=_value(meta, "collab.stats.model_id", str, "") or None,
        engine=_value(meta, "collab.stats.engine", str, "") or "imatrix of another tool",
        seed=_value(meta, SEED, int, 0) if SEED in meta else None,
        text_sketch=_sketch(path, _value(meta, "collab.stats.ngrams", list, [])),
        streams={n: Stream(*pair) for n, pair in _streams(path, header, file)},
        rounding={n: InputRounding(*pair) for n, pair in _rounding(path, header, file)},
        shared_gates=dict(_gates(path, header, file)),
    )


def _open(path: Path) -> tuple[Header, ByteFile]:
    if not path.is_file():
        raise CollabError(f"the stats file {path} does not exist")
    try:
        return open_shard(path)
    except CollabError:
        if hint := old_format_hint(path):
            raise CollabError(hint) from None
        raise


def _sketch(path: Path, values: list[object]) -> NDArray[np.uint64]:
    if not all(type(v) is int and 0 <= v < 2**64 for v in values):
        raise CollabError(f"{path}: collab.stats.ngrams is damaged; calibrate again")
    return np.array(values, np.uint64)


def _value(meta: dict[str, MetaValue], key: str, kind: type[T], default: T) -> T:
    value = meta[key].value if key in meta else default
    if not isinstance(value, kind):
        raise CollabError(f"the stats key {key} is {str(value)[:40]!r}, not {kind.__name__}")
    return value


def _streams(path: Path, header: Header, file: ByteFile) -> Iterator[tuple[int, list[float]]]:
    for name, stored in header.tensors.items():
        if layer := _STREAM.match(name):
            yield int(layer[1]), _numbers(path, name, stored, file, 2, TINY, np.inf)


def _rounding(path: Path, header: Header, file: ByteFile) -> Iterator[tuple[str, list[float]]]:
    for name, stored in header.tensors.items():
        if name.endswith(_ROUNDING):
            yield name.removesuffix(_ROUNDING), _numbers(path, name, stored, file, 2, 0.0, 1.0)


def _gates(path: Path, header: Header, file: ByteFile) -> Iterator[tuple[int, float]]:
    for name, stored in header.tensors.items():
        if layer := _GATE.match(name):
            yield int(layer[1]), _numbers(path, name, stored, file, 1, 0.0, 1.0)[0]


def _numbers(
    path: Path, name: str, stored: StoredTensor, file: ByteFile, number: int, least: float, most: float
) -> list[float]:
    """So many finite numbers from ``least`` to ``most``."""
    values = np.empty(0, np.float32)
    if stored.type == GGMLQuantizationType.F32 and stored.shape == (number,):
        values = file.read(stored.offset, stored.offset + stored.nbytes).view(np.float32)
    if len(values) != number or not np.isfinite(values).all() or values.min() < least or values.max() > most:
        raise CollabError(f"{path}: {name} is damaged; calibrate again")
    return [float(v) for v in values]


def _our_routing(path: Path, header: Header, file: ByteFile, without: list[object]) -> dict[int, LayerRouting]:
    routing = {}
    for name, stored in header.tensors.items():
        if not (found := _SUMS.match(name)):
            continue
        layer, shape = int(found.group(1)), stored.shape
        if stored.type != GGMLQuantizationType.F32 or len(shape) != 2 or shape[0] != 3 or shape[1] % 2:
            raise CollabError(f"{path}: {name} has shape {shape} of {stored.type.name}; calibrate again")
        array = file.read(stored.offset, stored.offset + stored.nbytes).view(np.float32).reshape(shape)
        high, low = np.split(array.astype(np.float64), 2, axis=1)
        count, weights, reap = high + low
        tokens = _value(header.metadata, f"collab.stats.layer_tokens.{layer}", int, -1)
        if tokens < 0 or not np.isfinite(array).all() or count.min() < 0 or count.max() > 2**53:
            raise CollabError(f"{path}: the routing of layer {layer} is damaged; calibrate again")
        routing[layer] = LayerRouting(
            tokens,
            np.rint(count).astype(np.int64),
            None if "weight_sum" in without else weights,
            None if "reap_sum" in without else reap,
        )
    return routing
