"""Files with something changed: headers, configs, indexes and documents as broken tools and disks leave them.

`mutant` is a pure function of its seed, so that a file which is handled badly can be made again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator
_NUMBERS = (0, 1, 2, 3, 7, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 2**70, 1e308, -1e308, 0.5, float("nan"), float("inf"), -0.0),
    *(
        "",
        "x",
        "0",
        "é\u2028",
        "\ud800",
        "../x",
        "a" * 300,
        "/",
        "\0",
        "%s",
        [],
        [1],
        ["a"],
        [[]],
        [None],
        {},
        {"a": 1},
    ),
)


def mutated_bytes(data: bytes, random: Random, header: int) -> bytes:
    """One to three changes within the first ``header`` bytes: a byte, a number, a cut, an insertion, a repetition."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(0, max(min(header, len(out)), 1)))
        what = int(random.integers(0, 6))
        width = int(random.choice([1, 4, 8]))
        if what == 0:
            out[at : at + 1] = bytes([int(random.integers(0, 256))])
        elif what == 1:
            number = int(_NUMBERS[int(random.integers(0, len(_NUMBERS)))])
            out[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif what == 2:
            del out[at : at + int(random.integers(1, 40))]
        elif what == 3:
            out[at:at] = random.integers(0, 256, int(random.integers(1, 24)), np.uint8).tobytes()
        elif what == 4:
            piece = bytes(out[at : at + int(random.integers(1, 64))])
            to = int(random.integers(0, max(min(header, len(out)), 1)))
            out[to : to + len(piece)] = piece
        else:
            del out[int(random.integers(0, len(out) + 1)) :]
    return bytes(out)


def mutated_json(data: bytes, random: Random) -> bytes:
    """One to three changes of a JSON document: a value, a member left out, renamed, moved or doubled, or its bytes."""
    document = json.loads(data)
    for _ in range(int(random.integers(1, 4))):
        places = list(_places(document))
        if not places:
            break
        holder, key = places[int(random.integers(0, len(places)))]
        what = int(random.integers(0, 6))
        if what == 0 and isinstance(holder, dict):
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[f"{key}{random.choice(['x', '', ' ', '0'])}"] = holder.pop(key)
        elif what == 2:
            other, name = places[int(random.integers(0, len(places)))]
            holder[key] = copy.deepcopy(other[name] if _has(other, name) else None)
        elif what == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = _near(holder[key], random)
        elif what == 4 and isinstance(holder, list):
            holder.insert(int(random.integers(0, len(holder) + 1)), copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(_VALUES[int(random.integers(0, len(_VALUES)))])
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    return mutated_bytes(text, random, len(text)) if random.random() < 0.15 else text


def _near(value: float, random: Random) -> float:
    factors: tuple[Callable[[float], float], ...] = (
        lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 2, lambda v: v * 2**40, lambda v: v / 3,
    )  # fmt: skip
    return factors[int(random.integers(0, len(factors)))](value)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any) -> Any:
    """Every (holder, key) of a document, of long lists the first and last alone."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for index in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield value, index
            yield from _places(value[index])


def mutated_safetensors(data: bytes, random: Random) -> bytes:
    """Its header as JSON, or its bytes."""
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.3:
        return mutated_bytes(data, random, 8 + size)
    header = mutated_json(data[8 : 8 + size], random)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutant(data: bytes, kind: str, seed: int, header: int) -> bytes:
    """``data`` changed; ``kind``: "bytes" (in the first ``header``), "json" or "safetensors"."""
    random = np.random.default_rng(seed)
    if kind == "json":
        return mutated_json(data, random)
    return mutated_safetensors(data, random) if kind == "safetensors" else mutated_bytes(data, random, header)
