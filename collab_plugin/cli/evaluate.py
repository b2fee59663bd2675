"""`collab-plugin evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option

if TYPE_CHECKING:
    from collab_plugin.engine import Evaluation

# Three of the sketch's 1024 n-grams: independent texts share none, boilerplate one or two.
OVERLAP_WARNING = 2.5 / 1024


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--against", "original", type=click.Path(path_type=Path), required=True, help="The original model.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="UTF-8 text; may be repeated.",
)
@click.option(
    "--ctx",
    type=click.IntRange(16, 2**20),
    default=512,
    show_default=True,
    help="Tokens a window; the second half is scored.",
)
@click.option("--chunks", type=click.IntRange(1), help="Use at most so many windows of each text.")
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the models (see `plugins`).")
@threads_option
@json_option
def command(
    model: Path,
    original: Path,
    texts: tuple[Path, ...],
    ctx: int,
    chunks: int | None,
    engine: str,
    threads: int,
    as_json: bool,
) -> None:
    """Compare a model with its original: perplexity, KL divergence, same top-1.

    Example: collab-plugin evaluate out.gguf --against DeepSeek-V3/ --text held-out.txt
    """
    from collab_plugin.compress.materialise import as_gguf
    from collab_plugin.manager import pick, registry
    from collab_plugin.progress import track

    chosen = pick(registry().engines, engine, "engine")
    first, second = as_gguf(model, threads), as_gguf(original, threads)
    with track("evaluating", unit="tokens") as report:
        result = chosen.evaluate(first, second, texts, ctx=ctx, chunks=chunks, threads=threads, progress=report)
    if result.text_overlap is not None and result.text_overlap > OVERLAP_WARNING:
        click.echo(
            f"warning: {result.text_overlap:.0%} of the calibration text's n-grams occur in this text: "
            "the figures are too good; evaluate on other text",
            err=True,
        )
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, e: Evaluation) -> None:
    table = Table("measure", "value")
    table.columns[1].justify = "right"
    table.add_row("perplexity", f"{e.ppl:.4f}")
    table.add_row("perplexity of the original", f"{e.ppl_original:.4f}")
    table.add_row("mean KL divergence (nats)", f"{e.mean_kld:.5f} ± {e.mean_kld_stderr:.5f}")
    table.add_row("median KL divergence", f"{e.kld_p50:.5f}")
    table.add_row("99th percentile", f"{e.kld_p99:.5f}")
    table.add_row("same top-1", f"{e.same_top1:.2%}")
    table.add_row("tokens scored", f"{e.tokens:,}")
    console.print(table)
