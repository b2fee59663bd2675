"""Hypothesis strategies for plans that the planner could have made."""

from __future__ import annotations

from hypothesis import strategies as st

from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.plans.plan import (
    Activation,
    Calibration,
    Plan,
    Point,
    Pruning,
    Repair,
    SensitivityFile,
    Source,
    TensorPlan,
    requirements_of,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SIZE = st.integers(0, 2**53)
_FIGURE = st.floats(0, 1e12)
_SHA = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}")
# Whole floats come back as integers from `float | int | str`, and equal them.
_OPTIONS = st.dictionaries(_TEXT, st.one_of(_FIGURE, _SIZE, _TEXT), max_size=3)


@st.composite
def pruning(draw: st.DrawFn) -> Pruning:
    experts = draw(st.integers(2, 64))
    count = draw(st.integers(1, experts))
    layers = draw(st.lists(st.integers(0, 999), unique=True, max_size=4))
    # A pair of layers may keep fewer and more, so that the mean stays.
    spread = draw(st.integers(0, min(count - 1, experts - count))) if len(layers) > 1 else 0
    counts = [count - spread, count + spread, count, count]
    return Pruning(
        criterion=draw(_TEXT),
        options=draw(_OPTIONS),
        normalisation=draw(_TEXT),
        group_policy=draw(st.sampled_from(["none", "balanced", "disband"])),
        expert_count=count,
        kept={
            layer: tuple(draw(st.lists(st.integers(0, experts - 1), min_size=n, max_size=n, unique=True)))
            for layer, n in zip(layers, counts, strict=False)
        },
        mass_lost=draw(st.none() | st.floats(0, 1)),
        order=draw(st.sampled_from(["original", "importance"])),
        layers=draw(st.sampled_from(["same", "varied"])),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    pruned = draw(pruning())
    fewest = min((pruned.expert_count, *pruned.counts))
    calibration = st.builds(
        Calibration,
        sha256=_SHA,
        tokens=_SIZE,
        datasets=st.lists(_TEXT, max_size=2).map(tuple),
        engine=_TEXT,
        frequency_only=st.booleans(),
        unseen=_SIZE,
        borrow=_FIGURE,
        text_sketch=_TEXT,
        file=st.just("stats.gguf"),
    )
    tensor = st.builds(TensorPlan, type=st.sampled_from(sorted(TYPES)), nbytes=_SIZE, error=st.none() | _FIGURE)
    point = st.builds(
        Point,
        kind=st.sampled_from(["candidate", "front", "baseline"]),
        label=_TEXT,
        expert_count=_SIZE,
        experts_used=_SIZE,
        bytes=_SIZE,
        predicted_kld=_FIGURE,
        measured_kld=st.none() | _FIGURE,
        chosen=st.booleans(),
    )
    return Plan(
        source=draw(st.builds(Source, _SHA, _SHA, _TEXT, _TEXT, _TEXT, _SIZE, _SIZE)),
        requires=requirements_of(pruned),
        calibration=draw(st.none() | calibration),
        pruning=pruned,
        activation=Activation(draw(st.integers(1, 64)), draw(st.integers(1, fewest)), draw(_TEXT)),
        metadata=draw(st.dictionaries(_TEXT, st.none() | _SIZE, max_size=3)),
        tensors=draw(st.dictionaries(_TEXT, tensor, max_size=4)),
        budget=draw(st.none() | _SIZE),
        bytes=draw(_SIZE),
        bits_per_weight=draw(_FIGURE),
        predicted_kld=draw(st.none() | _FIGURE),
        prediction=draw(_TEXT),
        sensitivity=draw(st.none() | st.builds(SensitivityFile, sha256=_SHA, file=st.just("sensitivity.json"))),
        considered=tuple(draw(st.lists(point, max_size=2))),
        allocator=draw(_TEXT),
        allocator_options=draw(_OPTIONS),
        base=draw(_TEXT),
        notes=tuple(draw(st.lists(_TEXT, max_size=2))),
        versions=draw(st.dictionaries(_TEXT, _TEXT, max_size=2)),
        repair=draw(st.none() | st.builds(Repair, sha256=_SHA, tokens=_SIZE, file=st.just("samples.gguf"))),
    )
