"""`collab-plugin evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from collab_plugin.cli.output import emit, json_option, plain
from collab_plugin.cli.progress import shown
from collab_plugin.cli.threads import threads_option
from collab_plugin.errors import CollabError
from collab_plugin.progress import track

if TYPE_CHECKING:
    from collab_plugin.engines.engine import Engine
    from collab_plugin.engines.results import Evaluation
    from collab_plugin.evaluation.scores import TaskReport, TaskRow

TEXT_CTX = 512
# More rows than this are left to --json: mmlu alone has 57 tasks.
MOST_ROWS = 24

# Three of the sketch's 1024 n-grams: independent texts share none, boilerplate one or two.
OVERLAP_WARNING = 2.5 / 1024


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--against", "original", type=click.Path(path_type=Path), help="The original model.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Compare on this UTF-8 text; may be repeated.",
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
    model: Path,
    original: Path | None,
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
    from collab_plugin.plugins.manager import pick, registry

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not texts and not names:
        raise CollabError("nothing to evaluate on: give --text FILE, or --tasks mmlu,gsm8k")
    if texts and original is None:
        raise CollabError("--text compares with the original: give it with --against MODEL")
    chosen = pick(registry().engines, engine, "engine")
    report = None
    if names:
        report = _on_tasks(chosen, model, original, names, limit, tasks_folder, ctx, threads)
    evaluation = None
    if texts and original is not None:
        evaluation = _on_text(chosen, model, original, texts, ctx or TEXT_CTX, chunks, threads)
    figures = plain(evaluation) if evaluation else {}
    emit(figures | ({"tasks": plain(report)} if report else {}), as_json, lambda c: _render(c, evaluation, report))


def _on_text(
    engine: Engine,
    model: Path,
    original: Path,
    texts: tuple[Path, ...],
    ctx: int,
    chunks: int | None,
    threads: int,
) -> Evaluation:
    from collab_plugin.compression.as_gguf import all_runnable
    from collab_plugin.engines.engine import Windows
    from collab_plugin.plugins.open_checkpoint import open_checkpoint

    both = [open_checkpoint(path) for path in (model, original)]
    first, second = all_runnable(engine, "evaluate", both, threads, shown())
    with track(shown(), "evaluating", unit="tokens") as progress:
        result = engine.evaluate(first, second, Windows(texts, ctx, chunks), threads=threads, progress=progress)
    if result.text_overlap is not None and result.text_overlap > OVERLAP_WARNING:
        click.echo(
            f"warning: {result.text_overlap:.0%} of the calibration text's n-grams occur in this text: "
            "the figures are too good; evaluate on other text",
            err=True,
        )
    return result


def _on_tasks(
    engine: Engine,
    model: Path,
    original: Path | None,
    names: list[str],
    limit: int | None,
    folder: Path | None,
    ctx: int | None,
    threads: int,
) -> TaskReport:
    from collab_plugin.cli.progress import shown
    from collab_plugin.evaluation.tasks import evaluate_tasks
    from collab_plugin.plugins.open_checkpoint import open_checkpoint

    return evaluate_tasks(
        engine,
        open_checkpoint(model),
        open_checkpoint(original) if original else None,
        names,
        limit=limit,
        folder=folder,
        ctx=ctx,
        threads=threads,
        warn=lambda text: click.echo(f"warning: {text}", err=True),
        progress=shown(),
    )


def _render(console: Console, evaluation: Evaluation | None, report: TaskReport | None) -> None:
    if evaluation:
        _render_text(console, evaluation)
    if report:
        _render_tasks(console, report)


def _render_text(console: Console, e: Evaluation) -> None:
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


def _render_tasks(console: Console, report: TaskReport) -> None:
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


def _compared(row: TaskRow) -> tuple[str, str, str, str]:
    if row.original is None or row.difference is None:
        return "", "", "", ""
    spread = "" if row.difference_stderr is None else f" ± {row.difference_stderr:.4f}"
    return (
        _score(row.original, row.original_stderr),
        "" if row.recovery is None else f"{row.recovery:.1f}%",
        f"{row.difference:+.4f}{spread}",
        "" if row.lost is None else f"{row.lost:,} / {row.gained:,}",
    )
