"""Write down what goes into the routed experts of each layer and what comes out of them (cb_eval)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.job_types import SampleJob
from collab_llamacpp.native.model import MUL_MAT_ID, LoadedModel, read_tensor, tensor_at
from collab_llamacpp.native.observe import Observer
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance
from collab_plugin.repair.samples import LayerSample, writing_samples

_OP, _NAME = GgmlTensor.op.offset, GgmlTensor.name.offset
# One of them is in every layer with experts; each multiplies what went in.
_FIRST = re.compile(rb"^blk\.(\d+)\.ffn_(?:up|gate_up)_exps\.weight$")
_OUT = re.compile(rb"^ffn_moe_out-(\d+)$")


class Sampler(Observer):
    """Fills ``layers``, micro-batch after micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Mapping[int, LayerSample] = {}
        self.written: dict[tuple[str, int], int] = {}

    def wanted(self, address: int) -> bool:
        return self._input_of(address) is not None or _OUT.match(ctypes.string_at(address + _NAME)) is not None

    def take(self, address: int) -> bool:
        if (layer := self._input_of(address)) is not None:
            self._write("inputs", layer, read_tensor(tensor_at(address).src[1]))
        elif found := _OUT.match(ctypes.string_at(address + _NAME)):
            self._write("outputs", int(found[1]), read_tensor(address))
        return True

    def finish(self) -> None:
        """Raise what went wrong in a callback, and CollabError where the graph did not show every token."""
        super().finish()
        for layer, sample in self.layers.items():
            for what in ("inputs", "outputs"):
                if self.written.get((what, layer)) != len(sample.inputs):
                    raise CollabError(f"the {what} of the experts of layer {layer} are not seen when this model runs")

    def _input_of(self, address: int) -> int | None:
        if ctypes.c_int.from_address(address + _OP).value != MUL_MAT_ID:
            return None
        found = _FIRST.match(bytes(tensor_at(tensor_at(address).src[0]).name))
        return int(found[1]) if found else None

    def _write(self, what: str, layer: int, values: NDArray[Any]) -> None:
        if layer not in self.layers:
            return
        rows = values.reshape(-1, values.shape[-1])
        if not np.isfinite(rows).all():
            raise CollabError(f"the {what} of the experts of layer {layer} are not finite: the weights are damaged")
        at = self.written.get((what, layer), 0)
        getattr(self.layers[layer], what)[at : at + len(rows)] = rows
        self.written[what, layer] = at + len(rows)


def sample(job: SampleJob, progress: Advance) -> None:
    """All windows through the model with every logit on: without, the last layer sees one token a batch."""
    ctx = job.cut.ctx
    sampler = Sampler()
    with LoadedModel(Path(job.model), ctx=ctx, threads=job.threads, callback=sampler.callback) as session:
        windows = session.windows(job.cut)
        with writing_samples(
            Path(job.out),
            job.layers,
            len(windows) * ctx,
            job.width,
            ctx=ctx,
            model_id=job.model_id,
            engine=job.engine,
        ) as layers:
            sampler.layers = layers
            for index, window in enumerate(windows):
                session.clear()
                session.decode(window, 0)
                if sampler.error is not None:
                    break
                progress((index + 1) * ctx, len(windows) * ctx)
            llama.llama_synchronize(session.ctx)
            sampler.finish()
