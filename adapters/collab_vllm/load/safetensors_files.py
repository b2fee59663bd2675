"""Safetensors files of a model: found or downloaded by vLLM, read by the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from collab_plugin.checkpoint.folder_tensors import INDEX
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import Place, read_places
from collab_vllm.load.range_reader import Range, RangeReader, merged
from collab_vllm.selection.expert_selection import Part

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def weight_files(load_config: LoadConfig, model_config: ModelConfig) -> list[Path]:
    """The model's safetensors files, downloaded first where ``model`` is a name on the hub."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    plain = dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config={})
    name = model_config.model_weights or model_config.model
    try:
        _, files, _, _ = DefaultModelLoader(plain)._prepare_weights(name, None, model_config.revision, False, None)
    except RuntimeError as error:
        raise CollabError(f"{name} has no safetensors files, which load format collab reads ({error})") from None
    return sorted(map(Path, files))


class Weights:
    """Tensors of safetensors files, read piece by piece; counts the bytes of what was asked for.

    ``read_bytes``: of the tensors and rows that were read; ``total_bytes``: of the files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._places = {path: read_places(LocalFile(path)) for path in files}
        self.total_bytes = sum(path.stat().st_size for path in self._places)
        self.read_bytes = 0

    def names(self) -> Iterator[str]:
        for places in self._places.values():
            yield from places

    def promised(self) -> set[str]:
        """Names in the index beside the files, nothing where there is none."""
        index = next(iter(self._places)).parent / INDEX
        if not index.is_file():
            return set()
        table = load_json(index).get("weight_map")
        if not isinstance(table, dict):
            raise CollabError(f"{index} has no weight_map")
        return set(table)

    def parts(self, choose: Callable[[str], Part | None]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what ``choose`` wants of each tensor, under the name it gives; None leaves it on the disk."""
        for path, places in self._places.items():
            wanted = [
                _Wanted(part.name, place, _rows(name, place, part.rows))
                for name, place in places.items()
                if (part := choose(name)) is not None
            ]
            with RangeReader(path, [one for w in wanted for one in w.ranges]) as file:
                for one in wanted:
                    tensor = one.read(file)
                    self.read_bytes += tensor.nbytes
                    yield one.name, tensor


@dataclass(frozen=True)
class _Wanted:
    """What is read of the tensor at ``place``: ``rows`` of axis 0 in this order, or all of it."""

    name: str
    place: Place
    rows: tuple[int, ...] | None

    @property
    def ranges(self) -> list[Range]:
        start, stop = self.place.start, self.place.stop
        if self.rows is None:
            return [(start, stop)]
        size = (stop - start) // self.place.shape[0]
        return merged([(start + row * size, start + (row + 1) * size) for row in self.rows])

    def read(self, file: RangeReader) -> torch.Tensor:
        ranges = self.ranges
        raw = torch.empty(sum(stop - start for start, stop in ranges), dtype=torch.uint8, device="cpu")
        buffer = memoryview(raw.numpy())
        filled = 0
        for start, stop in ranges:
            file.read_into(start, buffer[filled : filled + stop - start])
            filled += stop - start
        shape = self.place.shape if self.rows is None else (len(self.rows), *self.place.shape[1:])
        return raw.view(DTYPES[self.place.dtype]).reshape(shape)


def _rows(name: str, place: Place, rows: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """``rows`` of a tensor that has them; None for all, and for one number that is all experts' scale."""
    if rows is None or not place.shape:
        return None
    if max(rows) >= place.shape[0]:
        raise CollabError(f"{name} has {place.shape[0]} rows, the plan keeps row {max(rows)}: it is for another model")
    return rows
