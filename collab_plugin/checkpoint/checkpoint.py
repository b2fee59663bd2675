"""What every checkpoint format offers: metadata and tensors under GGUF names, read piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from collab_plugin.checkpoint.files.model_files import ModelFiles
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import Role

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


# llama-quant.cpp:285-330 (tensor_allows_quantization).
_NEVER = ("_norm.weight", "ffn_gate_inp", "ffn_gate_tid2eid", "altup", "laurel", "per_layer_model_proj",
          "position_embd", "token_types", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
          "indexer.q_proj.weight")  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a GGUF file would hold it.

    ``shape`` is in numpy order: the row width (ggml ``ne[0]``) last; for expert-indexed tensors the
    expert axis is axis 0. ``type`` is the storage type: of a GGUF its own, of a Hugging Face
    checkpoint the one that loses nothing (BF16, F16 or F32; FP8 with scales counts as BF16).
    ``nbytes`` is the size at ``type``, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int
    role: Role
    layer: int | None

    @property
    def by_expert(self) -> bool:
        """True when axis 0 counts routed experts (expert weights, router rows, router bias)."""
        return self.role in (Role.EXPERT, Role.ROUTER, Role.ROUTER_BIAS)

    @property
    def n_elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def quantizable(info: TensorInfo) -> bool:
    """True when the tensor may be quantized: matrices, but never routers, norms or the like."""
    return (
        len(info.shape) in (2, 3)
        and info.name.endswith("weight")
        and info.role not in (Role.NORM, Role.ROUTER, Role.ROUTER_BIAS)
        and not any(part in info.name for part in _NEVER)
    )


class Checkpoint(ABC):
    """A read-only view of one model. Reading is thread-safe.

    ``metadata`` holds GGUF keys (``general.architecture``, ``<arch>.expert_count``, tokenizer
    and all); ``tensors`` GGUF names in file order; ``notes`` what was left out or changed on the
    way in (an MTP layer dropped, say), one sentence each. ``path`` is the file or folder on this machine; of a model
    elsewhere it is the folder of what was fetched, and `local` fetches the rest.
    """

    path: Path
    format: str
    metadata: Mapping[str, MetaValue]
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"].value)

    @abstractmethod
    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        """Return values as float32.

        Without arguments the whole tensor in ``shape``. ``expert`` picks one index of axis 0 and
        drops that axis, touching no other expert's bytes. ``rows`` picks a range of the
        second-to-last axis of what is left (a 2-D block; 3-D tensors need ``expert`` first).

        Raises CollabError for values that are not finite, naming the tensor.
        """

    @abstractmethod
    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        """Return the stored bytes at ``tensors[name].type``: uint8, last axis = bytes a row."""

    def by_rows(self, name: str) -> bool:
        """Whether reading the tensor's matrices a few rows at a time takes no longer than whole: they lie in files of
        this machine, row behind row."""
        return False

    @property
    def address(self) -> str:
        """How messages and documents name it."""
        return str(self.path)

    def local(self) -> Path:
        """The file or folder on this machine, for programs that read it themselves; fetched first from elsewhere."""
        return self.path

    def check_conversion(self) -> None:  # noqa: B027 - most formats have nothing to compare
        """Called before a GGUF is written: CollabError when its metadata would not do what the source does."""


@dataclass(frozen=True)
class CheckpointFormat:
    """A way to open a model.

    ``matches`` looks at names of files, cheaply, and never raises; ``open`` raises CollabError for whatever is wrong
    with them.
    """

    name: str
    description: str
    matches: Callable[[ModelFiles], bool]
    open: Callable[[ModelFiles], Checkpoint]
