"""Budgets as people write them, to the byte."""

from __future__ import annotations

import re
from fractions import Fraction

from collab_plugin.errors import CollabError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_LARGEST = 1 << 50


def parse_budget(text: str, parameters: int) -> int:
    """Return bytes, rounded down, for "103GB" (10^9), "98.5GiB" (2^30), "2.5bpw" or plain bytes.

    ``parameters`` is the parameter count of the original model, which bits per weight refer to
    however many experts are kept. Raises CollabError for anything else.
    """
    found = _PATTERN.fullmatch(text)
    unit = found.group(2).upper() if found else ""
    if found is None or (unit != "BPW" and unit not in _UNITS):
        raise CollabError(f"budget {text!r} is not understood: write 103GB, 98.5GiB, 2.5bpw or a number of bytes")
    amount = Fraction(found.group(1))
    exact = amount * parameters / 8 if unit == "BPW" else amount * _UNITS[unit]
    if not 1 <= exact <= _LARGEST:
        raise CollabError(f"budget {text!r} is outside 1 byte to 1 PiB: check the number and its unit")
    return int(exact)


def show_bytes(count: int) -> str:
    """Return ``count`` for people, with the exact number where the unit rounds: "103.00 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
