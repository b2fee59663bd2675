"""A copy of the model in which some tensors are worse for a while.

The values of a quantized tensor are written back at the type that the copy stores, so a probe writes
the tensors it is about and nothing else, however large the model is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.tiles import Tile, tile_bytes, tiles_of
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Bytes, Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix, importance_vector


class Scratch:
    """``path`` is a GGUF with the checkpoint's own values, but inside `quantized`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        imatrix: ImportanceMatrix | None,
        kernels: Kernels,
        folder: Path,
        threads: int,
        progress: OnProgress = silent,
    ) -> None:
        self.checkpoint, self.imatrix, self.kernels, self.threads = checkpoint, imatrix, kernels, threads
        self.path = folder / "scratch.gguf"
        self.plan = copy_plan(checkpoint)
        with track(progress, "copying the model to probe it", unit="weights") as report:
            compress(checkpoint, self.plan, None, self.path, kernels=None, threads=threads, report=report)
        self.tiles: dict[str, list[Tile]] = {}
        for tile in tiles_of(checkpoint, self.plan, artifact_layout(checkpoint, self.plan).offsets):
            self.tiles.setdefault(tile.tensor, []).append(tile)

    @contextmanager
    def quantized(self, types: Mapping[str, str]) -> Iterator[Path]:
        """The copy with these tensors as they come back from these types; restored afterwards."""
        for kind in sorted(set(types.values())):
            self.kernels.prepare(kind)
        tiles = [tile for name in types for tile in self.tiles[name]]
        handle = os.open(self.path, os.O_RDWR)
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda tile: self._write(handle, tile, self._worse(tile, types[tile.tensor])), tiles))
                try:
                    yield self.path
                finally:
                    list(pool.map(lambda tile: self._write(handle, tile, self._stored(tile)), tiles))
        finally:
            os.close(handle)

    def _stored(self, tile: Tile) -> Bytes:
        return tile_bytes(self.checkpoint, self.plan, tile, None, None)

    def _worse(self, tile: Tile, kind: str) -> Bytes:
        info = self.checkpoint.tensors[tile.tensor]
        values = self.checkpoint.read(tile.tensor, expert=tile.expert, rows=slice(tile.start, tile.stop))
        vector = importance_vector(info, tile.expert, kind, self.imatrix)
        n = info.shape[-1]
        back = self.kernels.dequantize(self.kernels.quantize(values.reshape(-1, n), kind, vector), kind, n)
        stored = info.type.name
        if stored == "F32":
            return np.ascontiguousarray(back).view(np.uint8)
        return self.kernels.quantize(back, stored, importance_vector(info, tile.expert, stored, self.imatrix))

    @staticmethod
    def _write(handle: int, tile: Tile, data: Bytes) -> None:
        view, at = memoryview(np.ascontiguousarray(data).reshape(-1).data), tile.offset
        while view:
            count = os.pwrite(handle, view, at)
            view, at = view[count:], at + count
