"""Plots have the expected size, are not blank, cut nothing off, and set no label over another."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from small_models.big_plan import big_metadata, big_plan, big_stats, some_kept
from small_models.made import Made

from collab_plugin.placement.artifact_shape import shape_of_plan
from collab_plugin.placement.memory import memory_of
from collab_plugin.placement.run_setup import RunSetup
from collab_plugin.plugins.manager import registry
from collab_plugin.reports.expert_importance import ImportanceMap
from collab_plugin.reports.gather import Extras, Facts, gather
from collab_plugin.reports.measured import Measured, Rival
from collab_plugin.reports.plots.all import draw_plots
from collab_plugin.reports.plots.bits import bits_plot
from collab_plugin.reports.plots.front import front_plot, has_front
from collab_plugin.reports.plots.heat import importance_plot
from collab_plugin.reports.plots.kld import pairs_plot
from collab_plugin.reports.plots.memory_plot import memory_plot
from collab_plugin.reports.plots.style import DPI, WIDTH, label, look, png
from collab_plugin.stats.stats_file import read_stats

RIVALS = (Rival("a preset $\\frac{", 133 * 10**9, 1.9), Rival("a preset $\\frac{", 245 * 10**9, 0.12))
EVALUATIONS = (Measured("held-out.json", 0.95, 0.01, 8.1, 5.2, 0.71, 12345),)


@pytest.fixture(scope="module")
def facts() -> Facts:
    """All there can be of a 61-layer model: 58 × 256 experts, groups, rivals, an evaluation."""
    plan = big_plan(some_kept())
    found = gather(plan, Extras(stats=big_stats(), rivals=RIVALS, evaluations=EVALUATIONS), registry().criteria)
    assert found.importance is not None
    memory = memory_of(
        shape_of_plan(plan, big_metadata()), RunSetup(context=32768), {b.part: b.bytes for b in found.bits.by_role}
    )
    return dataclasses.replace(found, importance=dataclasses.replace(found.importance, groups=8), memory=memory)


def heat(facts: Facts) -> Figure:
    assert facts.importance is not None
    return importance_plot(facts.importance)


DRAWN: dict[str, tuple[Callable[[Facts], Figure], float]] = {
    "importance": (heat, 58 * 0.115 + 2.2),
    "bits": (lambda facts: bits_plot(facts.bits), 1.9 + 0.42 * 8),
    "front": (front_plot, 6.0),
    "memory": (memory_plot, 5.2),
    "predicted": (pairs_plot, 5.6),
}


@pytest.fixture(scope="module")
def images(facts: Facts) -> dict[str, bytes]:
    return draw_plots(facts, lambda done, total=None: None)


def pixels(image: bytes) -> NDArray[np.float32]:
    """RGB as f32[height, width, 3] from 0 to 1."""
    return np.asarray(imread(io.BytesIO(image)), np.float32)[..., :3]


def test_every_plot_is_there(images: dict[str, bytes]) -> None:
    assert images.keys() == DRAWN.keys()


@pytest.mark.parametrize("name", DRAWN)
def test_size_and_margins(name: str, images: dict[str, bytes]) -> None:
    seen = pixels(images[name])
    height = DRAWN[name][1] * DPI
    assert seen.shape[1] == WIDTH * DPI
    assert abs(seen.shape[0] - height) <= 1
    inside = np.abs(seen - 1).max(axis=2) > 0.05
    assert 0.01 < inside.mean() < 0.95, "blank or full"
    colours = (seen * 255).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    assert len(np.unique(colours)) > 20
    border = np.concatenate([inside[:2].ravel(), inside[-2:].ravel(), inside[:, :2].ravel(), inside[:, -2:].ravel()])
    assert not border.any(), "something is cut off at the edge"


def labels(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is really drawn, with the pixels it takes."""
    drawn: list[Text] = []

    class Remembering(RendererAgg):
        def draw_text(self, *arguments: Any, mtext: Text | None = None, **options: Any) -> None:
            if mtext is not None:
                drawn.append(mtext)
            super().draw_text(*arguments, mtext=mtext, **options)

    with look():
        FigureCanvasAgg(figure).draw()  # settles the layout
        renderer = Remembering(*figure.bbox.size, figure.dpi)
        figure.draw(renderer)
        return [(text.get_text(), text.get_window_extent(renderer)) for text in drawn]


@pytest.mark.parametrize("name", DRAWN)
def test_labels_neither_overlap_nor_leave_the_figure(name: str, facts: Facts) -> None:
    with look():
        figure = DRAWN[name][0](facts)
    found = labels(figure)
    assert len(found) > 5
    whole = figure.bbox
    for text, box in found:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, f"{text!r} leaves the figure"
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, f"{text!r} leaves the figure"
    boxes = [(text, box.shrunk(0.9, 0.9)) for text, box in found]
    clashes = [
        (a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[i + 1 :] if one.overlaps(other) and a != b
    ]
    assert clashes == []


def test_small_plots(made: Made) -> None:
    small = gather(made.plan, Extras(stats=read_stats(made.stats)), registry().criteria)
    assert not has_front(small)
    images = draw_plots(small, lambda done, total=None: None)
    assert images.keys() == {"importance", "bits", "memory"}
    for name, image in images.items():
        assert pixels(image).shape[1] == WIDTH * DPI, name
        assert pixels(image).std() > 0.05, name


def few_experts(scores: bool) -> ImportanceMap:
    rng = np.random.default_rng(0)
    kept = np.ones((3, 32), bool)
    kept[:, ::4] = False
    values = rng.uniform(0.1, 1, kept.shape)
    return ImportanceMap("freq", (0, 1, 2), values if scores else None, None, kept, None)


@pytest.mark.parametrize("scores", [True, False])
def test_dropped_experts_can_be_told_in_small_and_large_maps(scores: bool, facts: Facts) -> None:
    """Marks of the one colour that nothing else has: their number and the space between."""
    assert facts.importance is not None
    big = facts.importance if scores else dataclasses.replace(facts.importance, scores=None)
    for data in (few_experts(scores), big):
        seen = pixels(png(lambda data=data: importance_plot(data)))  # type: ignore[misc]  # a default of a lambda
        vermillion = np.abs(seen - np.array([0xD5, 0x5E, 0]) / 255).max(axis=2) < 0.1
        layers, experts = data.kept.shape
        share = vermillion.mean() * seen.shape[0] * seen.shape[1] / (~data.kept).sum()
        assert share > 20, f"{share:.1f} pixels a dropped expert of {layers} × {experts}"


def test_names_cannot_break_a_plot() -> None:
    assert label("a\nb\x1b[31m") == "a b□[31m"
    assert label("名") == "□"
    assert label("$\\frac{") == "$\\frac{"
    assert len(label("x" * 99)) == 44


def test_plots_do_not_depend_on_the_users_settings(facts: Facts) -> None:
    import matplotlib

    before = png(lambda: heat(facts))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        assert png(lambda: heat(facts)) == before
