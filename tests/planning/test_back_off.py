"""What is relaxed, in which order."""

from __future__ import annotations

import pytest

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning.back_off import DEFAULT_BASE, DEFAULT_FLOORS, Limits, next_limits


def _chain(limits: Limits) -> list[tuple[Limits, str]]:
    found = []
    while (step := next_limits(limits)) is not None:
        limits = step[0]
        found.append(step)
    return found


def test_floors_first_then_the_base_a_type_at_a_time() -> None:
    chain = _chain(Limits.start(None, {}, {}, guarded=Role))
    assert [step for _, step in chain] == [
        "floor of attention, ffn, output, shared-expert down to Q2_K",
        "base type of experts down to IQ1_M",
        "base type of experts down to IQ1_S",
        "floor of attention, embedding, ffn, output, shared-expert down to IQ1_S",
    ]
    last = chain[-1][0]
    assert {last.bounds(role)[0] for role in (*DEFAULT_FLOORS, Role.EXPERT)} == {"IQ1_S"}


def test_every_step_is_weaker() -> None:
    limits = Limits.start(None, {}, {}, guarded=Role)
    for weaker, _ in _chain(limits):
        before, after = ([TYPES[low.bounds(role)[0]].bits_per_weight for role in Role] for low in (limits, weaker))
        assert all(b >= a for b, a in zip(before, after, strict=True))
        assert sum(before) > sum(after)
        limits = weaker


def test_what_the_user_set_is_never_relaxed() -> None:
    limits = Limits.start("IQ2_S", {"attention": "Q6_K"}, {}, guarded=Role)
    chain = _chain(limits)
    assert [step for _, step in chain] == [
        "floor of ffn, output, shared-expert down to Q2_K",
        "floor of embedding, ffn, output, shared-expert down to IQ1_S",
    ]
    assert chain[-1][0].bounds(Role.ATTENTION)[0] == "Q6_K"
    assert chain[-1][0].bounds(Role.EXPERT)[0] == "IQ2_S"


def test_start() -> None:
    limits = Limits.start(None, {"expert": "q3_k"}, {"attention": "Q6_K"}, guarded=Role)
    assert limits.bounds(Role.EXPERT) == ("Q3_K", "F32")
    assert limits.bounds(Role.ATTENTION) == ("Q4_K", "Q6_K")
    assert Limits.start(None, {}, {}, guarded=Role).bounds(Role.EXPERT)[0] == DEFAULT_BASE
    assert Limits.start("iq1_m", {}, {}, guarded=Role).bounds(Role.EXPERT)[0] == "IQ1_M"


def test_unguarded_limits_have_no_default_floors() -> None:
    limits = Limits.start(None, {}, {}, guarded=())
    assert {limits.bounds(role) for role in Role} == {("IQ1_S", "F32")}
    assert next_limits(limits) is None


def test_a_default_floor_gives_way_to_a_ceiling() -> None:
    assert Limits.start(None, {}, {"attention": "Q2_K"}, guarded=Role).bounds(Role.ATTENTION) == ("IQ1_S", "Q2_K")


def test_contradictions_are_refused() -> None:
    with pytest.raises(CollabError, match=r"floor of attention \(Q6_K\) is above its ceiling \(Q4_K\)"):
        Limits.start(None, {"attention": "Q6_K"}, {"attention": "Q4_K"}, guarded=Role)
    with pytest.raises(CollabError, match=r"unknown role 'attn'; known: embedding, output, attention"):
        Limits.start(None, {"attn": "Q6_K"}, {}, guarded=Role)
    with pytest.raises(CollabError, match=r"unknown type 'Q9_K'; known: IQ1_S"):
        Limits.start("Q9_K", {}, {}, guarded=Role)
