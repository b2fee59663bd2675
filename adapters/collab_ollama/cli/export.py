"""`collab-plugin export ollama`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from collab_ollama.cli.model_options import ModelOptions, model_options, modelfile_of
from collab_plugin.cli.output import emit, json_option


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the model in Ollama.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the Modelfile.")
@model_options
@json_option
def command(artifact: Path, name: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write a Modelfile for `ollama create`.

    ARTIFACT is a GGUF, or any shard of a split one; the Modelfile names it by its absolute path.

    Example: collab-plugin export ollama out.gguf --name deepseek-v3-103g -o build/
    """
    from collab_ollama.model.gguf_for_ollama import open_artifact
    from collab_ollama.model.model_name import parse_name
    from collab_ollama.model.modelfile import render
    from collab_plugin.formats.atomic_write import write_bytes
    from collab_plugin.formats.output_path import writing

    model = parse_name(name)
    opened, modelfile = modelfile_of(open_artifact(artifact), ModelOptions(**options))
    text = render(modelfile)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    path = output / "Modelfile"
    write_bytes(path, text.encode())
    result = {
        "modelfile": str(path),
        "create": ["ollama", "create", str(model), "-f", str(path)],
        "bytes": opened.bytes,
        "disk_needed": 3 * opened.bytes,
        "same_bytes": opened.in_copy_order,
        "notes": list(opened.notes),
    }

    def show(console: Console) -> None:
        lines = [
            str(path),
            f"ollama create {model} -f {path}",
            f"needs {result['disk_needed']:,} bytes in the server's models folder while it works "
            f"(`collab-plugin ollama create` {2 * opened.bytes:,}), {opened.bytes:,} afterwards",
            *(f"note: {note}" for note in opened.notes),
        ]
        console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)

    emit(result, as_json, show)
