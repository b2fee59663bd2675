"""The page: well-formed, self-contained, hostile names escaped, and every number the plan's."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from rich.console import Console
from small_models.big_plan import big_plan, big_stats, some_kept
from small_models.made import Made
from small_models.random_plans import plans

from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan, Point
from collab_plugin.plugins.manager import registry
from collab_plugin.reports.gather import Extras, gather
from collab_plugin.reports.measured import Measured, Rival
from collab_plugin.reports.page import page
from collab_plugin.reports.plan_terminal import render_report
from collab_plugin.reports.plots.all import draw_plots
from collab_plugin.stats.stats_file import read_stats

VOID = {"meta", "img", "br", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=x>\x1b[31m\u202e&amp; {{ 7 * 7 }}"


class Reader(HTMLParser):
    """Checks that tags nest, and keeps what the page says: tags with attributes, tables, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif "style" not in self.open:
            self.text.append(data)

    def table(self, first: str) -> list[dict[str, str]]:
        """Rows, by column, of the table whose first column is called ``first``."""
        found = next(rows for rows in self.tables if rows[0][0] == first)
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def read(plan: Plan, extras: Extras = Extras()) -> Reader:  # noqa: B008  # frozen, so shared safely
    facts = gather(plan, extras, registry().criteria)
    return Reader(page(facts, draw_plots(facts, lambda done, total=None: None)))


@pytest.fixture(scope="module")
def big() -> Plan:
    return big_plan(some_kept())


@pytest.fixture(scope="module")
def full(big: Plan) -> Reader:
    rivals = (Rival("a preset", 133 * 10**9, 1.9),)
    evaluations = (Measured("held-out.json", 0.95, 0.01, 8.1, 5.2, 0.71, 12345),)
    return read(big, Extras(stats=big_stats(), rivals=rivals, evaluations=evaluations))


def test_page_loads_nothing(full: Reader) -> None:
    allowed = (
        "html head meta title style body h1 h2 h3 p section nav ul li a img details summary div table thead tbody tr "
        "th td footer"
    )
    assert {tag for tag, _ in full.tags} <= set(allowed.split())
    for tag, attributes in full.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "ping")]
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#"), tag
    anchors = {attributes["id"] for _, attributes in full.tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in full.tags if tag == "a"} <= {f"#{a}" for a in anchors}
    policies = [a["content"] for tag, a in full.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_style_and_text_name_no_address(big: Plan) -> None:
    facts = gather(big, Extras(stats=big_stats()), registry().criteria)
    text = page(facts, {})
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"<td>[^<]*</td>", "", text))


def test_images_are_whole_png_files_with_a_text(full: Reader) -> None:
    images = [attributes for tag, attributes in full.tags if tag == "img"]
    assert len(images) == 5
    for attributes in images:
        data = base64.b64decode((attributes["src"] or "").removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
        assert len(attributes["alt"] or "") > 20


def test_bytes_are_the_plans(full: Reader, big: Plan) -> None:
    said = " ".join(full.text)
    for value in (big.bytes, big.budget or 0):
        assert f"{value:,} bytes" in said
    roles = full.table("role")
    tensors = sum(t.nbytes for t in big.tensors.values())
    assert sum(number(row["bytes"]) for row in roles) == tensors
    memory = {row["what"]: row["bytes"] for row in full.table("what")}
    assert sum(number(memory[row["role"]]) for row in roles) + number(memory["header and padding"]) == big.bytes
    assert number(memory["KV cache"]) == 70_272 * 8192


def test_points_are_the_plans(full: Reader, big: Plan) -> None:
    rows = [row for row in full.table("plan") if row["kind"] != "rival"]
    assert len(rows) == len(big.considered)
    for row, point in zip(rows, sorted(big.considered, key=lambda p: p.bytes), strict=True):
        assert number(row["bytes"]) == point.bytes
        assert row["KL divergence predicted"] == f"{point.predicted_kld:.4g}"
        assert row["KL divergence measured"] == ("–" if point.measured_kld is None else f"{point.measured_kld:.4g}")
        assert (int(row["experts kept"]), int(row["experts a token"])) == (point.expert_count, point.experts_used)
        assert ("chosen" in row["kind"]) == point.chosen


def test_dropped_experts_are_the_plans(full: Reader, big: Plan) -> None:
    for row in full.table("layer"):
        dropped: set[int] = set()
        for part in row["dropped experts"].split(", "):
            first, _, last = part.partition("–")
            dropped |= set(range(int(first), int(last or first) + 1))
        assert dropped == set(range(256)) - set(big.pruning.kept[int(row["layer"])])


def test_bits_by_layer_are_the_plans(full: Reader, big: Plan) -> None:
    rows = next(t for t in full.tables if "attention" in t[0])
    layers = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if row[0].isdigit()]
    assert len(layers) == 61
    for row in layers[3:]:
        kind = big.tensors[f"blk.{row['layer']}.ffn_up_exps.weight"].type
        assert row["expert up"].split()[1] == kind


def test_opening_says_what_a_newcomer_asks(full: Reader) -> None:
    said = " ".join(full.text)
    for words in (
        "671 billion weights",
        "picks 8 of 256 for every token",
        "64 of the 256 experts (25.0 %) are dropped",
        "6 experts instead of 8",
        "0.95 ± 0.01 nats a token",
        "0.8123",
    ):
        assert words in said, words


def test_hostile_names_are_text(big: Plan) -> None:
    plan = dataclasses.replace(
        big,
        source=dataclasses.replace(big.source, name=HOSTILE, architecture=HOSTILE),
        notes=(HOSTILE,),
        prediction=HOSTILE,
        versions={HOSTILE: HOSTILE},
        considered=(*big.considered, Point("baseline", HOSTILE, 1, 1, 10**9, 9.0, 8.0, False)),
    )
    extras = Extras(rivals=(Rival(HOSTILE, 10**9, 1.0),), evaluations=(Measured(HOSTILE, 1, 0, 1, 1, 1, 1),))
    found = read(plan, extras)
    assert not {"script"} & {tag for tag, _ in found.tags}
    assert len([tag for tag, _ in found.tags if tag == "img"]) == 5
    said = "".join(found.text)
    assert "<script>alert(1)</script>" in said and "{{ 7 * 7 }}" in said
    assert "\x1b" not in said and "\u202e" not in said


def test_terminal_obeys_no_escape_code_or_markup(big: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    plan = dataclasses.replace(big, notes=("\x1b[31m[bold]red[/bold]", "[/nothing]"), source=dataclasses.replace(
        big.source, name="[link=http://evil.example]x"))  # fmt: skip
    render_report(Console(width=140), gather(plan, Extras(stats=big_stats()), registry().criteria))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "□[31m[bold]red[/bold]" in said and "[/nothing]" in said and "[link=http://evil.example]x" in said


def test_same_page_from_the_same_plan(made: Made) -> None:
    first, second = (
        page(gather(made.plan, Extras(stats=read_stats(made.stats)), registry().criteria), {}) for _ in range(2)
    )
    assert first == second


def test_page_of_the_plan_alone_says_what_is_missing(made: Made) -> None:
    said = " ".join(Reader(page(gather(made.plan, Extras(), registry().criteria), {})).text)
    for words in ("the statistics (the plan used stats.gguf)", "Compute buffer: give the model", "give the evaluation"):
        assert words in said, words


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_any_plan_has_a_page_and_a_terminal_report(plan: Plan) -> None:
    try:
        facts = gather(plan, Extras(), registry().criteria)
    except CollabError:
        return
    Reader(page(facts, {}))
    out = io.StringIO()
    render_report(Console(width=100, file=out), facts)
    assert "What was the model?" in out.getvalue()
