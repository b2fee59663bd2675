"""`collab-plugin calibrate`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

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
@click.option("--chunks", type=click.IntRange(1), help="Use at most so many windows of each text.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Draws the windows that --chunks takes.",
)
@click.option("--proxy", metavar="TYPE", help="Run a copy with every matrix at TYPE, such as Q4_K; kept in the cache.")
@click.option("--ubatch", type=click.IntRange(16), help="Tokens that run at a time, at least a window.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Also write which experts each token chose, for `place`.",
)
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the model (see `plugins`).")
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Stats file to write.")
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="Then probe, as `probe` does unless told, and write this sensitivity document.",
)
@threads_option
@json_option
def command(
    model: Model,
    texts: tuple[Path, ...],
    ctx: int,
    chunks: int | None,
    seed: int,
    proxy: str | None,
    ubatch: int | None,
    trace: Path | None,
    engine: str,
    out: Path,
    sensitivity: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure which experts text uses, and the importance matrix, in one pass.

    MODEL may be any copy of the model, a quantized one too: statistics of one serve all. The stats
    file is a valid imatrix for llama-quantize. Do not calibrate on text that you evaluate on. With --sensitivity
    the model is also probed on the text, which takes twice the tokens more. An interrupted calibration goes on where it
    stopped, or some minutes before, when the same command is given again.

    Example: collab-plugin calibrate DeepSeek-V3-Q4_K_M.gguf --text prose.txt --text code.txt -o stats.gguf
    """
    from collab_plugin.cli.probe import render_sensitivity
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.output_path import check_output
    from collab_plugin.stats.stats_file import unmeasured

    check_output(out, (model, *texts))
    if trace is not None:
        check_output(trace, (model, out, *texts))
    if sensitivity is not None:
        _check_probing(sensitivity, engine, (model, out, *texts))
    stats = cp.calibrate(
        model,
        texts=texts,
        ctx=ctx,
        chunks=chunks,
        seed=seed,
        proxy=proxy,
        ubatch=ubatch,
        trace=trace,
        out=out,
        engine=engine,
        threads=threads,
        warn=warn,
        progress=shown(),
    )
    layers = [summary(layer, routing) for layer, routing in sorted(stats.routing.items())]
    result = {
        "output": str(out),
        "tokens": stats.tokens,
        "ctx": ctx,
        "unmeasured": list(unmeasured(stats)),
        "layers": layers,
    }
    if trace is not None:
        result["trace"] = str(trace)
    if sensitivity is None:
        emit(result, as_json, lambda console: _render(console, stats, layers, out))
        return
    found = cp.probe(
        model, stats=out, texts=texts, out=sensitivity, ctx=ctx, engine=engine, threads=threads, warn=warn,
        progress=shown(),
    )  # fmt: skip
    result |= {"sensitivity": str(sensitivity), "tokens_run": found.tokens_run}

    def render(console: Console) -> None:
        _render(console, stats, layers, out)
        render_sensitivity(console, found, sensitivity)

    emit(result, as_json, render)


def _check_probing(sensitivity: Path, engine: str, inputs: tuple[Model, ...]) -> None:
    """CollabError when probing could not follow calibration; asked before calibration takes its hours."""
    from collab_plugin.engines.ability import check_able
    from collab_plugin.formats.output_path import check_output
    from collab_plugin.plugins.manager import pick, registry

    check_output(sensitivity, inputs)
    if sensitivity.exists():
        raise cp.CollabError(f"{sensitivity} is there already: name another file, or go on with it by `probe`")
    check_able(pick(registry().engines, engine, "engine"), "disturb")


def summary(layer: int, routing: cp.LayerRouting) -> dict[str, float | int]:
    """Figures of one layer; ``least_used_quarter`` is that quarter's share of all selections."""
    ordered = sorted(routing.count.tolist())
    quarter = ordered[: max(len(ordered) // 4, 1)]
    return {
        "layer": layer,
        "tokens": routing.tokens,
        "unseen": int(routing.unseen.sum()),
        "least_used_quarter": sum(quarter) / max(sum(ordered), 1),
        "most_used": max(ordered) / max(sum(ordered), 1),
    }


def _render(console: Console, stats: cp.Stats, layers: list[dict[str, float | int]], out: Path) -> None:
    table = Table("layer", "tokens", "experts never seen", "least used quarter", "most used expert")
    for column in table.columns:
        column.justify = "right"
    for row in layers:
        table.add_row(
            str(row["layer"]),
            f"{row['tokens']:,}",
            str(row["unseen"]),
            f"{row['least_used_quarter']:.1%}",
            f"{row['most_used']:.1%}",
        )
    console.print(table)
    matrix = f"{len(stats.imatrix)} tensors in the" if stats.imatrix else "routing only, no"
    console.print(f"{out}: {stats.tokens:,} tokens, {matrix} importance matrix")
