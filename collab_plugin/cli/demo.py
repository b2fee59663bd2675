"""`collab-plugin demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option

if TYPE_CHECKING:
    from collab_plugin.cli.demo_job import Row

ROOT = Path(__file__).resolve().parents[2]


@click.command()
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Model to use; may be repeated. By default the trained models in the checkout.",
)
@click.option(
    "--bpw", type=float, multiple=True, default=(2.65, 3.55), show_default=True, help="Bits per weight to aim at."
)
@click.option("--chunks", type=click.IntRange(1), default=8, show_default=True, help="Windows of each text.")
@click.option("--probe/--no-probe", default=True, show_default=True, help="Measure sensitivity, once a model.")
@click.option("--prompt", default="In the beginning", show_default=True, help="Text to continue at the end.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the files.",
)
@threads_option
@json_option
def command(
    models: tuple[Path, ...],
    bpw: tuple[float, ...],
    chunks: int,
    probe: bool,
    prompt: str,
    output: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Run the whole job on small trained models and compare with uniform quantization.

    Example: collab-plugin demo --model tests/models/tiny-qwen3moe --bpw 2.7
    """
    from collab_plugin.cli.demo_job import DemoRequest, demo_models, demo_texts, run_demo, write_tables

    rows: list[Row] = []
    for model in models or demo_models(ROOT):
        request = DemoRequest(
            model,
            demo_texts(ROOT, "calibration"),
            demo_texts(ROOT, "validation"),
            output,
            bpw,
            chunks,
            prompt,
            threads,
            probe,
        )
        rows += run_demo(request, lambda text: click.echo(text, err=as_json))
    write_tables(rows, output)
    emit(rows, as_json, lambda console: _render(console, rows))


def _render(console: Console, rows: list[Row]) -> None:
    table = Table("model", "file", "bytes", "bpw", "ppl", "mean KLD", "top-1", "tokens/s", box=box.SIMPLE)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        e = row.evaluation
        if row.variant == "original" and table.row_count:
            table.add_section()
        table.add_row(
            row.model,
            row.variant,
            f"{row.bytes:,}",
            f"{row.bits_per_weight:.3f}",
            f"{e.ppl:.3f}",
            f"{e.mean_kld:.5f}",
            f"{e.same_top1:.2%}",
            f"{row.tokens_per_second:,.0f}",
        )
    console.print(table)
