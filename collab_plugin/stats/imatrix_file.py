"""What an importance matrix of llama.cpp holds: GGUF files of any tool, and the old layout before GGUF.

llama.cpp's own reader: common/imatrix-loader.cpp. It takes the tensors ``<weight>.in_sum2`` and ``<weight>.counts``;
newer ones have signed sums ``<weight>.in_sum`` beside, which neither it nor this package quantizes with.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile
from collab_plugin.formats.gguf_header import StoredTensor
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting

SUMS, COUNTS = ".in_sum2", ".counts"
_GATE = re.compile(r"^blk\.(\d+)\.ffn_(?:gate|up|gate_up)_exps\.weight$")
_LONGEST_NAME = 256
_MOST_ENTRIES = 2**20
_MOST_TOKENS = 2.0**53


def imatrix_entries(path: Path, tensors: Mapping[str, StoredTensor], file: ByteFile) -> dict[str, ImatrixEntry]:
    """The entries by weight, from the ``tensors`` of ``file``.

    Raises CollabError for sums without counts and the reverse, types other than F32, and values that are negative
    or not finite.
    """
    entries = {}
    names = {name.removesuffix(end) for name in tensors for end in (SUMS, COUNTS) if name.endswith(end)}
    for weight in sorted(names):
        sums, counts = (_values(path, tensors, file, weight + end) for end in (SUMS, COUNTS))
        if sums is None or counts is None or sums.size % counts.size:
            raise CollabError(
                f"{path}: {weight} has {'counts' if sums is None else 'sums'} without matching "
                f"{'sums' if sums is None else 'counts'}; make the importance matrix again"
            )
        if counts.max(initial=0) > _MOST_TOKENS:
            raise CollabError(f"{path}: {weight} counts {counts.max():g} tokens; make the importance matrix again")
        entries[weight] = ImatrixEntry(sums.reshape(counts.size, -1), counts.reshape(-1))
    return entries


def _values(path: Path, tensors: Mapping[str, StoredTensor], file: ByteFile, name: str) -> NDArray[np.float32] | None:
    stored = tensors.get(name)
    if stored is None:
        return None
    if stored.type != GGMLQuantizationType.F32:
        raise CollabError(f"{path}: {name} is {stored.type.name}, not F32; make the importance matrix again")
    values = file.read(stored.offset, stored.offset + stored.nbytes).view(np.float32)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise CollabError(
            f"{path}: {name} holds values that are not finite or negative; calibrate again, or take another file"
        )
    return values


def counted_routing(entries: Mapping[str, ImatrixEntry]) -> dict[int, LayerRouting]:
    """Routing by layer, of which such a file tells the counts alone.

    An expert with a count and sums that are all zero was not seen: its count says nothing. A matrix in the old layout
    has one count for all experts, which tells no routing.
    """
    routing = {}
    for name, entry in entries.items():
        if (found := _GATE.match(name)) and len(entry.count) > 1:
            count = np.where(entry.sum2.any(axis=1), np.rint(entry.count), 0).astype(np.int64)
            routing[int(found.group(1))] = LayerRouting(0, count)
    return routing


def counted_tokens(entries: Mapping[str, ImatrixEntry]) -> int:
    """Tokens that a tensor without experts met: of a file that does not say how many chunks it was made of."""
    return int(max((entry.count[0] for entry in entries.values() if len(entry.count) == 1), default=0))


def old_format_hint(path: Path) -> str | None:
    """How to convert ``path`` when it is in llama.cpp's old layout, whatever its name; None when it is not.

    The layout: the number of entries, then for each the length of its name, the name, the number of calls, the number
    of values and the values; integers of 32 bits.
    """
    with path.open("rb") as file:
        head = file.read(8 + _LONGEST_NAME)
    if len(head) < 8:
        return None
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + length] if 0 < length <= _LONGEST_NAME else b""
    if not 0 < entries <= _MOST_ENTRIES or len(name) != length or not re.fullmatch(rb"[\x21-\x7e]+", name):
        return None
    out = path.with_suffix(".gguf") if path.suffix != ".gguf" else path.with_name(f"{path.stem}-new.gguf")
    command = f"llama-imatrix -m MODEL.gguf --in-file {shlex.quote(str(path))} -o {shlex.quote(str(out))}"
    return f"{path} is in llama.cpp's old imatrix format: convert it with `{command}` (-m is asked for, but not read)"
