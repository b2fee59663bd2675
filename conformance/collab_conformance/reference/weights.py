"""Dequantized weights as float64 tensors, made when first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from collab_conformance.reference.model_file import ModelFile
from collab_plugin.errors import CollabError


class ReferenceWeights:
    """Keeps up to ``most_bytes`` of what it made; beyond that weights are made anew each time. ``scales``: tensors
    by name, multiplied."""

    def __init__(self, file: ModelFile, scales: Mapping[str, float], most_bytes: int = 4 * 2**30) -> None:
        self.file, self._scales, self._left = file, scales, most_bytes
        self._made: dict[tuple[str, int | None], torch.Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], expert: int | None = None) -> torch.Tensor:
        """The tensor f64[shape], or f64[shape] of one expert; a size of -1 is any. CollabError when the file
        lacks it or has another shape."""
        key = (name, expert)
        if key not in self._made:
            tensor = self._make(name, expert)
            if self._left < tensor.nbytes:
                return _checked(tensor, name, shape)
            self._left -= tensor.nbytes
            self._made[key] = tensor
        return _checked(self._made[key], name, shape)

    def _make(self, name: str, expert: int | None) -> torch.Tensor:
        if name not in self.file.tensors:
            raise CollabError(f"{self.file.path} has no tensor {name}")
        made = torch.from_numpy(self.file.values(name, expert).astype("float64")) * self._scales.get(name, 1.0)
        scale = f"{name.removesuffix('weight')}scale"
        if expert is not None and name.endswith("_exps.weight") and scale in self.file.tensors:
            made = made * float(self.file.values(scale)[expert])  # which blocks of NVFP4 leave out
        return made


def _checked(tensor: torch.Tensor, name: str, shape: Sequence[int]) -> torch.Tensor:
    if len(shape) != tensor.ndim or any(want not in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)):
        raise CollabError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor
