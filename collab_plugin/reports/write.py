"""Write a report's page and plots."""

from __future__ import annotations

import os
from pathlib import Path

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.output_path import check_output, check_output_folder, writing
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.reports.check_extra import check_extra
from collab_plugin.reports.gather import Facts


def write_report(
    facts: Facts,
    out: str | os.PathLike[str] | None = None,
    plots: str | os.PathLike[str] | None = None,
    *,
    progress: OnProgress = silent,
) -> list[Path]:
    """Write the HTML page ``out`` and the plots as PNG files into the folder ``plots``, each whole or not at all.

    Returns what was written. The page holds its plots and loads nothing from anywhere. Raises CollabError when
    matplotlib or Jinja2 is missing.

    Example: ``cp.write_report(cp.report("plan.json"), "report.html")``
    """
    if out is None and plots is None:
        return []
    check_report_outputs(out, plots)
    from collab_plugin.reports.page import page
    from collab_plugin.reports.plots.all import draw_plots

    with track(progress, "drawing", unit="plots") as advance:
        images = draw_plots(facts, advance)
    written = []
    if plots is not None:
        with writing(Path(plots)):
            Path(plots).mkdir(exist_ok=True)
        for name, image in images.items():
            written.append(Path(plots) / f"{name}.png")
            write_bytes(written[-1], image)
    if out is not None:
        write_bytes(Path(out), page(facts, images).encode())
        written.append(Path(out))
    return written


def check_report_outputs(out: str | os.PathLike[str] | None, plots: str | os.PathLike[str] | None) -> None:
    """CollabError when the page or the folder of the plots cannot be written, or what draws them is missing."""
    if out is None and plots is None:
        return
    check_extra()
    if out is not None:
        check_output(Path(out))
    if plots is not None and not Path(plots).is_dir():
        if Path(plots).exists():
            raise CollabError(f"`plots` {plots} is a file; give a folder")
        check_output_folder(Path(plots))
