"""The reference as others call it: numpy in, numpy out; torch only where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collab_conformance.reference.hyperparameters import Hyperparameters, read_hyperparameters
from collab_conformance.reference.model_file import ModelFile, open_model
from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class RoutingLayer:
    """Experts chosen: ``ids`` i32[tokens, k] by falling score, ``weights`` f64[tokens, k] as they are used,
    ``margins`` f64[tokens] (router.py)."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float64]
    margins: NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceRun:
    """``logits`` f64[tokens, vocabulary], and the routing of every MoE layer by its number, ascending."""

    logits: NDArray[np.float64]
    routing: Mapping[int, RoutingLayer]


def check_reference(path: Path, instead: str = "") -> None:
    """CollabError when the reference of ``path`` cannot be computed here; ``instead``: what else there is to do.

    Told before any work: only the file's header is read.
    """
    _computable(path, open_model(path), instead)


def _computable(path: Path, file: ModelFile, instead: str = "") -> Hyperparameters:
    found = read_hyperparameters(path, file.architecture, file.keys)
    if find_spec("torch") is None:
        raise CollabError(f"the reference needs PyTorch: pip install 'collab-plugin[verify]'{instead}")
    return found


class ReferenceModel:
    """A GGUF of a family that the reference knows, single or split; in float64 and without haste.

    CollabError without torch, for another architecture (`read_hyperparameters`), and for files that hold
    keys or tensors it does not compute with. Weights are dequantized when first needed. ``scales``: tensors by
    name to multiply, which tells what a scale that is off does to the logits; ValueError for one the file lacks.
    """

    def __init__(self, path: Path, scales: Mapping[str, float] | None = None) -> None:
        file = open_model(path)
        if missing := set(scales or ()) - set(file.tensors):
            raise ValueError(f"{path} has no tensor {min(missing)}")
        self.hyperparameters = _computable(path, file)
        from collab_conformance.reference.decoder import ReferenceDecoder

        self._decoder = ReferenceDecoder(file, self.hyperparameters, scales or {})
        self.vocabulary = len(self._decoder.embedding)

    def run(self, tokens: Sequence[int]) -> ReferenceRun:
        """One sequence from its start. ValueError for none, and for ids that the vocabulary lacks."""
        if not tokens or not all(0 <= token < self.vocabulary for token in tokens):
            raise ValueError(f"{len(tokens)} tokens, not all of them among {self.vocabulary}")
        logits, chosen = self._decoder.run(list(tokens))
        routing = {
            layer: RoutingLayer(c.ids.numpy().astype(np.int32), c.weights.numpy(), c.margins.numpy())
            for layer, c in chosen.items()
        }
        return ReferenceRun(logits.numpy(), routing)

    def versions(self) -> dict[str, str]:
        """Of what the numbers come from."""
        return {name: version(name) for name in ("torch", "gguf", "numpy")}
