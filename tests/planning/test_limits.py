"""Smallest and largest types that the user sets."""

from __future__ import annotations

import pytest

from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.type_limits import Limits


def test_floor_ceiling_and_base() -> None:
    limits = Limits.of("iq2_s", {"attention": "q4_k"}, {"attention": "Q6_K", "output": "Q5_K"})
    assert limits.bounds(Role.EXPERT) == ("IQ2_S", "F32")
    assert limits.bounds(Role.ATTENTION) == ("Q4_K", "Q6_K")
    assert limits.bounds(Role.OUTPUT) == ("IQ1_S", "Q5_K")
    assert Limits.of("IQ1_M", {"expert": "Q3_K"}, {}).bounds(Role.EXPERT)[0] == "IQ1_M"


def test_nothing_is_limited_by_default() -> None:
    limits = Limits.of(None, {}, {})
    assert {limits.bounds(role) for role in Role} == {("IQ1_S", "F32")}


def test_contradictions_are_refused() -> None:
    with pytest.raises(CollabError, match=r"floor of attention \(Q6_K\) is above its ceiling \(Q4_K\)"):
        Limits.of(None, {"attention": "Q6_K"}, {"attention": "Q4_K"})
    with pytest.raises(CollabError, match=r"unknown role 'attn'; known: embedding, output, attention"):
        Limits.of(None, {"attn": "Q6_K"}, {})
    with pytest.raises(CollabError, match=r"unknown type 'Q9_K'; known: IQ1_S"):
        Limits.of("Q9_K", {}, {})
