"""`collab-plugin evaluate`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option, plain, warn
from collab_plugin.cli.threads import threads_option
from collab_plugin.errors import CollabError

TEXT_CTX = 512
# More rows than this are left to --json: mmlu alone has 57 tasks.
MOST_ROWS = 24

# Three of the sketch's 1024 n-grams: independent texts share none, boilerplate one or two.
OVERLAP_WARNING = 2.5 / 1024


@click.command()
@click.argument("model", type=MODEL)
@click.option("--against", type=MODEL, help="The original model.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Compare on this text, .jsonl or .parquet; may be repeated.",
)
@click.option("--tasks", help="Run these tasks or groups of lm-evaluation-harness, separated by commas.")
@click.option("--limit", type=click.IntRange(1), help="Use at most so many documents of each task.")
@click.option(
    "--tasks-folder", type=click.Path(path_type=Path), help="Folder of YAML tasks of your own; code in it is run."
)
@click.option(
    "--ctx",
    type=click.IntRange(16, 2**20),
    show_default="512 for text; for tasks the model's, at most 4096",
    help="Tokens a window of text, of which the second half is scored; context for tasks.",
)
@click.option("--chunks", type=click.IntRange(1), help="Use at most so many windows of each text.")
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the models (see `plugins`).")
@threads_option
@json_option
def command(
    model: Model,
    against: Model | None,
    texts: tuple[Path, ...],
    tasks: str | None,
    limit: int | None,
    tasks_folder: Path | None,
    ctx: int | None,
    chunks: int | None,
    engine: str,
    threads: int,
    as_json: bool,
) -> None:
    """Compare a model with its original: perplexity, KL divergence, same top-1, benchmark tasks.

    Example: collab-plugin evaluate out.gguf --against DeepSeek-V3/ --text held-out.txt

    Example: collab-plugin evaluate out.gguf --against DeepSeek-V3/ --tasks mmlu,gsm8k,bbh
    """
    from collab_plugin.cli.progress import shown

    if not texts and not tasks:
        raise CollabError("nothing to evaluate on: give `texts`, or `tasks` such as mmlu,gsm8k")
    if texts and against is None:
        raise CollabError("`texts` are for comparing with the original: give it with `against`")
    report = evaluation = None
    if tasks:
        report = cp.evaluate_tasks(
            model,
            tasks,
            against=against,
            limit=limit,
            tasks_folder=tasks_folder,
            ctx=ctx,
            engine=engine,
            threads=threads,
            warn=warn,
            progress=shown(),
        )
    if texts and against is not None:
        evaluation = cp.evaluate(
            model,
            against=against,
            texts=texts,
            ctx=ctx or TEXT_CTX,
            chunks=chunks,
            engine=engine,
            threads=threads,
            warn=warn,
            progress=shown(),
        )
        if evaluation.text_overlap is not None and evaluation.text_overlap > OVERLAP_WARNING:
            warn(
                f"{evaluation.text_overlap:.0%} of the calibration text's n-grams occur in this text: "
                "the figures are too good; evaluate on other text"
            )
    figures = plain(evaluation) if evaluation else {}
    emit(figures | ({"tasks": plain(report)} if report else {}), as_json, lambda c: _render(c, evaluation, report))


def _render(console: Console, evaluation: cp.Evaluation | None, report: cp.TaskReport | None) -> None:
    if evaluation:
        _render_text(console, evaluation)
    if report:
        _render_tasks(console, report)


def _render_text(console: Console, e: cp.Evaluation) -> None:
    table = Table("measure", "value")
    table.columns[1].justify = "right"
    table.add_row("perplexity", f"{e.ppl:.4f}")
    table.add_row("perplexity of the original", f"{e.ppl_original:.4f}")
    table.add_row("mean KL divergence (nats)", f"{e.mean_kld:.5f} ± {e.mean_kld_stderr:.5f}")
    table.add_row("median KL divergence", f"{e.kld_p50:.5f}")
    for name, value in (("90th", e.kld_p90), ("95th", e.kld_p95), ("99th", e.kld_p99), ("99.9th", e.kld_p999)):
        table.add_row(f"{name} percentile", f"{value:.5f}")
    table.add_row("largest KL divergence", f"{e.kld_max:.5f}")
    table.add_row("same top-1", f"{e.same_top1:.2%}")
    table.add_row("tokens scored", f"{e.tokens:,}")
    console.print(table)


def _render_tasks(console: Console, report: cp.TaskReport) -> None:
    rows = report.rows
    if len(rows) > MOST_ROWS:
        rows = tuple(row for row in rows if row.task in report.asked)
    compared = any(row.original is not None for row in rows)
    names = ("model", "original", "recovery", "difference", "lost / gained") if compared else ("score",)
    table = Table("task", "metric", *names, "documents", "shots")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        score = (_score(row.value, row.stderr),)
        cells = (*score, *_compared(row)) if compared else score
        table.add_row(row.task, metric, *cells, f"{row.samples:,}", str(row.shots))
    console.print(table)
    hidden = len(report.rows) - len(rows)
    if hidden:
        console.print(f"{hidden} rows of single tasks: --json")


def _score(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None else "")


def _compared(row: cp.TaskRow) -> tuple[str, str, str, str]:
    if row.original is None or row.difference is None:
        return "", "", "", ""
    spread = "" if row.difference_stderr is None else f" ± {row.difference_stderr:.4f}"
    return (
        _score(row.original, row.original_stderr),
        "" if row.recovery is None else f"{row.recovery:.1f}%",
        f"{row.difference:+.4f}{spread}",
        "" if row.lost is None else f"{row.lost:,} / {row.gained:,}",
    )
