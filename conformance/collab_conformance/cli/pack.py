"""`collab-plugin verify pack`."""

from __future__ import annotations

from pathlib import Path

import click

from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option
from collab_plugin.formats.output_path import check_output_folder


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write, not there yet.")
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text to take the prompts of, instead of the suite's."
)
@click.option(
    "--target", metavar="NAME", help="Record what this target computes (see `verify --list`), not the reference."
)
@threads_option
@json_option
def command(artifact: Path, output: Path, text: Path | None, target: str | None, threads: int, as_json: bool) -> None:
    """Record a reference that this artifact can be held to on any machine.

    The reference is computed in float64 where there is one for the architecture. Otherwise take a target
    that you trust, and the pack says so.

    Example: collab-plugin verify pack out.gguf -o pack/
    """
    check_output_folder(output)
    from collab_conformance.pack.prompts import default_prompts, text_prompts
    from collab_conformance.reference.run_reference import check_reference
    from collab_conformance.run.record_pack import record_reference, record_target
    from collab_plugin.cli.progress import shown
    from collab_plugin.formats.text_file import text_file

    if target is None:
        check_reference(artifact, ", or record what a `target` computes")
    prompts = default_prompts(artifact) if text is None else text_prompts(artifact, text_file(text))
    if target is None:
        document = record_reference(artifact, prompts, output, shown())
    else:
        document = record_target(target, artifact, prompts, output, threads, shown())
    result = {
        "output": str(output),
        "artifact": document.artifact.name,
        "recorder": document.recorder,
        "prompts": {prompt.name: len(prompt.tokens) for prompt in document.prompts},
        "routing": document.routing,
        "tensors_sha256": document.tensors_sha256,
    }
    emit(
        result,
        as_json,
        lambda console: console.print(
            f"{output}: {len(document.prompts)} prompts, {sum(len(p.tokens) for p in document.prompts):,} tokens, "
            f"recorded by {document.recorder.name}",
            markup=False,
            highlight=False,
        ),
    )
