"""`collab-plugin ollama evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from collab_ollama.cli.model_options import host_option
from collab_plugin.cli.output import emit, json_option


@click.command()
@click.argument("name")
@click.option("--against", required=True, help="Name of the original in Ollama.")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, required=True, help="Held-out text.")
@click.option(
    "--positions", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Prefixes to compare after."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of prefixes.")
@host_option
@json_option
def command(
    name: str, against: str, texts: tuple[Path, ...], positions: int, seed: int, host: str | None, as_json: bool
) -> None:
    """Compare two models of a server by the likeliest next tokens.

    Ollama gives 20 log-probabilities of the next token, so the divergence is a lower bound; the exact one
    comes from `collab-plugin evaluate`.

    Example: collab-plugin ollama evaluate deepseek-v3-103g --against deepseek-v3 --text held-out.txt
    """
    from collab_ollama.compare.top_logprobs import TOP, ask, compare, prefixes, read_texts
    from collab_ollama.model.model_name import parse_name
    from collab_ollama.server.client import Client
    from collab_ollama.server.host import server_url
    from collab_plugin.cli.progress import shown
    from collab_plugin.errors import CollabError
    from collab_plugin.formats.text_file import text_file
    from collab_plugin.progress import track

    names = [str(parse_name(text)) for text in (against, name)]
    chosen = prefixes(read_texts(tuple(map(text_file, texts))), positions, seed)
    client = Client(server_url(host))
    try:
        client.version()
        for model in names:
            if client.show(model) is None:
                raise CollabError(f"{client.url} has no model {model}; create it first")
        answers = []
        for model in names:
            with track(shown(), f"asking {model}", len(chosen), "prefixes") as report:
                answers.append(ask(client, model, chosen, report))
    finally:
        client.close()
    result = compare(*answers)
    emit(
        result,
        as_json,
        lambda console: console.print(
            f"{result.positions} prefixes: same top-1 {result.same_top1:.1%}, mean KLD at least "
            f"{result.mean_kld_at_least:.4f}, mean |log-probability difference| {result.mean_abs_logprob:.4f} "
            f"over {result.shared:.1%} of the top {TOP}",
            highlight=False,
        ),
    )
