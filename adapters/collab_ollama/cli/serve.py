"""`collab-plugin ollama serve`."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from rich.console import Console

from collab_ollama.cli.model_options import host_option
from collab_plugin.cli.output import emit, json_option

if TYPE_CHECKING:
    from collab_ollama.server.load_model import Applied


@click.command()
@click.option("--placement", "placement_path", type=click.Path(path_type=Path), help="Placement of the experts.")
@click.option("--load", "model", help="Load this model, and show what was applied.")
@click.option("--check", is_flag=True, help="Stop after showing what was applied.")
@host_option
@click.option("--models", type=click.Path(path_type=Path), show_default="Ollama's own", help="Models folder.")
@click.option(
    "--ollama",
    "program",
    show_default="COLLAB_OLLAMA, the settings' or the one on the PATH",
    help="The ollama program to run.",
)
@click.option(
    "--log", type=click.Path(path_type=Path), show_default="a temporary one", help="File for the server's log."
)
@json_option
def command(
    placement_path: Path | None,
    model: str | None,
    check: bool,
    host: str | None,
    models: Path | None,
    program: str | None,
    log: Path | None,
    as_json: bool,
) -> None:
    """Start an Ollama server with a placement of the experts.

    The placement is for every model of this server. It serves until Ctrl-C.

    Example: collab-plugin ollama serve --placement placement.json --load deepseek-v3-103g
    """
    from collab_ollama.model.model_name import parse_name
    from collab_ollama.ollama_program import find_ollama
    from collab_ollama.server.client import Client
    from collab_ollama.server.host import server_url
    from collab_ollama.server.load_model import load
    from collab_ollama.server.placement_environment import environment_of
    from collab_ollama.server.server_process import serving
    from collab_plugin.cli.progress import shown
    from collab_plugin.errors import CollabError
    from collab_plugin.placement.placement_file import read_placement
    from collab_plugin.progress import track

    if check and model is None:
        raise click.UsageError("--check needs --load NAME")
    placement = read_placement(placement_path) if placement_path else None
    variables = environment_of(placement) if placement else {}
    if placement:
        variables = {**variables, "OLLAMA_CONTEXT_LENGTH": str(placement.context)}
    name = str(parse_name(model)) if model else None
    url = server_url(host)
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="collab-ollama-") as folder:
        path = log or Path(folder) / "ollama.log"
        with serving(find_ollama(program), url, models, variables, path) as server:
            client = Client(url)
            try:
                if name is not None:
                    with track(shown(), f"loading {name}"):
                        told = {key: value for key, value in variables.items() if key.startswith("LLAMA_ARG_")}
                        applied = load(server, client, name, placement, told)
                    emit(applied, as_json, lambda console: render(console, applied))
                if check:
                    return
                click.echo(f"serving at {url}; Ctrl-C ends it", err=True)
                server.process.wait()
            except KeyboardInterrupt:
                return
            finally:
                client.close()
            raise CollabError(f"ollama serve ended: {server.last_words()}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def render(console: Console, applied: Applied) -> None:
    """Print what the runner was told and where its memory went."""
    console.print(
        f"{applied.model}: {applied.bytes:,} bytes, {applied.bytes_on_gpu:,} of them on GPUs, "
        f"{applied.context:,} tokens of context (process {applied.pid})",
        highlight=False,
    )
    for name, value in applied.variables.items():
        console.print(f"{name}={value}", highlight=False, markup=False, soft_wrap=True)
    for device, purposes in applied.buffers_mib.items():
        parts = ", ".join(f"{purpose} {mib:,.2f} MiB" for purpose, mib in purposes.items())
        console.print(f"{device}: {parts}", highlight=False)
    for note in applied.notes:
        console.print(f"note: {note}")
