"""`collab-plugin run`."""

from __future__ import annotations

from pathlib import Path

import click

import collab_plugin as cp
from collab_plugin.cli.model_argument import MODEL, Model
from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option


@click.command()
@click.argument("model", type=MODEL)
@click.option("-p", "--prompt", required=True, help="Text to continue.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most tokens to make.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed when the temperature is above 0.",
)
@click.option("--ctx", type=click.IntRange(16, 2**20), default=2048, show_default=True, help="Context in tokens.")
@click.option("--placement", type=click.Path(path_type=Path), help="In which memory experts lie: what `place` wrote.")
@click.option("--engine", default="llamacpp", show_default=True, help="Engine that runs the model (see `plugins`).")
@threads_option
@json_option
def command(
    model: Model,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    ctx: int,
    placement: Path | None,
    engine: str,
    threads: int,
    as_json: bool,
) -> None:
    """Generate text and say how fast.

    Example: collab-plugin run out.gguf -p "Once upon a time"
    """
    from collab_plugin.cli.progress import shown

    begun = False

    def write(piece: str) -> None:
        """Show the prompt when its continuation begins: until then a model may be converted."""
        nonlocal begun
        if not as_json:
            click.echo(piece if begun else prompt + piece, nl=False)
        begun = True

    result = cp.run(
        model,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        ctx=ctx,
        placement=placement,
        engine=engine,
        threads=threads,
        write=write,
        progress=shown(),
    )
    if not as_json:
        click.echo()
    emit(
        result,
        as_json,
        lambda console: console.print(
            f"{result.tokens} tokens at {result.tokens_per_second:.1f} tokens/s; "
            f"prompt of {result.prompt_tokens} at {result.prompt_tokens_per_second:.1f} tokens/s"
        ),
    )
