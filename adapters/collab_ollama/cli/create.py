"""`collab-plugin ollama create`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from collab_ollama.cli.model_options import ModelOptions, host_option, model_options, modelfile_of
from collab_plugin.cli.output import emit, json_option


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the model in Ollama.")
@host_option
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    show_default="OLLAMA_MODELS or ~/.ollama/models",
    help="The server's models folder on this machine.",
)
@click.option("--replace", is_flag=True, help="Take the place of a model of that name.")
@click.option("--direct", is_flag=True, help="Link the file and write the manifest ourselves: no copies, no checks.")
@model_options
@json_option
def command(
    artifact: Path,
    name: str,
    host: str | None,
    models: Path | None,
    replace: bool,
    direct: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a model over HTTP, without a second copy on the disk.

    When the server runs on this machine as the same user, its models folder gets a hard link to the file;
    otherwise the file is sent.

    Example: collab-plugin ollama create out.gguf --name deepseek-v3-103g
    """
    from collab_ollama.create.into_store import create_direct
    from collab_ollama.create.over_http import create
    from collab_ollama.create.store import Store, models_folder
    from collab_ollama.model.gguf_for_ollama import open_artifact
    from collab_ollama.model.model_name import parse_name
    from collab_ollama.server.client import Client
    from collab_ollama.server.host import is_loopback, server_url
    from collab_plugin.cli.progress import shown
    from collab_plugin.errors import CollabError

    model = parse_name(name)
    opened, modelfile = modelfile_of(open_artifact(artifact), ModelOptions(**options))
    url = server_url(host)
    store = Store(models_folder(models)) if models or is_loopback(url) else None
    if direct and store is None:
        raise CollabError(f"--direct needs the models folder of {url} on this machine: give --models")
    client = Client(url)
    try:
        if direct and store is not None:
            result = create_direct(opened, modelfile, model, client, store, replace=replace, progress=shown())
        else:
            result = create(opened, modelfile, model, client, store, replace=replace, progress=shown())
    finally:
        client.close()

    def render(console: Console) -> None:
        where = "a hard link to the file" if result.linked else "a file of its own"
        console.print(
            f"{result.name} in {result.server} (Ollama {result.version}): {result.quantization_level}, {where}, "
            f"{result.digest}",
            highlight=False,
            soft_wrap=True,
        )
        for note in result.notes:
            console.print(f"note: {note}")
        console.print(f"ollama run {result.name}")

    emit(result, as_json, render)
