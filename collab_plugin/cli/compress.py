"""`collab-plugin compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from collab_plugin.cli.output import emit, json_option
from collab_plugin.cli.threads import threads_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--plan", "plan_path", type=click.Path(path_type=Path), required=True, help="Plan of `plan`.")
@click.option(
    "--stats", "stats_path", type=click.Path(path_type=Path), help="The plan's stats file, when it was moved."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["gguf", "safetensors"]),
    default="gguf",
    show_default=True,
    help="A GGUF, or a Hugging Face folder that other engines load.",
)
@click.option(
    "--precision",
    type=click.Choice(["plan", "original"]),
    help="Of a folder: 8 and 4 bits as compressed-tensors where the plan has few (default), or as stored.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="GGUF or folder to write.")
@threads_option
@json_option
def command(
    model: Path,
    plan_path: Path,
    stats_path: Path | None,
    output_format: Literal["gguf", "safetensors"],
    precision: Literal["plan", "original"] | None,
    output: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Write the GGUF that a plan describes, or a pruned Hugging Face folder.

    The output appears under its name only when complete. An interrupted run goes on where it stopped
    when the same command is given again; a folder is begun anew.

    Example: collab-plugin compress DeepSeek-V3/ --plan plan.json -o out.gguf
    """
    if output_format == "safetensors":
        if stats_path is not None:
            raise click.UsageError("--stats is for GGUF files: 8 and 4 bits of compressed-tensors need none")
        _folder(model, plan_path, precision or "plan", output, threads, as_json)
        return
    if precision is not None:
        raise click.UsageError("--precision is for --format safetensors: a GGUF has the plan's types")
    from collab_plugin.cli.progress import shown
    from collab_plugin.compression.gguf_file import compress
    from collab_plugin.compression.inputs import kernels_for, stats_of
    from collab_plugin.plans.artifact import check_one_count
    from collab_plugin.plans.plan_file import read_plan
    from collab_plugin.plugins.open_checkpoint import open_checkpoint
    from collab_plugin.progress import track

    plan = read_plan(plan_path)
    check_one_count(plan, "a GGUF")  # before stats and kernels are missed
    checkpoint = open_checkpoint(model)
    stats = stats_of(plan, checkpoint, plan_path.parent, stats_path)
    kernels = kernels_for(plan, checkpoint)
    with track(shown(), "compressing", unit="weights") as report:
        result = compress(checkpoint, plan, stats, output, kernels=kernels, threads=threads, report=report)
    emit(
        {**vars(result), "bits_per_weight": plan.bits_per_weight},
        as_json,
        lambda console: console.print(
            f"{result.path}: {result.bytes:,} bytes, {plan.bits_per_weight:.3f} bpw, {result.seconds:.1f} s, "
            f"{result.bytes / 1e6 / max(result.seconds, 1e-9):.1f} MB/s written, "
            f"peak memory {result.peak_memory / 2**20:,.0f} MiB"
            + (f" ({result.resumed_tiles} of {result.tiles} tiles from an earlier run)" if result.resumed_tiles else "")
        ),
    )


def _folder(
    model: Path, plan_path: Path, precision: Literal["plan", "original"], output: Path, threads: int, as_json: bool
) -> None:
    from collab_plugin.cli.progress import shown
    from collab_plugin.compression.hf_folder import compress_folder
    from collab_plugin.plans.artifact import check_one_count
    from collab_plugin.plans.plan_file import read_plan
    from collab_plugin.plugins.open_checkpoint import open_checkpoint
    from collab_plugin.progress import track

    plan = read_plan(plan_path)
    check_one_count(plan, "a config.json")
    checkpoint = open_checkpoint(model)
    with track(shown(), "compressing", unit="weights") as report:
        result = compress_folder(checkpoint, plan, output, precision=precision, threads=threads, report=report)
    emit(
        vars(result),
        as_json,
        lambda console: console.print(
            f"{result.path}: {result.bytes:,} bytes in {result.files} file{'s' if result.files > 1 else ''}, "
            f"{result.bits_per_weight:.3f} bpw, {result.seconds:.1f} s, "
            f"peak memory {result.peak_memory / 2**20:,.0f} MiB"
        ),
    )
