"""The report on a terminal: figures side by side, and never green for what was not run."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from collab_conformance.report.summary import COLUMNS, badness, figure, rows_of
from collab_conformance.report.verify_report import Check, Report
from collab_conformance.report.verify_terminal import device_words, render_verdicts
from hand_reports import ABSENT, ALL, ARTIFACT, FIDELITY, GOOD, KLD, METAL, PASSED, TOP1, report
from rich.console import Console

GREEN = "\x1b[32m"


def shown(whole: Report, *, colours: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=colours, color_system="standard" if colours else None)
    render_verdicts(console, whole)
    return out.getvalue()


def test_figures_stand_side_by_side_with_verdicts_and_reasons() -> None:
    text = shown(replace(ALL, fidelity=(FIDELITY,)))
    lines = [line[1:].split("  ") for line in text.splitlines() if line.startswith((" llamacpp", " ollama"))]
    rows = {cells[0]: [cell.strip() for cell in cells if cell.strip()] for cells in lines}
    words = {"pass": "PASS", "fail": "FAIL", "skipped": "skipped", "not-run": "not run"}
    assert {name: row[1] for name, row in rows.items()} == {t.name: words[t.verdict] for t in ALL.targets}
    assert rows["llamacpp:cpu"][3] == "9.2e-05"
    assert "0.7, at most 0.002" in text
    assert "expected failure: kernels.mul_mat_id.IQ2_XXS 0.02, at most 0.0005" in text
    assert "driver bug 1234" in text
    assert "in kernels.mul_mat.Q8_0: ended by SIGABRT" in text
    assert "no CUDA device" in text
    assert "skipped behaviour.kv_q8_0: no such cache" in text
    assert "16.0 GB unified with the CPU" in text
    assert "2 of 4 targets that were run pass; 1 skipped; 1 not run" in text
    assert "like Q4_K_M" in text


@pytest.mark.parametrize("target", [t for t in ALL.targets if t.verdict != "pass"], ids=lambda t: t.name)
def test_only_what_passed_is_green(target: object) -> None:
    alone = report(target)  # type: ignore[arg-type]
    lines = shown(alone, colours=True).splitlines()
    verdicts = [line for line in lines if any(word in line for word in ("FAIL", " not run", "skipped"))]
    assert verdicts
    assert not any(GREEN in line for line in lines)
    assert any(GREEN in line for line in shown(report(PASSED), colours=True).splitlines())


def test_a_target_that_died_fails_in_its_row() -> None:
    (row, *_), died = rows_of(report(ALL.targets[3])), ALL.targets[3]
    assert died.verdict == "fail"
    assert row.verdict == "fail"


def test_absent_hardware_has_no_figures() -> None:
    (row,) = rows_of(report(ABSENT))
    assert row.worst == (None,) * len(COLUMNS)
    assert (row.verdict, row.reasons) == ("not-run", ("no CUDA device",))


def test_many_artifacts_are_grouped_by_architecture() -> None:
    names = [f"{a}-{i}" for a in ("qwen3moe", "deepseek2") for i in range(3)]
    artifacts = tuple(replace(ARTIFACT, name=n, architecture=n.split("-")[0]) for n in names)
    checks = tuple(replace(GOOD[4], artifact=n, value=1e-4 * (i + 1)) for i, n in enumerate(names))
    whole = replace(report(replace(PASSED, checks=(GOOD[0], *checks))), artifacts=artifacts)
    rows = rows_of(whole)
    assert [row.group for row in rows] == ["", "qwen3moe (3 files)", "deepseek2 (3 files)"]
    kld = [column.title for column in COLUMNS].index("mean KLD")
    assert [row.worst[kld].value for row in rows[1:] if row.worst[kld]] == pytest.approx([3e-4, 6e-4])  # type: ignore[union-attr]


def test_one_reason_of_many_types_is_told_once() -> None:
    names = ("IQ1_S", "IQ1_M", "Q4_K")
    checks = tuple(
        Check("kernels", f"kernels.mul_mat.{n}", "", "skipped", f"the device declines {n} weights", None, None, None)
        for n in names
    )
    (row,) = rows_of(report(replace(PASSED, checks=checks, verdict="skipped")))
    assert row.reasons == ("skipped 3 checks of kernels: the device declines <type> weights",)


def test_worst_is_what_is_nearest_to_its_limit() -> None:
    def check(value: float) -> Check:
        return Check("logits", "x", "", "pass", "", value, TOP1, None)

    assert badness(check(0.96)) > badness(check(0.99))
    assert badness(check(0.94))[0] > 1 > badness(check(0.96))[0]
    small, large = (replace(check(v), limit=KLD) for v in (1e-3, 2e-2))
    assert badness(large)[0] > 1 > badness(small)[0]


def test_figures_keep_their_distance_from_one() -> None:
    assert (figure(0.99987), figure(3.14159e-5), figure(1.0), figure(0.5)) == ("0.99987", "3.14e-05", "1", "0.5")


def test_names_from_reports_cannot_steer_the_terminal() -> None:
    evil = replace(ABSENT, name="[red]x[/red]\x1b[2J", reason="a\x1b]0;title\x07\nb")
    text = shown(replace(report(evil), machine="\x1b[31mbox"))
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


def test_device_in_words() -> None:
    assert device_words(METAL) == "Apple M2 (igpu), 16.0 GB unified with the CPU, driver Metal 3"
    assert device_words(replace(METAL, memory_bytes=None)).startswith("Apple M2 (igpu), memory unified with the CPU")
    assert device_words(None) == "no device"
