"""One self-contained HTML page: plots inline, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin import __version__
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.introduction import opening
from collab_plugin.reports.number_words import clean
from collab_plugin.reports.tables import (
    Table,
    bits_table,
    evaluations_table,
    experts_table,
    memory_table,
    pairs_table,
    points_table,
    provenance_table,
    roles_table,
)

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Section:
    """A heading, what to see, a plot as a data URI (or none) with its text for those who cannot see, tables."""

    anchor: str
    title: str
    text: str
    image: str | None
    alternative: str
    tables: tuple[Table, ...]


def page(facts: Facts, plots: Mapping[str, bytes]) -> str:
    """Return the whole page; ``plots`` are PNG files by name (plots/all.py)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("collab_plugin", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        plan=facts.plan,
        opening=opening(facts),
        sections=_sections(facts, plots),
        left_out=facts.left_out,
        provenance=provenance_table(facts),
        version=__version__,
    )


def _sections(facts: Facts, plots: Mapping[str, bytes]) -> list[Section]:
    sections = [_experts(facts), _bits(facts), _front(facts), _memory(facts), _predicted(facts)]
    return [
        Section(name, title, text, _uri(plots.get(name)), alternative, tuple(t for t in tables if t is not None))
        for name, title, text, alternative, *tables in sections
    ]


def _uri(image: bytes | None) -> str | None:
    return None if image is None else "data:image/png;base64," + base64.b64encode(image).decode()


_Parts = tuple[str, str, str, str, *tuple[Table | None, ...]]


def _experts(facts: Facts) -> _Parts:
    if facts.importance is None:
        text = "Which experts there were is not known here: give the statistics."
    elif facts.importance.scores is None:
        text = "Each column is an expert, each row a layer. How important they are needs the statistics."
    else:
        marks = "What is marked is dropped; every layer keeps the same number."
        if facts.importance.kept.all():
            marks = "None is dropped."
        text = (
            "Each column is an expert, each row a layer. The darker, the more important by the criterion "
            f"{facts.importance.criterion}. {marks} The report as JSON has all values."
        )
    alternative = "Heat map of the importance of every expert, by layer; dropped experts are marked."
    return "importance", "Which experts stay", text, alternative, experts_table(facts)


def _bits(facts: Facts) -> _Parts:
    text = (
        "Bits for each weight that stays, block scales included. The darker, the more bits. Routers and norms are "
        "never quantized and left out of the plot. An empty place: the layer has no such part."
    )
    alternative = "Heat map of bits a weight, by part of the model and layer."
    return "bits", "Bits by layer and role", text, alternative, roles_table(facts), bits_table(facts)


def _front(facts: Facts) -> _Parts:
    text = (
        "What other sizes and other rules would cost. Hollow marks are predicted, filled ones measured. "
        "A baseline is a simple rule, planned by the same tool; a rival is a file made by another."
    )
    if not facts.plan.considered:
        text = "No alternatives were weighed when this plan was made."
        text += " Rivals were given to compare with." if facts.rivals else ""
    alternative = "Size of the file against KL divergence, for this plan, alternatives and rivals."
    return "front", "Prune more or quantize more?", text, alternative, points_table(facts)


def _memory(facts: Facts) -> _Parts:
    memory = facts.memory
    a_token = memory.kv_bytes_per_token
    cache = f" The KV cache takes {a_token:,} bytes a token." if a_token is not None else ""
    text = (
        "Exact: the file, byte for byte, and the KV cache at f16 for the context rounded up to a multiple of 256."
        f"{cache} Estimated: the compute buffer. Chosen: the reserve. All are for llama.cpp at its defaults; other "
        "engines differ."
    )
    alternative = "Bars of the file's bytes by role against the budget, and of the memory that running it takes."
    return "memory", "Does it fit?", text, alternative, memory_table(facts)


def _predicted(facts: Facts) -> _Parts:
    text = "Nothing was measured that a prediction could be compared with."
    if facts.pairs:
        text = "Plans that were built and evaluated. On the dashed line the prediction is right."
        if not facts.plan.prediction:
            text = "Plans that were built and evaluated, against a predicted cost that has no unit."
        if facts.rank_correlation is not None:
            text += f" Their order is predicted with a rank correlation (Spearman) of {facts.rank_correlation:.2f}."
    elif facts.evaluations:
        text = "The file was measured, but this plan predicted nothing to compare with."
    alternative = "Predicted against measured KL divergence."
    return "predicted", "Was the prediction right?", text, alternative, pairs_table(facts), evaluations_table(facts)
