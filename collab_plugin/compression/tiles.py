"""The work of compressing one tensor, cut into tiles: one slice's rows, at most 32 MiB as float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from collab_plugin.checkpoint.checkpoint import Bytes, Checkpoint, TensorInfo
from collab_plugin.checkpoint.decode import check_finite, decode
from collab_plugin.compression.journal import checksum
from collab_plugin.errors import CollabError
from collab_plugin.formats.block_scales import scales_are_finite
from collab_plugin.formats.ggml_types import row_bytes
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.plans.artifact import kept_of, new_shape
from collab_plugin.plans.hash_routes import remapped
from collab_plugin.plans.plan import Plan
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.quantize.rows_at_type import rows_at_type
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector

TILE_BYTES = 32 * 2**20
STRIP_VALUES = 2**19
"""Weights that are read, decoded, quantized and written together where that costs nothing (`Checkpoint.by_rows`): 2 MiB
as float32 stays in the processor's cache, in memory that the process has already (`keep_freed_memory`)."""


@dataclass(frozen=True)
class Tile:
    """Rows ``start``..``stop`` of source slice ``expert`` (None: the tensor has no slices).

    ``offset`` is where its ``nbytes`` bytes go in the file. ``values`` counts the weights.
    """

    tensor: str
    expert: int | None
    start: int
    stop: int
    offset: int
    nbytes: int
    values: int


def tiles_of(checkpoint: Checkpoint, plan: Plan, offsets: Mapping[str, int]) -> list[Tile]:
    """All tiles, in file order; the list is the same whatever the number of threads. ``offsets``: of the tensors."""
    return [tile for name, info in checkpoint.tensors.items() for tile in _tensor_tiles(info, plan, offsets[name])]


def _tensor_tiles(info: TensorInfo, plan: Plan, offset: int) -> Iterator[Tile]:
    if is_hash_table(info.name):
        yield Tile(info.name, None, 0, info.shape[0], offset, info.nbytes, info.n_elements)
        return
    kind = plan.tensors[info.name].type
    n = info.shape[-1]
    width = row_bytes(kind, n) if len(info.shape) > 1 else 0
    slices: tuple[int | None, ...]
    kept = kept_of(info, plan)
    if len(info.shape) == 1:  # one value an expert (router bias, scales): too small to cut
        count = n if kept is None else len(kept)
        yield Tile(info.name, None, 0, 1, offset, row_bytes(kind, count), count)
        return
    if kept is not None:
        slices = kept
    elif len(info.shape) == 3:
        slices = tuple(range(info.shape[0]))
    elif len(info.shape) <= 2:
        slices = (None,)
    else:
        raise CollabError(f"{info.name} has {len(info.shape)} dimensions; up to 3 are supported")
    shape = info.shape if slices == (None,) else info.shape[1:]
    rows = shape[0] if len(shape) == 2 else 1
    step = max(1, TILE_BYTES // (4 * n))
    for slice_index in slices:
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield Tile(info.name, slice_index, start, stop, offset, (stop - start) * width, (stop - start) * n)
            offset += (stop - start) * width


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next strip. glibc gives larger pieces back to the system, and takes
    them anew page by page, until one of this size was freed (mallopt(3), M_MMAP_THRESHOLD); others do not care."""
    np.empty(8 * 4 * STRIP_VALUES, np.uint8)


def write_tile(
    checkpoint: Checkpoint,
    plan: Plan,
    tile: Tile,
    imatrix: ImportanceMatrix | None,
    kernels: Kernels | None,
    write: Callable[[int, memoryview], None],
) -> str:
    """Make the tile and ``write`` it, (offset, bytes) at a time; the checksum of all of it."""
    at, found = tile.offset, checksum(b"")
    for piece in _pieces(checkpoint, plan, tile, imatrix, kernels):
        data = memoryview(piece.reshape(-1).data)
        write(at, data)
        found = checksum(data, found)
        at += len(data)
    return found


def tile_bytes(
    checkpoint: Checkpoint, plan: Plan, tile: Tile, imatrix: ImportanceMatrix | None, kernels: Kernels | None
) -> Bytes:
    """Return the tile's finished bytes, uint8[n]: copied when the type stays, else quantized."""
    pieces = [piece.reshape(-1) for piece in _pieces(checkpoint, plan, tile, imatrix, kernels)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _pieces(
    checkpoint: Checkpoint, plan: Plan, tile: Tile, imatrix: ImportanceMatrix | None, kernels: Kernels | None
) -> Iterator[Bytes]:
    """`tile_bytes` piece by piece, uint8[...] each."""
    info = checkpoint.tensors[tile.tensor]
    kind = plan.tensors[tile.tensor].type
    if is_hash_table(info.name):
        yield _table_bytes(checkpoint, info, plan)
    elif len(info.shape) == 1:
        yield _vector_bytes(checkpoint, info, kind, kept_of(info, plan))
    elif kind == info.type.name:
        for rows in _strips(checkpoint, tile):
            raw = checkpoint.read_raw(tile.tensor, expert=tile.expert, rows=rows)
            if not kind.startswith(("Q", "IQ")):
                check_finite(decode(raw, info.type), tile.tensor, tile.expert)
            yield _finite_blocks(np.ascontiguousarray(raw), info, tile.expert)
    else:
        vector = None if kind == "F32" else importance_vector(info, tile.expert, kind, imatrix)
        for rows in _strips(checkpoint, tile):
            values = checkpoint.read(tile.tensor, expert=tile.expert, rows=rows).reshape(-1, info.shape[-1])
            yield rows_at_type(values, info, kind, vector, kernels)


def _strips(checkpoint: Checkpoint, tile: Tile) -> Iterator[slice | None]:
    """Rows of the tile that are worked on together; None for all of a slice that has one row."""
    info = checkpoint.tensors[tile.tensor]
    if len(info.shape) - (tile.expert is not None) == 1:
        yield None
        return
    step = max(1, STRIP_VALUES // info.shape[-1]) if checkpoint.by_rows(tile.tensor) else tile.stop - tile.start
    for start in range(tile.start, tile.stop, step):
        yield slice(start, min(start + step, tile.stop))


def _finite_blocks(raw: Bytes, info: TensorInfo, expert: int | None) -> Bytes:
    """``raw``; CollabError for blocks whose scales are NaN or infinite, as failed quantizations leave them."""
    if not scales_are_finite(raw, info.type):
        where = info.name if expert is None else f"{info.name}, expert {expert}"
        raise CollabError(f"{where} holds blocks whose scales are NaN or infinite; the checkpoint is damaged")
    return raw


def _table_bytes(checkpoint: Checkpoint, info: TensorInfo, plan: Plan) -> Bytes:
    """A table of hash-routed layers as the plan's experts and their number a token have it."""
    if info.type.name != "I32" or plan.tensors[info.name].type != "I32":
        raise CollabError(f"{info.name} is {info.type.name}: tables of hash-routed layers are I32 and stay so")
    table = np.ascontiguousarray(checkpoint.read_raw(info.name)).view("<i4")
    experts = int(checkpoint.metadata[f"{checkpoint.architecture}.expert_count"].value)
    kept = plan.pruning.kept.get(-1 if info.layer is None else info.layer, range(experts))
    return remapped(table, kept, experts, new_shape(info, plan)[1]).view(np.uint8)


def _vector_bytes(checkpoint: Checkpoint, info: TensorInfo, kind: str, kept: tuple[int, ...] | None) -> Bytes:
    """A 1-D tensor's bytes, with the values of the kept experts in their new order."""
    if kind != info.type.name:
        raise CollabError(f"{info.name} is a vector: it stays {info.type.name}, not {kind}")
    raw = checkpoint.read_raw(info.name)
    check_finite(decode(raw, info.type), info.name, None)
    raw = raw.reshape(info.shape[0], -1)
    return np.ascontiguousarray(raw if kept is None else raw[list(kept)])
