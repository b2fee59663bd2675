"""`collab-plugin compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option

if TYPE_CHECKING:
    from collab_plugin import Compressed, CompressedFolder


@click.command()
@click.argument("model", type=MODEL)
@click.option("--plan", type=click.Path(path_type=Path), required=True, help="Plan of `plan`.")
@click.option("--stats", type=click.Path(path_type=Path), help="The plan's stats file, when it was moved.")
@click.option("--samples", type=click.Path(path_type=Path), help="The plan's samples file, when it was moved.")
@click.option(
    "--format",
    "format",
    type=click.Choice(["gguf", "safetensors"]),
    default="gguf",
    show_default=True,
    help="A GGUF, or a Hugging Face folder that other engines load.",
)
@click.option(
    "--precision",
    type=click.Choice(["plan", "original"]),
    help="Of a folder: 8 and 4 bits as compressed-tensors where the plan has few (default), or as stored.",
)
@click.option("--split", metavar="SIZE", help="No GGUF file larger than that, such as 45GB; else there is one file.")
@click.option(
    "--order",
    type=click.Choice(["heat", "co-activation"]),
    help="Order of the experts in a GGUF that is larger than memory; as the plan has it unless told.",
)
@click.option("--trace", type=click.Path(path_type=Path), help="For --order: which experts tokens chose.")
@click.option(
    "--cluster", metavar="ADDRESS", help="Ray cluster that does it: ray://HEAD:10001, or auto on a node of it."
)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="GGUF or folder to write.")
@threads_option
@json_option
def command(
    model: Model,
    plan: Path,
    stats: Path | None,
    samples: Path | None,
    format: Literal["gguf", "safetensors"],
    precision: Literal["plan", "original"] | None,
    split: str | None,
    order: str | None,
    trace: Path | None,
    cluster: str | None,
    out: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Write the GGUF that a plan describes, or a pruned Hugging Face folder.

    The output appears under its name only when complete. An interrupted run goes on where it stopped
    when the same command is given again.

    Example: collab-plugin compress DeepSeek-V3/ --plan plan.json -o out.gguf
    """
    from collab_plugin.cli.progress import shown

    written = cp.compress(
        model,
        plan,
        out,
        stats=stats,
        samples=samples,
        format=format,
        precision=precision,
        split=split,
        order=order,
        trace=trace,
        cluster=cluster,
        threads=threads,
        progress=shown(),
    )
    if order is not None:
        click.echo(f"the plan in this order: {out}.plan.json", err=True)
    emit(written, as_json, lambda console: console.print(_line(written)))


def _line(written: Compressed | CompressedFolder) -> str:
    w = written
    figures = f"{w.bits_per_weight:.3f} bpw, {w.seconds:.1f} s"
    memory = f"peak memory {w.peak_memory / 2**20:,.0f} MiB"
    resumed = f" ({w.resumed_tiles} of {w.tiles} tiles from an earlier run)" if w.resumed_tiles else ""
    if isinstance(w, cp.CompressedFolder):
        files = f"{w.files} file{'s' if w.files > 1 else ''}"
        return f"{w.path}: {w.bytes:,} bytes in {files}, {figures}, {memory}{resumed}"
    files = f" in {w.files} files" if w.files > 1 else ""
    return (
        f"{w.path}: {w.bytes:,} bytes{files}, {figures}, {w.bytes / 1e6 / max(w.seconds, 1e-9):.1f} MB/s written, "
        f"{memory}{resumed}"
    )
