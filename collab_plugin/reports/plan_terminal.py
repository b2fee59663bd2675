"""The report on a terminal: the same figures as the page, with bars and shades of text."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from collab_plugin.reports import tables
from collab_plugin.reports.expert_importance import ImportanceMap
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.introduction import opening
from collab_plugin.reports.number_words import clean, like_rows, percent, share_of, size

SHADES = "·░▒▓█"
DROPPED = "×"
UNSEEN = "?"
_CELLS = 64
"""Characters at most for the experts of a layer; more experts share one."""
_BAR = 60
_COLOURS = ("blue", "yellow", "green", "cyan", "magenta", "red", "white")


def render_report(console: Console, facts: Facts) -> None:
    """Print the whole report."""
    for paragraph in opening(facts):
        console.print(_line(paragraph.question, "bold"))
        console.print(_line(paragraph.text), "\n", sep="", end="\n")
    _experts(console, facts)
    _bits(console, facts)
    _table(console, tables.points_table(facts))
    _memory(console, facts)
    for table in (tables.pairs_table(facts), tables.evaluations_table(facts)):
        _table(console, table)
    if facts.rank_correlation is not None:
        console.print(f"rank correlation of predicted and measured: {facts.rank_correlation:.2f}")
    for note in facts.plan.notes:
        console.print(_line(f"note: {note}"))
    for sentence in facts.left_out:
        console.print(_line(f"not shown: {sentence}"))


def _line(text: str, style: str = "") -> Text:
    """Text as it is: neither rich's markup nor a terminal's escape codes are obeyed."""
    return Text(clean(text), style=style)


def _table(console: Console, table: tables.Table | None) -> None:
    if table is None:
        return
    shown = RichTable(title=_line(table.caption), title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        shown.add_column(_line(column), justify="right" if index in table.numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(_line, row))
    console.print(shown)


def _experts(console: Console, facts: Facts) -> None:
    data = facts.importance
    if data is None:
        return
    _, experts = data.kept.shape
    width = -(-experts // _CELLS)
    shared = "" if width == 1 else f", {width} experts a character"
    scale = f"by {data.criterion}, {SHADES[0]} least to {SHADES[-1]} most, "
    marks = f"{'' if data.scores is None else scale}{DROPPED} dropped{shared}"
    console.print(Text(f"Importance of the experts of every layer ({marks})", style="bold"))
    for row, layer in enumerate(data.layers):
        lost = data.mass_lost(row)
        tail = f"  {int(data.kept[row].sum())} of {experts} kept"
        tail += f", {percent(lost)} of selections lost" if lost is not None else ""
        console.print(Text(f"{layer:4} │{shades(data, row, width)}│{tail}"))
    console.print()


def shades(data: ImportanceMap, row: int, width: int) -> str:
    """One character for each ``width`` experts: the mean of those kept, or a mark when all went."""
    kept, unseen = data.kept[row], data.unseen[row]
    scores = np.full(kept.shape, 1.0) if data.scores is None else data.scores[row]
    low = 0.0 if data.scores is None else min(0.0, float(data.scores.min()))
    top = 1.0 if data.scores is None else float(np.percentile(data.scores, 97))
    line = []
    for start in range(0, len(kept), width):
        part = slice(start, start + width)
        if not kept[part].any():
            line.append(DROPPED)
        elif unseen[part][kept[part]].all():
            line.append(UNSEEN)
        else:
            mean = float(scores[part][kept[part]].mean())
            share = (mean - low) / (top - low) if top > low else 1.0
            line.append(SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)])
    return "".join(line)


def _bits(console: Console, facts: Facts) -> None:
    _table(console, tables.roles_table(facts))
    parts, rows = tables.layer_rows(facts)
    parts, rows = _quantized(parts, rows)
    shown = RichTable(title="Bits a weight and type by layer", title_justify="left", title_style="bold")
    for column in ("layers", *parts):
        shown.add_column(column, overflow="fold")
    for layers, cells in like_rows(rows):
        shown.add_row(layers, *map(_line, cells))
    console.print(shown)


def _quantized(
    parts: tuple[str, ...], rows: list[tuple[int, tuple[str, ...]]]
) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Without norms and routers, which keep their type and are in the table of roles."""
    shown = [i for i, part in enumerate(parts) if part not in ("norm", "router", "router-bias")]
    return tuple(parts[i] for i in shown), [(layer, tuple(cells[i] for i in shown)) for layer, cells in rows]


def _memory(console: Console, facts: Facts) -> None:
    memory, budget = facts.memory, facts.plan.budget
    bar = Text("file   │")
    total = max(facts.plan.bytes, budget or 0, 1)
    ordered = sorted(memory.weights, key=lambda part: -(part.bytes or 0))
    for part, colour in zip(ordered, _COLOURS, strict=False):
        bar.append("█" * min(_BAR, round(_BAR * (part.bytes or 0) / total)), style=colour)
    used = len(bar.plain) - len("file   │")
    bar.append("│" if used >= _BAR else " " * (_BAR - used) + "│")
    if budget:
        bar.append(f" {share_of(facts.plan.bytes, budget)} of the budget of {size(budget)}")
    console.print(bar)
    largest = ((p, c) for p, c in zip(ordered, _COLOURS, strict=False) if (p.bytes or 0) * _BAR >= total)
    console.print(Text("        ") + Text("  ").join(Text(f"■ {p.name}", style=c) for p, c in largest))
    _table(console, tables.memory_table(facts))
