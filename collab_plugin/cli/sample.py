"""`collab-plugin sample`."""

from __future__ import annotations

from pathlib import Path

import click

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, warn
from collab_plugin.cli.threads import threads_option


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Text, .jsonl of texts or chats, or .parquet; may be repeated; FILE:2 weighs twice as much.",
)
@click.option("--ctx", type=click.IntRange(16, 2**20), default=512, show_default=True, help="Tokens a window.")
@click.option(
    "--chunks", type=click.IntRange(1), default=8, show_default=True, help="At most so many windows of each text."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Draws the windows that --chunks takes.",
)
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the model (see `plugins`).")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Samples file to write.")
@threads_option
@json_option
def command(
    model: Model,
    texts: tuple[Path, ...],
    ctx: int,
    chunks: int,
    seed: int,
    engine: str,
    out: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Keep what the experts compute on some text, so that a plan can repair what pruning breaks.

    For each token and layer the file takes 8 bytes times the width of the stream. Give the original, not a small
    quantized copy, and not the text that you evaluate on.

    Example: collab-plugin sample DeepSeek-V3/ --text prose.txt --text code.txt -o samples.gguf
    """
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.output_path import check_output

    check_output(out, (model, *texts))
    cp.sample(
        model,
        out,
        texts=texts,
        ctx=ctx,
        chunks=chunks,
        seed=seed,
        engine=engine,
        threads=threads,
        warn=warn,
        progress=shown(),
    )
    size = out.stat().st_size
    emit({"output": str(out), "bytes": size}, as_json, lambda console: console.print(f"{out}: {size:,} bytes"))
