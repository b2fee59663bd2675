"""Layers that predict further tokens (MTP, nextn): the last blocks of some files, for speculative decoding alone.

No engine runs them for logits, so calibration sees nothing of their routing, and their experts cannot be ranked.
llama.cpp has one number of experts for all layers, these included (llama-model.cpp:1331).
"""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFValueType

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue

KEY = "nextn_predict_layers"


def prediction_layers(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Block numbers of the prediction layers that the file holds.

    CollabError when the metadata claims more of them than there are blocks.
    """
    blocks, count = _counts(checkpoint)
    found = {info.layer for info in checkpoint.tensors.values() if info.layer is not None}
    return tuple(sorted(layer for layer in found if layer >= blocks - count))


def trunk(checkpoint: Checkpoint) -> Checkpoint:
    """The model without its prediction layers, with a note; the checkpoint itself when it has none."""
    layers = prediction_layers(checkpoint)
    return _Trunk(checkpoint, layers) if layers else checkpoint


def _counts(checkpoint: Checkpoint) -> tuple[int, int]:
    """Blocks in all, and prediction layers among them; 2**31 and 0 for a file that says nothing."""
    values = [checkpoint.metadata.get(f"{checkpoint.architecture}.{key}") for key in ("block_count", KEY)]
    blocks, count = (None if v is None else v.value for v in values)
    if count is None or count == 0:
        return 2**31, 0
    if not isinstance(blocks, int) or not isinstance(count, int) or not 0 < count < blocks:
        raise CollabError(f"{checkpoint.address} claims {count} prediction layers among {blocks} layers")
    return blocks, count


class _Trunk(Checkpoint):
    def __init__(self, whole: Checkpoint, dropped: tuple[int, ...]) -> None:
        self.path, self.format, self._whole = whole.path, whole.format, whole
        blocks, count = _counts(whole)
        left = blocks - count
        arch = whole.architecture
        self.metadata = {
            key: MetaValue(meta.value[:left], meta.type, meta.subtype)
            if key.startswith(f"{arch}.") and isinstance(meta.value, list) and len(meta.value) == blocks
            else meta
            for key, meta in whole.metadata.items()
        } | {
            f"{arch}.block_count": MetaValue(left, GGUFValueType.UINT32),
            f"{arch}.{KEY}": MetaValue(0, GGUFValueType.UINT32),
        }
        self.tensors = {name: info for name, info in whole.tensors.items() if info.layer not in dropped}
        lost = sum(info.nbytes for info in whole.tensors.values() if info.layer in dropped)
        self.notes = (
            *whole.notes,
            f"DROPPED: {layers_in_words(dropped)}, {lost:,} bytes for speculative decoding: no engine shows their "
            "routing, so their experts cannot be chosen, and llama.cpp has one number of experts for all layers "
            "(`keep` 100% prunes nothing and leaves them)",
        )

    @property
    def address(self) -> str:
        return self._whole.address

    def local(self) -> Path:
        return self._whole.local()

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        return self._whole.read(name, expert=expert, rows=rows)

    def by_rows(self, name: str) -> bool:
        return self._whole.by_rows(name)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        return self._whole.read_raw(name, expert=expert, rows=rows)


def layers_in_words(layers: tuple[int, ...]) -> str:
    """Such as "prediction layer blk.61" or "prediction layers blk.61 to blk.63"."""
    first, last = layers[0], layers[-1]
    return f"prediction layer blk.{first}" if first == last else f"prediction layers blk.{first} to blk.{last}"
