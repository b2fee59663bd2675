"""The page of many machines' reports: loads nothing, says everything in words, obeys nobody's markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from collab_conformance.report.matrix import matrix_page
from hand_reports import ABSENT, ALL, BAD, FAILED, FIDELITY, GOOD, METAL, PASSED, report, target

MAC = report(target("llamacpp:metal:0", GOOD, "pass", device=METAL), machine="mac, macOS-15, arm64")
BOTH = [replace(ALL, fidelity=(FIDELITY,)), MAC]


class Page(HTMLParser):
    """Collects elements, and the rows of the table with the most columns."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data.strip() + " "

    @property
    def matrix(self) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.tables[1]]


def test_loads_nothing_and_runs_nothing() -> None:
    page = Page(matrix_page(BOTH))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.elements:
        assert not {"src", "href", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_rows_are_machines_and_targets_with_verdicts_in_words() -> None:
    head, *rows = Page(matrix_page(BOTH)).matrix
    assert head[:4] == ["machine", "target", "verdict", "artifacts"]
    assert "mean KLD" in head
    assert "behaviour" in head
    first = [row for row in rows if row[1]]
    assert len(first) == len(ALL.targets) + 1
    assert [row[2] for row in first] == ["pass", "FAIL", "pass", "FAIL", "not run", "skipped", "pass"]
    assert first[-1][0] == MAC.machine
    assert "16.0 GB unified with the CPU" in first[-1][1]
    assert all(len(row) == len(head) for row in rows)


def test_figures_have_their_limit_as_text_and_its_source_as_tooltip() -> None:
    text = matrix_page(BOTH)
    head, *rows = Page(text).matrix
    nmse = head.index("logits NMSE")
    cells = [row[nmse] for row in rows if row[nmse] != "–"]
    assert "0.7 ≤ 0.002" in cells
    assert "3.3e-05 ≤ 0.002" in cells
    assert 'title="tiny-q4.gguf: logits.nmse 0.7, at most 0.002; limit: whole toy graphs of llama.cpp' in text


def test_absent_hardware_is_never_green() -> None:
    page = Page(matrix_page([report(ABSENT)]))
    (row,) = page.matrix[1:]
    assert row[2] == "not run"
    assert "no CUDA device" in row[-1]
    assert not [a for _, a in page.elements if "pass" in (a.get("class") or "").split()]


def test_a_target_that_died_is_not_green() -> None:
    page = Page(matrix_page([replace(ALL, targets=ALL.targets[3:4])]))
    assert page.matrix[1][2] == "FAIL"
    assert "ended by SIGABRT" in page.matrix[1][-1]


def test_markup_in_reports_is_text() -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\x1b[31m"
    check = replace(BAD, name=evil, artifact=evil, reason=evil)
    whole = replace(
        report(replace(FAILED, name=evil, reason=evil, checks=(check,), versions={evil: evil}, build=evil)),
        machine=evil,
        artifacts=tuple(replace(a, name=evil, reference=evil) for a in ALL.artifacts),
        fidelity=(replace(FIDELITY, artifact=evil, grade=evil),),
    )
    text = matrix_page([whole])
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert "\x1b" not in text
    assert "{{ 7*7 }}" in "".join(page.text)


def test_many_reasons_are_cut_in_the_matrix_and_whole_below() -> None:
    checks = tuple(replace(BAD, name=f"logits.nmse.{i}") for i in range(20))
    page = Page(matrix_page([report(replace(PASSED, verdict="fail", reason="x", checks=checks))]))
    assert "and 14 more below" in page.matrix[1][-1]
    assert any("logits.nmse.19" in cell for table in page.tables[2:] for row in table for cell in row)
