"""Options that criteria and allocators declare, and that nothing else in the core knows them by name."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_models.model_bench import Bench

from collab_plugin.errors import CollabError
from collab_plugin.planning.allocators.knapsack import KNAPSACK, UNIFORM
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.criteria.choose_criterion import criterion_and_notes, usable_criterion
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.options import Option, option_values
from collab_plugin.stats.stats import LayerRouting

ROOT = Path(__file__).parents[2]
OPTIONS = (
    Option("share", 0.5, "a share", lambda value: None if 0 <= float(value) <= 1 else "is not a share"),
    Option("count", 3, "a count"),
    Option("word", "none", "a word"),
)
COUNTS = LayerRouting(10, np.array([1, 2, 3]))


def test_defaults_and_given_values() -> None:
    assert option_values(OPTIONS, {}, "it") == {"share": 0.5, "count": 3, "word": "none"}
    given = option_values(OPTIONS, {"share": "0.25", "count": "7", "word": "some"}, "it")
    assert given == {"share": 0.25, "count": 7, "word": "some"}
    assert [type(v) for v in given.values()] == [float, int, str]
    assert option_values(OPTIONS, {"share": 1, "count": 7.0}, "it") == {"share": 1.0, "count": 7, "word": "none"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "1"}, "it has no option 'size'; it has share, count, word"),
        ({"share": "half"}, "it: option share is 'half', which is not a number (a share; default 0.5)"),
        ({"share": "2"}, "it: option share is 2.0, which is not a share (a share; default 0.5)"),
        ({"count": "1.5"}, "it: option count is '1.5', which is not a whole number (a count; default 3)"),
        ({"count": 1.5}, "it: option count is 1.5, which is not a whole number (a count; default 3)"),
        ({"count": float("inf")}, "it: option count is inf, which is not a whole number (a count; default 3)"),
    ],
)
def test_what_is_refused(given: dict[str, float | int | str], message: str) -> None:
    with pytest.raises(CollabError) as error:
        option_values(OPTIONS, given, "it")
    assert str(error.value) == message


def test_a_criterion_names_the_one_to_use_without_weights() -> None:
    """By what it declares, not by its name: one that a plugin brings can do the same."""
    plain = ImportanceCriterion("plain", "plain counts", lambda routing, options: routing.count.astype(np.float64))
    fancy = ImportanceCriterion("fancy", "", plain.score, ("weight_sum",), without_weights=plain)
    assert usable_criterion(fancy, COUNTS) is plain
    assert criterion_and_notes(fancy, COUNTS, "")[1] == (
        "FREQUENCY ONLY: the stats are an imatrix of another tool without router weights, so experts are chosen by "
        "plain counts",
    )
    alone = ImportanceCriterion("alone", "", plain.score, ("reap_sum",), without_weights=fancy)
    assert usable_criterion(alone, COUNTS) is None
    with pytest.raises(CollabError, match="criterion alone needs reap_sum, which the stats lack"):
        criterion_and_notes(alone, COUNTS, "")


def test_options_given_for_a_criterion_are_not_those_of_its_replacement(softmax: Bench) -> None:
    freq_score = next(c for c in CRITERIA if c.without_weights is not None)
    routing = {n: LayerRouting(r.tokens, r.count) for n, r in softmax.source.stats.routing.items()}
    source = dataclasses.replace(softmax.source, stats=dataclasses.replace(softmax.source.stats, routing=routing))
    planning = softmax.planning(source=source, criterion=freq_score, criterion_options={"alpha": 0.2})
    assert planning.criterion is freq_score.without_weights
    assert planning.criterion_options == {}
    assert planning.rule == "freq groups=none"


def test_no_name_is_tested_in_the_core() -> None:
    """What a criterion or an allocator needs of the core it declares; `if name == "uniform"` would shut plugins out."""
    # "auto" is also a value of other options, as of keep.
    names = {thing.name for thing in (*CRITERIA, KNAPSACK, UNIFORM)} - {"auto"}
    constants = {"KNAPSACK", "UNIFORM"}
    found = []
    for path in sorted((ROOT / "collab_plugin").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            for part in (part for side in (node.left, *node.comparators) for part in ast.walk(side)):
                by_text = isinstance(part, ast.Constant) and part.value in names
                by_constant = isinstance(part, ast.Name) and part.id in constants
                if by_text or by_constant:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
