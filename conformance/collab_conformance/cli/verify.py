"""`collab-plugin verify`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collab_conformance.cli import merge, pack
from collab_conformance.cli.group import ArtifactsOrCommand
from collab_conformance.cli.outputs import Outputs
from collab_plugin.cli import progress as bars
from collab_plugin.cli.output import emit
from collab_plugin.cli.threads import threads_option
from collab_plugin.errors import CollabError

if TYPE_CHECKING:
    from collab_conformance.report.verify_report import Fidelity, Report
    from collab_conformance.run.job import Subject
    from collab_plugin.engines.target import TargetInfo

LEVEL_NAMES = ("artifact", "kernels", "routing", "logits", "text", "behaviour")
"""As report.document.LEVELS, which would bring numpy to every `--help`; a test keeps them alike."""
FIDELITY_ENGINE = "llamacpp"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to verify and how, as given."""

    artifacts: tuple[Path, ...]
    suite: bool
    against: Path | None
    targets: tuple[str, ...]
    levels: tuple[str, ...]
    short: bool
    skips: Path | None
    xfails: Path | None
    time_limit: float
    threads: int
    original: Path | None
    texts: tuple[Path, ...]
    placement: Path | None


@click.group(cls=ArtifactsOrCommand, invoke_without_command=True)
@click.argument("artifacts", metavar="[ARTIFACT]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--suite", is_flag=True, help="Verify the suite's own small models with their packs.")
@click.option(
    "--target",
    "targets",
    metavar="NAME",
    multiple=True,
    help="Only targets of this name, these first parts of a name, or this pattern with * and ?; may be repeated.",
)
@click.option("--list", "as_list", is_flag=True, help="List the targets of this machine and run nothing.")
@click.option(
    "--against", type=click.Path(path_type=Path), help="Hold the artifact to this pack instead of the reference."
)
@click.option(
    "--level", "levels", type=click.Choice(LEVEL_NAMES), multiple=True, help="Only this level; may be repeated."
)
@click.option("--short", is_flag=True, help="The short form: fewer types, sizes and prompts.")
@click.option("--original", type=click.Path(path_type=Path), help="Compare with the original model, too; needs --text.")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="UTF-8 text for --original; may be repeated.",
)
@click.option(
    "--placement", type=click.Path(path_type=Path), help="Verify with experts where this document of `place` has them."
)
@click.option("--skips", type=click.Path(path_type=Path), help="File of checks to leave out, with reasons.")
@click.option("--xfails", type=click.Path(path_type=Path), help="File of expected failures, with reasons.")
@click.option(
    "--time-limit",
    type=click.FloatRange(1, 1e6),
    default=3600,
    show_default=True,
    help="Seconds for each target; one that takes longer is ended and fails.",
)
@threads_option
@click.option(
    "--json",
    "json_path",
    metavar="[FILE.json]",
    is_flag=False,
    flag_value="-",
    help="Write the report as JSON; without a file, alone on stdout.",
)
@click.option("--junit", type=click.Path(path_type=Path), help="Write the report as JUnit XML.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as an HTML page.")
@click.pass_context
def command(
    context: click.Context,
    artifacts: tuple[Path, ...],
    suite: bool,
    targets: tuple[str, ...],
    as_list: bool,
    against: Path | None,
    levels: tuple[str, ...],
    short: bool,
    original: Path | None,
    texts: tuple[Path, ...],
    placement: Path | None,
    skips: Path | None,
    xfails: Path | None,
    time_limit: float,
    threads: int,
    json_path: str | None,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Check that a compressed model computes the right thing on every engine and device of this machine.

    Each target is held to a reference: computed in float64 for the architectures that have one, else a pack
    recorded by `verify pack`. The exit code is 0 only when a target was run and all that were run passed.
    An artifact with the name of a command below is written ./pack.

    Example: collab-plugin verify out.gguf --target llamacpp:cpu --target ollama --json report.json

    Example: collab-plugin verify --suite --junit junit.xml
    """
    outputs = Outputs(json_path, junit, html)
    outputs.check()
    if as_list:
        _list(targets, outputs)
        return
    request = Request(
        artifacts, suite, against, targets, levels, short, skips, xfails, time_limit, threads, original, texts,
        placement,
    )  # fmt: skip
    _check(request)
    from collab_conformance.report.verify_report import exit_code
    from collab_plugin.formats.text_file import text_file

    request = dataclasses.replace(request, texts=tuple(map(text_file, texts)))  # pipes are read before the work

    with tempfile.TemporaryDirectory(prefix="collab-verify-") as scratch:
        report = _verify(request, Path(scratch))
    outputs.write(report)
    context.exit(exit_code(report))


command.add_command(pack.command, "pack")
command.add_command(merge.command, "merge")


def _check(request: Request) -> None:
    """CollabError for what cannot be meant."""
    if not request.artifacts and not request.suite:
        raise CollabError("nothing to verify: give an ARTIFACT, or --suite for the suite's own models")
    if request.artifacts and request.suite:
        raise CollabError("--suite verifies the suite's own models: give it without ARTIFACT")
    missing = next((path for path in request.artifacts if not path.exists()), None)
    if missing is not None:
        raise CollabError(f"{missing} does not exist; give a GGUF file, or one of the commands pack and merge")
    if request.against is not None and len(request.artifacts) != 1:
        raise CollabError("--against holds one ARTIFACT to one pack; verify others by themselves")
    if (request.original is None) != (not request.texts):
        raise CollabError("--original and --text go together: the comparison is made on text")
    if request.original is not None and not request.artifacts:
        raise CollabError("--original is the original of an ARTIFACT: give one")
    if request.placement is not None and len(request.artifacts) != 1:
        raise CollabError("--placement is for one ARTIFACT; verify others by themselves")
    names = [path.name for path in request.artifacts]
    if len(set(names)) < len(names):
        raise CollabError("two artifacts have the same file name, by which reports call them; rename one")


def _verify(request: Request, scratch: Path) -> Report:
    from collab_conformance.cli.verify_progress import shown
    from collab_conformance.judge.limits import read_limits
    from collab_conformance.judge.skips import read_rules
    from collab_conformance.reference.run_reference import check_reference
    from collab_conformance.report.verify_report import LEVELS
    from collab_conformance.run.find_targets import choose, find_targets
    from collab_conformance.run.verify_targets import verify

    if request.against is None:
        for artifact in request.artifacts:
            check_reference(artifact, ", or use a pack with `against`")
    infos = choose(find_targets(), request.targets)
    levels = tuple(level for level in LEVELS if not request.levels or level in request.levels)
    skips = read_rules(request.skips) if request.skips else ()
    xfails = read_rules(request.xfails) if request.xfails else ()
    subjects = _subjects(request, scratch)
    with shown() as progress:
        report = verify(
            subjects,
            infos,
            levels=levels,
            short=request.short,
            threads=request.threads,
            seed=0,
            limits=read_limits(),
            skips=skips,
            xfails=xfails,
            time_limit=request.time_limit,
            placement=request.placement,
            progress=progress,
        )
    if request.original is None:
        return report
    return dataclasses.replace(report, fidelity=_fidelity(request, request.original, subjects))


def _subjects(request: Request, scratch: Path) -> tuple[Subject, ...]:
    if request.suite:
        from collab_conformance.suite.suite_subjects import suite_subjects

        return suite_subjects(request.short)
    from collab_conformance.suite.artifact_subjects import artifact_subject

    return tuple(artifact_subject(path, request.against, scratch, bars.shown()) for path in request.artifacts)


def _fidelity(request: Request, original: Path, subjects: tuple[Subject, ...]) -> tuple[Fidelity, ...]:
    from collab_conformance.judge.fidelity import measure_fidelity

    return tuple(
        measure_fidelity(
            FIDELITY_ENGINE,
            Path(subject.artifact),
            subject.name,
            original,
            request.texts,
            request.threads,
            bars.shown(),
        )
        for subject in subjects
    )


def _list(wanted: tuple[str, ...], outputs: Outputs) -> None:
    from collab_conformance.run.find_targets import choose, find_targets
    from collab_plugin.formats.json_document import to_plain

    if outputs.json not in (None, "-") or outputs.junit or outputs.html:
        raise CollabError("--list makes no report: give it with --json alone, or with no output")
    infos = choose(find_targets(), wanted)
    emit(to_plain(infos), outputs.json_on_stdout, lambda console: _render_list(console, infos))


def _render_list(console: Console, infos: list[TargetInfo]) -> None:
    from collab_conformance.report.verify_terminal import device_words
    from collab_plugin.reports.number_words import clean

    if not infos:
        console.print("no target: no plugin that is installed brings one (see `collab-plugin plugins`)")
        return
    table = Table("target", "build", "device", "here")
    for info in infos:
        style = "" if info.absent is None else "dim"
        device = "–" if info.device is None else device_words(info.device)
        cells = (info.name, info.build or "–", device, info.absent or "yes")
        table.add_row(*(Text(clean(cell), style=style) for cell in cells))
    console.print(table)
