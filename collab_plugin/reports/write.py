"""Write a report's page and plots."""

from __future__ import annotations

from pathlib import Path

from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.reports.check_extra import check_extra
from collab_plugin.reports.gather import Facts


def write_report(facts: Facts, output: Path | None, folder: Path | None, progress: OnProgress = silent) -> list[Path]:
    """Write page and plots, each whole or not at all; returns what was written.

    Raises CollabError when matplotlib or Jinja2 is missing.
    """
    if output is None and folder is None:
        return []
    check_extra()
    from collab_plugin.reports.page import page
    from collab_plugin.reports.plots.all import draw_plots

    with track(progress, "drawing", unit="plots") as report:
        plots = draw_plots(facts, report)
    written = []
    if folder is not None:
        folder.mkdir(exist_ok=True)
        for name, image in plots.items():
            written.append(folder / f"{name}.png")
            write_bytes(written[-1], image)
    if output is not None:
        write_bytes(output, page(facts, plots).encode())
        written.append(output)
    return written
