"""The report on a terminal: figures side by side, verdicts, reasons below."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collab_conformance.report.summary import (
    COLUMNS,
    SummaryRow,
    count_text,
    figure,
    rows_of,
    shown_verdict,
    used_columns,
)
from collab_conformance.report.verify_report import Report, TargetReport
from collab_plugin.engines.target import Device
from collab_plugin.reports.number_words import clean, size

_STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow", "not-run": "dim"}
_WORDS = {"pass": "PASS", "fail": "FAIL", "skipped": "skipped", "not-run": "not run"}
_MOST_REASONS = 12


def render_verdicts(console: Console, report: Report) -> None:
    """Print the whole report; what was not run is dim, never green."""
    rows = rows_of(report)
    console.print(_line(f"{report.machine}{', short form' if report.short else ''}"))
    console.print(_table(rows))
    for target in report.targets:
        _reasons(console, target, [row for row in rows if row.target is target])
    _fidelity(console, report)
    console.print(_line(totals(report)))


def _line(text: str, style: str = "") -> Text:
    """Text as it is: neither rich's markup nor a terminal's escape codes are obeyed."""
    return Text(clean(text), style=style)


def _table(rows: list[SummaryRow]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    columns = used_columns(rows)
    table.add_column("target", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("artifact", overflow="fold")
    for index in columns:
        table.add_column(COLUMNS[index].title, justify="right")
    table.add_column("checks", overflow="fold")
    last = None
    for row in rows:
        if last is not None and row.target is not last:
            table.add_section()
        style = _STYLES[row.verdict]
        if row.target is not last:
            verdict = row.target.verdict
            cells = [_line(row.target.name, "dim" if verdict == "not-run" else "")]
            cells += [_line(_WORDS[verdict], _STYLES[verdict])]
        else:
            cells = [Text(), Text()]
        cells.append(_line(row.group or "–"))
        cells += [_figure(row, index) for index in columns]
        cells += [_line(count_text(_counts(row)), style)]
        table.add_row(*cells)
        last = row.target
    return table


def _counts(row: SummaryRow) -> dict[str, int]:
    counts: dict[str, int] = {}
    for level in row.levels.values():
        for verdict, count in level.items():
            counts[verdict] = counts.get(verdict, 0) + count
    return counts


def _figure(row: SummaryRow, index: int) -> Text:
    check = row.worst[index]
    if check is None or check.value is None:
        return _line("–", "dim")
    return _line(figure(check.value), {"fail": "red", "xfail": "yellow"}.get(shown_verdict(check), ""))


def _reasons(console: Console, target: TargetReport, rows: list[SummaryRow]) -> None:
    lines = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    console.print(Text.assemble(_line(target.name, "bold"), "  ", _line(device_words(target.device), "dim")))
    if placement := target.versions.get("placement"):
        console.print(_line(f"  placement: {placement}", "dim"), soft_wrap=True)
    for line in lines[:_MOST_REASONS]:
        style = "red" if line.startswith("FAIL") else "dim"
        console.print(Text.assemble("  ", _line(line, style)), soft_wrap=True)
    if len(lines) > _MOST_REASONS:
        console.print(f"  and {len(lines) - _MOST_REASONS} more: the report as JSON has all", style="dim")


def _fidelity(console: Console, report: Report) -> None:
    for f in report.fidelity:
        console.print(
            _line(
                f"{f.artifact} against its original, {f.bits_per_weight:.2f} bits a weight: mean KLD {f.mean_kld:.4g} "
                f"± {f.mean_kld_stderr:.2g}, 99th percentile {f.kld_p99:.4g}, same top-1 {f.same_top1:.2%}, "
                f"perplexity × {f.ppl_ratio:.4f} over {f.tokens:,} tokens: {f.grade}"
            )
        )


def totals(report: Report) -> str:
    """ "3 of 4 targets pass; 2 not run" in one line."""
    verdicts = [target.verdict for target in report.targets]
    run = [v for v in verdicts if v in ("pass", "fail")]
    parts = [f"{run.count('pass')} of {len(run)} targets that were run pass"] if run else ["no target was run"]
    others = (("skipped", "skipped"), ("not-run", "not run"))
    parts += [f"{verdicts.count(v)} {word}" for v, word in others if v in verdicts]
    return "; ".join(parts)


def device_words(device: Device | None) -> str:
    """Name, kind, memory and driver of a device; that its memory is the processor's too, when it is."""
    if device is None:
        return "no device"
    parts = [f"{device.name} ({device.kind})"]
    unified = device.unified_memory and device.kind != "cpu"
    if device.memory_bytes is not None:
        parts.append(size(device.memory_bytes) + (" unified with the CPU" if unified else ""))
    elif unified:
        parts.append("memory unified with the CPU")
    if device.driver:
        parts.append(f"driver {device.driver}")
    return ", ".join(parts)
