"""What went into and came out of the routed experts of each layer for some tokens: what repairs are fitted to.

A GGUF file that no program but ours reads. Page: docs/formats/samples.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from collab_plugin.checkpoint.gguf import open_shard
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile
from collab_plugin.formats.gguf_header import StoredTensor
from collab_plugin.formats.gguf_layout import TensorSpec, layout
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.output_path import check_output, writing
from collab_plugin.formats.tensor_names import layer_of

F32 = NDArray[np.float32]
VERSION = 1
KIND = "collab-samples"
MOST = 1e6
"""What experts take in was normalised before; the largest activations of a stream are some 10⁴."""
INPUT, OUTPUT = "collab_block_input", "collab_routed_output"


@dataclass(frozen=True)
class LayerSample:
    """Of one layer, a row a token: ``inputs`` f32[n, d] of its experts; ``outputs`` f32[n, d], the sum of what the
    chosen experts gave, times their router weights, without shared experts."""

    inputs: F32
    outputs: F32

    def check(self, path: Path) -> None:
        """CollabError, naming the file ``path``, for values that are not finite or larger than `MOST`."""
        for values in (self.inputs, self.outputs):
            if not max(values.max(initial=0), -values.min(initial=0)) <= MOST:  # NaN is not
                raise CollabError(f"{path} holds numbers that no model gives (NaN, or over {MOST:.0e}); sample again")


@dataclass(frozen=True)
class BlockSamples:
    """``layers`` by block number, of the file ``path``. Rows stand in windows of ``ctx`` tokens.
    ``model_id``: of the model that ran (checkpoint/identity.py)."""

    path: Path
    model_id: str
    ctx: int
    tokens: int
    layers: Mapping[int, LayerSample]

    def first(self, layer: int, tokens: int) -> LayerSample:
        """The first so many ``tokens`` of a layer, of which alone is read."""
        if isinstance(self.layers, _Layers):
            return self.layers.first(layer, tokens)
        sample = self.layers[layer]
        return LayerSample(sample.inputs[:tokens], sample.outputs[:tokens])


def read_samples(path: str | os.PathLike[str]) -> BlockSamples:
    """Open a samples file; CollabError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise CollabError(f"the samples file {path} does not exist")
    header, file = open_shard(path)
    meta = {key: value.value for key, value in header.metadata.items()}
    if meta.get("general.type") != KIND or meta.get("collab.samples.version") != VERSION:
        raise CollabError(f"{path} is no samples file of this version; give what `sample` wrote")
    layers = _Layers(file, header.tensors)
    shapes = {header.tensors[_name(layer, kind)].shape for layer in layers for kind in (INPUT, OUTPUT)}
    ctx = meta.get("collab.samples.ctx")
    # Whole windows alone are sampled.
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or not isinstance(ctx, int) or not 1 <= ctx <= shape[0]:
        raise CollabError(f"{path} is damaged; sample again")
    return BlockSamples(path, str(meta.get("collab.samples.model_id", "")), ctx, shape[0], layers)


class _Layers(Mapping[int, LayerSample]):
    """The layers of a file, each read when it is asked for."""

    def __init__(self, file: ByteFile, tensors: Mapping[str, StoredTensor]) -> None:
        self._file, self._tensors = file, tensors
        numbers = {layer_of(name) for name, t in tensors.items() if t.type == GGMLQuantizationType.F32}
        self._numbers = sorted(
            n for n in numbers if n is not None and {_name(n, INPUT), _name(n, OUTPUT)} <= set(tensors)
        )

    def __getitem__(self, layer: int) -> LayerSample:
        return LayerSample(*(self._array(_name(layer, kind)) for kind in (INPUT, OUTPUT)))

    def first(self, layer: int, tokens: int) -> LayerSample:
        """See `BlockSamples.first`."""
        return LayerSample(*(self._array(_name(layer, kind), tokens) for kind in (INPUT, OUTPUT)))

    def __contains__(self, layer: object) -> bool:
        return layer in self._numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _array(self, name: str, tokens: int | None = None) -> F32:
        t = self._tensors[name]
        rows = t.shape[0] if tokens is None else min(tokens, t.shape[0])
        data = self._file.read(t.offset, t.offset + t.nbytes // t.shape[0] * rows)
        return data.view(np.float32).reshape(rows, t.shape[1])


def _name(layer: int, kind: str) -> str:
    return f"blk.{layer}.{kind}"


@contextmanager
def writing_samples(
    out: Path, layers: Sequence[int], tokens: int, width: int, *, ctx: int, model_id: str, engine: str
) -> Iterator[dict[int, LayerSample]]:
    """Arrays f32[tokens, width] of each layer to fill; the file is ``out`` when the body succeeds, and else none."""
    check_output(out)
    keys = {
        "general.type": MetaValue(KIND, GGUFValueType.STRING),
        "collab.samples.version": MetaValue(VERSION, GGUFValueType.UINT32),
        "collab.samples.ctx": MetaValue(ctx, GGUFValueType.UINT32),
        "collab.samples.model_id": MetaValue(model_id, GGUFValueType.STRING),
        "collab.samples.engine": MetaValue(engine, GGUFValueType.STRING),
    }
    names = [_name(layer, kind) for layer in layers for kind in (INPUT, OUTPUT)]
    made = layout(keys, [TensorSpec(name, (tokens, width), GGMLQuantizationType.F32) for name in names])
    part = out.with_name(out.name + ".partial")
    try:
        with writing(out, made.total):
            with part.open("wb") as file:
                file.write(made.header)
                file.truncate(made.total)
            data = np.memmap(part, np.uint8, "r+")
        arrays = {
            name: data[made.offsets[name] : made.offsets[name] + made.sizes[name]]
            .view(np.float32)
            .reshape(tokens, width)
            for name in names
        }
        yield {layer: LayerSample(arrays[_name(layer, INPUT)], arrays[_name(layer, OUTPUT)]) for layer in layers}
        with writing(out, made.total):
            data.flush()
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
