"""Sizes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from collab_plugin.errors import CollabError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
_PATTERN = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,12})?)\s*([a-z]*)\s*$", re.IGNORECASE)


def parse_budget(text: str, parameters: int) -> int:
    """Return bytes for "103GB" (10^9), "98.5GiB" (2^30), "2.5bpw" or a plain number of bytes.

    bpw counts bits per weight of the original model: ``parameters`` of them.
    """
    found = _PATTERN.match(text)
    unit = found.group(2).lower() if found else None
    if found is None or (unit not in _UNITS and unit != "bpw"):
        raise CollabError(f"budget {text!r} is no size; write 103GB, 98.5GiB, 2.5bpw or a number of bytes")
    number = Fraction(found.group(1))
    size = int(number * parameters / 8) if unit == "bpw" else int(number * _UNITS[str(unit)])
    if size < 1:
        raise CollabError(f"budget {text!r} is zero")
    return size
