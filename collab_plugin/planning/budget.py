"""Sizes as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from collab_plugin.errors import CollabError

_UNITS: Mapping[str, int] = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
_PATTERN = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,12})?)\s*([a-z]*)\s*$", re.IGNORECASE)


def parse_budget(text: str, parameters: int) -> int:
    """Return bytes for "103GB" (10^9), "98.5GiB" (2^30), "2.5bpw" or a plain number of bytes.

    bpw counts bits per weight of the original model: ``parameters`` of them.
    """
    return _parse(text, "budget", "103GB, 98.5GiB, 2.5bpw", dict(_UNITS) | {"bpw": Fraction(parameters, 8)})


def parse_size(text: str, name: str) -> int:
    """Return bytes for "128GB", "96GiB" or a plain number of bytes; ``name`` of the parameter, for the error."""
    return _parse(text, f"`{name}`", "128GB, 96GiB", _UNITS)


def _parse(text: str, name: str, examples: str, units: Mapping[str, int | Fraction]) -> int:
    found = _PATTERN.match(text)
    unit = units.get(found.group(2).lower()) if found else None
    if found is None or unit is None:
        raise CollabError(f"{name} {text!r} is no size; write {examples} or a number of bytes")
    size = int(Fraction(found.group(1)) * unit)
    if size < 1:
        raise CollabError(f"{name} {text!r} is zero")
    return size
