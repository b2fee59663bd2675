"""Safetensors files of a model: found or downloaded by vLLM, read by the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from collab_plugin.checkpoint.safetensors import INDEX
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.errors import CollabError
from collab_vllm.pruning import Part

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig


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
        self._files = tuple(files)
        self.total_bytes = sum(path.stat().st_size for path in self._files)
        self.read_bytes = 0

    def names(self) -> Iterator[str]:
        for _, opened in self._opened():
            yield from opened.keys()

    def promised(self) -> set[str]:
        """Names in the index beside the files, nothing where there is none."""
        index = self._files[0].parent / INDEX
        if not index.is_file():
            return set()
        table = load_json(index).get("weight_map")
        if not isinstance(table, dict):
            raise CollabError(f"{index} has no weight_map")
        return set(table)

    def parts(self, choose: Callable[[str], Part | None]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what ``choose`` wants of each tensor, under the name it gives; None leaves it on the disk."""
        for path, opened in self._opened():
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if (part := choose(name)) is None:
                    continue
                try:
                    tensor = opened.get_tensor(name) if part.rows is None else _rows(opened, name, part.rows)
                except (SafetensorError, IndexError) as error:
                    raise CollabError(f"{path}: {name} cannot be read ({error})") from None
                self.read_bytes += tensor.nbytes
                yield part.name, tensor

    def _opened(self) -> Iterator[tuple[Path, Any]]:
        for path in self._files:
            try:
                with safe_open(path, framework="pt") as opened:
                    yield path, opened
            except SafetensorError as error:
                raise CollabError(f"{path} is not a sound safetensors file ({error}); download it again") from None


def _rows(opened: Any, name: str, rows: tuple[int, ...]) -> torch.Tensor:
    """Rows of axis 0 in the given order; nothing between them is read."""
    stored = opened.get_slice(name)
    if not stored.get_shape():  # one scale for all experts
        return torch.as_tensor(opened.get_tensor(name))
    count = stored.get_shape()[0]
    if max(rows) >= count:
        raise CollabError(f"{name} has {count} rows, the plan keeps row {max(rows)}: it is for another model")
    return torch.cat([stored[start:stop] for start, stop in _runs(rows)])


def _runs(rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """Half-open ranges that give ``rows`` in order."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1] = (runs[-1][0], row + 1)
        else:
            runs.append((row, row + 1))
    return runs
