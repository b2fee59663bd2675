"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab_plugin.errors import CollabError
from collab_plugin.planning.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("103GB", 103 * 10**9),
        ("103 gb", 103 * 10**9),
        (" 98.5GiB ", 98 * 2**30 + 2**29),
        ("1.5KiB", 1536),
        ("2MB", 2_000_000),
        ("2mib", 2 * 2**20),
        ("1TB", 10**12),
        ("1TiB", 2**40),
        ("12345", 12345),
        ("12345B", 12345),
        ("0.1GB", 100_000_000),  # not 0.1 in floating point
        ("2.5bpw", 2500),
        ("1.9bpw", 1900),
        ("3BPW", 3000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_budget(text, 8000) == size


def test_bits_per_weight_round_down() -> None:
    assert parse_budget("2.5bpw", 13) == 4  # 32.5 bits


@given(st.integers(1, 10**17))
def test_plain_numbers_are_bytes(size: int) -> None:
    assert parse_budget(str(size), 1) == size


@pytest.mark.parametrize("text", ["", "big", "-3GB", "3 apples", "1,5GB", "GB", "1e9", "NaN", "3GB GB", "1..5GB", "∞"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(CollabError, match="is no size; write 103GB"):
        parse_budget(text, 8000)


@pytest.mark.parametrize("text", ["0", "0GB", "0.4", "0.0001bpw"])
def test_zero(text: str) -> None:
    with pytest.raises(CollabError, match="is zero"):
        parse_budget(text, 8000)
