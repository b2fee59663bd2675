"""How an artifact is run: what its memory depends on beside its own sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from collab_plugin.errors import CollabError

CELLS = 256
"""llama.cpp rounds the context up to a multiple of it (llama-context.cpp:290)."""
UBATCH = 512
"""Tokens that llama.cpp computes at a time by default."""

KvType = Literal["f32", "f16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class RunSetup:
    """How an artifact is run: ``sequences`` at once of ``context`` tokens each, the type of the KV cache, bytes left
    free (``reserve``), and tokens computed at a time (``ubatch``)."""

    context: int = 8192
    sequences: int = 1
    kv_type: KvType = "f16"
    reserve: int = 2**30
    ubatch: int = UBATCH

    def __post_init__(self) -> None:
        for name in ("context", "sequences", "ubatch"):
            if getattr(self, name) < 1:
                raise CollabError(f"`{name}` is {getattr(self, name)}; it must be 1 or more")
        if self.kv_type not in (kinds := get_args(KvType)):
            raise CollabError(f"`kv_type` is {self.kv_type!r}; known: {', '.join(kinds)}")

    @property
    def cells(self) -> int:
        """Tokens that the cache has room for."""
        return self.sequences * (-(-self.context // CELLS) * CELLS)

    @property
    def kv_value_bytes(self) -> float:
        """Bytes of one cached value."""
        # Here, because the command line makes this object for its help, and gguf takes half a second to load.
        from collab_plugin.formats.ggml_types import bits_per_weight

        return bits_per_weight(self.kv_type.upper()) / 8


DEFAULT_SETUP = RunSetup()
