"""A target's child process, `python -m collab_conformance.run.target_child FOLDER`, measures what the job asks for.

It tells Begun and MeasuredFigure as lines ``{"begun": ...}`` and ``{"measured": ...}``.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from collab_conformance.levels import behaviour, kernels_level, logits, routing, text
from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.run.job import Begun, Job, MeasuredFigure, Skip, named
from collab_plugin.engines.child_main import Parent, run_child
from collab_plugin.engines.target import KernelBench, NotOfferedError, Target
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import to_plain
from collab_plugin.plugins.manager import pick, registry

Say = Callable[[Begun | MeasuredFigure], None]
# The artifact level needs no engine: the parent measures it.
RUN = {"routing": routing.checks, "logits": logits.checks, "text": text.checks, "behaviour": behaviour.checks}


def main() -> None:
    run_child({Job: _run})


def _run(job: Job, parent: Parent) -> None:
    def say(line: Begun | MeasuredFigure) -> None:
        parent.say(**{"begun" if isinstance(line, Begun) else "measured": to_plain(line)})

    provider = pick(registry().targets, job.target.partition(":")[0], "target")
    measure(provider.open(job.target), job, say)


def measure(target: Target, job: Job, say: Say) -> None:
    """Run every check of the job, whatever becomes of the others."""
    subjects = [Running(target, s, read_pack(Path(s.pack)), job) for s in job.subjects]
    checks = [[check for level in job.levels if level in RUN for check in RUN[level](s)] for s in subjects]
    tally = Tally(job.skips, say, sum(map(len, checks)))
    if "kernels" in job.levels:
        _kernels(target, job, tally)
    for running, planned in zip(subjects, checks, strict=True):
        try:
            tally.run(planned)
        finally:
            running.close()


def _kernels(target: Target, job: Job, tally: Tally) -> None:
    """Opening the bench is a check of its own, as a driver may die in it; its figure is the number of types."""
    with ExitStack() as stack:
        benches: list[KernelBench] = []

        def types() -> float:
            bench: AbstractContextManager[KernelBench] = target.kernels()
            benches.append(stack.enter_context(bench))
            return len(benches[0].types())

        tally.total += 1
        tally.run([Planned("kernels", "kernels.types", "", types)])
        for bench in benches:
            checks = kernels_level.checks(bench, job)
            tally.total += len(checks)
            tally.run(checks)


class Tally:
    """Runs checks and says what each came to."""

    def __init__(self, skips: Sequence[Skip], say: Say, total: int) -> None:
        self._skips, self._say, self._done, self.total = skips, say, 0, total

    def run(self, checks: Sequence[Planned]) -> None:
        for check in checks:
            skip = next((s for s in self._skips if named(s.check, check.artifact, check.name)), None)
            if skip is None:
                self._say(Begun(check.level, check.name, check.artifact, self._done, self.total))
                self._say(outcome(check))
            else:
                self._say(MeasuredFigure(check.level, check.name, check.artifact, None, skip.reason, True))
            self._done += 1


def outcome(check: Planned) -> MeasuredFigure:
    """Run a check: its figure, or why there is none."""
    value, reason, skipped = None, "", False
    try:
        value = float(check.measure())
    except NotOfferedError as error:
        reason, skipped = str(error), True
    except CollabError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if value is not None and not math.isfinite(value):
        value, reason = None, f"the figure is {value}: the engine gave values that are not finite"
    return MeasuredFigure(check.level, check.name, check.artifact, value, reason, skipped)


if __name__ == "__main__":
    main()
