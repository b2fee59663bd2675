"""The GGUF that `compress` made of the plan: its blocks are the expert weights, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collab_plugin.checkpoint.checkpoint import Bytes
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import row_bytes
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_vllm.experts.ggml.dequantize import SUPPORTED

PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Matrices:
    """One projection of a layer's experts: ``type`` of ggml, [experts, rows, columns]."""

    type: str
    experts: int
    rows: int
    columns: int


class ArtifactBlocks:
    """``layers[block][part]``: the experts' matrices, part of "gate", "up", "down"."""

    def __init__(self, path: Path, plan: Plan) -> None:
        if not path.is_file():
            raise CollabError(f"the artifact {path} does not exist; make it with `collab-plugin compress`")
        self._gguf = open_gguf(path)
        made_of = self._gguf.metadata.get("collab.plan.fingerprint")
        if made_of is None or made_of.value != plan_fingerprint(plan):
            raise CollabError(f"{path} was not made of this plan; compress with it, or give the plan that made it")
        self.path = path
        self.read_bytes = 0
        self.layers = self._layers()

    def _layers(self) -> Mapping[int, Mapping[str, Matrices]]:
        found: dict[int, dict[str, Matrices]] = {}
        for name, info in self._gguf.tensors.items():
            part = name.rpartition("ffn_")[2].removesuffix("_exps.weight")
            if info.layer is None or not name.endswith("_exps.weight"):
                continue
            if part not in PARTS:
                raise CollabError(f"{self.path} has fused experts ({name}), which vLLM cannot take from a GGUF here")
            if info.type.name not in SUPPORTED:
                raise CollabError(f"{self.path}: {name} is {info.type.name}; supported: {', '.join(sorted(SUPPORTED))}")
            found.setdefault(info.layer, {})[part] = Matrices(info.type.name, *info.shape)
        return found

    def rows(self, layer: int, part: str, expert: int, start: int, count: int) -> Bytes:
        """Stored bytes of ``count`` rows: uint8[count, bytes a row]."""
        return self._counted(self._gguf.read_raw(_name(layer, part), expert=expert, rows=slice(start, start + count)))

    def columns(self, layer: int, part: str, expert: int, start: int, count: int) -> Bytes:
        """Stored bytes of ``count`` columns of all rows; both ends at a block's: uint8[rows, bytes]."""
        kind = self.layers[layer][part].type
        raw = self._gguf.read_raw(_name(layer, part), expert=expert)
        return self._counted(raw[:, row_bytes(kind, start) : row_bytes(kind, start + count)])

    def _counted(self, raw: Bytes) -> Bytes:
        self.read_bytes += raw.nbytes
        return np.ascontiguousarray(raw)


def _name(layer: int, part: str) -> str:
    return f"blk.{layer}.ffn_{part}_exps.weight"
