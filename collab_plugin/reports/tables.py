"""The figures behind each plot, as tables that page and terminal share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collab_plugin.plans.plan import Point
from collab_plugin.reports.gather import Facts, name_of
from collab_plugin.reports.number_words import exact, kld, percent, ranges, share_of, size
from collab_plugin.reports.sizes import Bits


@dataclass(frozen=True)
class Table:
    """``rows`` of text; the columns at the indices ``numeric`` hold numbers and are set to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]


def _table(caption: str, columns: str, rows: Sequence[tuple[str, ...]], numeric: str = "") -> Table:
    names = tuple(columns.split("|"))
    right = frozenset(names.index(name) for name in numeric.split("|") if name)
    return Table(caption, names, tuple(rows), right)


def experts_table(facts: Facts) -> Table | None:
    """A layer a row: what was dropped and what that loses."""
    found = facts.importance
    if found is None:
        return None
    rows = []
    for row, layer in enumerate(found.layers):
        kept = found.kept[row]
        low, high = "–", "–"
        if found.scores is not None:
            low = f"{found.scores[row][kept].min():.3f}"
            high = f"{found.scores[row][~kept].max():.3f}" if not kept.all() else "–"
        ids = ranges(int(i) for i in np.flatnonzero(~kept)) or "none"
        unseen = str(int(found.unseen[row].sum())) if found.selections is not None else "–"
        rows.append((str(layer), str(int(kept.sum())), low, high, percent(found.mass_lost(row)), unseen, ids))
    columns = "layer|kept|least important kept|most important dropped|selections lost|never selected|dropped experts"
    return _table("Experts of every layer", columns, rows, columns.rsplit("|", 1)[0])


def roles_table(facts: Facts) -> Table:
    """Bytes, bits and types by role."""
    total = facts.plan.bytes
    rows = [
        (b.part, exact(b.weights), exact(b.bytes), share_of(b.bytes, total), f"{b.bits_per_weight:.3f}", _shares(b))
        for b in facts.bits.by_role
    ]
    columns = "role|weights kept|bytes|share of the file|bits a weight|types (share of the role's bytes)"
    return _table("Bits by role", columns, rows, columns.split("|", 1)[1].rsplit("|", 1)[0])


def _shares(bits: Bits) -> str:
    return ", ".join(f"{kind} {share_of(count, bits.bytes)}" for kind, count in bits.types.items())


def layer_rows(facts: Facts) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Names of the parts inside blocks, and by block what each part has: bits a weight and types."""
    cells = facts.bits.by_part()
    parts = tuple(part for part in cells if any(layer is not None for layer in cells[part]))
    rows = [
        (layer, tuple(_cell(cells[part][layer]) if layer in cells[part] else "–" for part in parts))
        for layer in facts.bits.layers
    ]
    return parts, rows


def _cell(bits: Bits) -> str:
    return f"{bits.bits_per_weight:.2f} {'+'.join(bits.types)}"


def bits_table(facts: Facts) -> Table:
    """Bits a weight and types by layer and part."""
    parts, rows = layer_rows(facts)
    whole: list[tuple[str, ...]] = [(str(layer), *cells) for layer, cells in rows]
    outside = [
        (f"{part} (outside the layers)", *("–",) * i, _cell(cells[None]), *("–",) * (len(parts) - i - 1))
        for part, cells in facts.bits.by_part().items()
        if None in cells and part in parts
        for i in [parts.index(part)]
    ]
    return _table("Bits a weight and type of every layer", "|".join(("layer", *parts)), whole + outside)


def points_table(facts: Facts) -> Table | None:
    """The plans that were weighed, and the rivals, ascending in bytes."""
    if not facts.points and not facts.rivals:
        return None
    rows = [(p.bytes, _point_row(p)) for p in facts.points]
    rows += [
        (r.bytes, (r.name, "rival", "–", "–", exact(r.bytes), size(r.bytes), "–", kld(r.mean_kld)))
        for r in facts.rivals
    ]
    predicted = _predicted(facts)
    columns = f"plan|kind|experts kept|experts a token|bytes|size|{predicted}|KL divergence measured"
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return _table("Plans compared (KL divergence in nats a token)", columns, ordered, columns.split("|", 2)[2])


def _predicted(facts: Facts) -> str:
    return "KL divergence predicted" if facts.plan.prediction else "predicted cost (no unit)"


def _point_row(p: Point) -> tuple[str, ...]:
    kind = f"{p.kind}, chosen" if p.chosen else p.kind
    name = name_of(p)
    measures = kld(p.predicted_kld), kld(p.measured_kld)
    return name, kind, str(p.expert_count), str(p.experts_used), exact(p.bytes), size(p.bytes), *measures


def memory_table(facts: Facts) -> Table:
    """What running takes, with how certain each figure is."""
    memory = facts.memory
    rows = [
        (p.name, exact(p.bytes), "–" if p.bytes is None else size(p.bytes), p.certainty, p.how)
        for p in (*memory.weights, *memory.runtime)
    ]
    rows.append(
        (
            "total" if memory.complete else "total of what is known",
            exact(memory.total),
            size(memory.total),
            "estimate",
            "",
        )
    )
    return _table(
        f"Memory for a context of {exact(memory.setup.context)} tokens",
        "what|bytes|size|certainty|how",
        rows,
        "bytes|size",
    )


def pairs_table(facts: Facts) -> Table | None:
    """Predicted against measured."""
    if not facts.pairs:
        return None
    rows = [
        (p.label, kld(p.predicted), kld(p.measured), f"{p.measured / p.predicted:.2f}" if p.predicted else "–")
        for p in facts.pairs
    ]
    columns = f"plan|{_predicted(facts)}|KL divergence measured|measured / predicted"
    return _table("Predicted and measured (KL divergence in nats a token)", columns, rows, columns.split("|", 1)[1])


def evaluations_table(facts: Facts) -> Table | None:
    """What `evaluate` measured on the plan's artifact."""
    rows = [
        (
            e.file,
            f"{kld(e.mean_kld)} ± {kld(e.mean_kld_stderr)}",
            f"{e.ppl:.4f}",
            f"{e.ppl_original:.4f}",
            f"{100 * e.same_top1:.2f} %",
            exact(e.tokens),
        )
        for e in facts.evaluations
    ]
    columns = "evaluation|KL divergence|perplexity|perplexity of the original|same top-1|tokens scored"
    return _table("Measured on the artifact", columns, rows, columns.split("|", 1)[1]) if rows else None


def provenance_table(facts: Facts) -> Table:
    """Where the plan comes from, and the versions that made it."""
    plan = facts.plan
    rows = [
        ("source", f"{plan.source.name} ({plan.source.architecture}, {plan.source.format})"),
        ("source fingerprint", plan.source.fingerprint),
        ("model id", plan.source.model_id),
    ]
    if plan.calibration is not None:
        c = plan.calibration
        rows.append(("calibration", f"{exact(c.tokens)} tokens of {', '.join(c.datasets) or 'unnamed text'}"))
        rows.append(("calibrated with", c.engine))
        rows.append(("stats file", f"{c.file}, sha256:{c.sha256}"))
    options = ", ".join(f"{key} = {value}" for key, value in sorted(plan.pruning.options.items()))
    rows += [
        ("importance", f"{plan.pruning.criterion}{f' ({options})' if options else ''}, {plan.pruning.normalisation}"),
        ("expert groups", plan.pruning.group_policy),
        ("bits given out by", plan.allocator),
        ("prediction rests on", plan.prediction or "relative errors alone; not in nats"),
    ]
    rows += [(f"version of {name}", version) for name, version in sorted(plan.versions.items())]
    return _table("Where it comes from", "what|value", rows)
