"""The report document. Page: docs/formats/report.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from collab_plugin.engines.target import Device

Verdict = Literal["pass", "fail", "skipped", "not-run"]
Level = Literal["artifact", "kernels", "routing", "logits", "text", "behaviour"]
Bound = Literal["at-most", "at-least"]
LEVELS: tuple[Level, ...] = ("artifact", "kernels", "routing", "logits", "text", "behaviour")


@dataclass(frozen=True)
class Limit:
    """What a figure is held to: ``bound`` and ``value``, and the ``source`` of the number in words."""

    bound: Bound
    value: float
    source: str

    def holds(self, figure: float) -> bool:
        """NaN never holds."""
        return figure <= self.value if self.bound == "at-most" else figure >= self.value


@dataclass(frozen=True)
class Check:
    """One check of one target. ``name``: "logits.mean_kld", "kernels.mul_mat_id.IQ2_XXS"; ``artifact``: the
    artifact's name, "" for checks that need none (kernels). ``value`` None when it was skipped or failed to
    give a number, and then ``reason`` says why. ``limit`` None: reported, held to nothing. ``expected``: the
    reason from a file of expected failures; a failed check with one does not fail its target."""

    level: Level
    name: str
    artifact: str
    verdict: Verdict
    reason: str
    value: float | None
    limit: Limit | None
    expected: str | None


@dataclass(frozen=True)
class TargetReport:
    """One target. ``figures`` and ``limits`` by "artifact/name" ("name" alone without artifact) repeat what
    ``checks`` hold, for programs that want numbers only. ``plan_fingerprint``: of each artifact that was run,
    by its name; None where it has no plan. ``seconds``: of the child process."""

    name: str
    verdict: Verdict
    reason: str
    engine: str
    build: str
    device: Device | None
    versions: Mapping[str, str]
    plan_fingerprint: Mapping[str, str | None]
    figures: Mapping[str, float]
    limits: Mapping[str, Limit]
    checks: tuple[Check, ...]
    seconds: float


@dataclass(frozen=True)
class ArtifactId:
    """A file that was verified. ``pack``: sha256 of the pack's tensors; ``reference``: what made them."""

    name: str
    sha256: str
    bytes: int
    architecture: str
    plan_fingerprint: str | None
    pack: str
    reference: str


@dataclass(frozen=True)
class Fidelity:
    """Question B: the artifact against its original. ``grade`` by mean KL divergence, "not graded" below 2
    bits a weight."""

    artifact: str
    bits_per_weight: float
    mean_kld: float
    mean_kld_stderr: float
    kld_p99: float
    same_top1: float
    ppl_ratio: float
    tokens: int
    grade: str


@dataclass(frozen=True)
class Report:
    """``machine``: name, operating system and processor in words; ``versions``: of collab-plugin, Python
    and numpy. ``short``: the short form was run, which leaves out what the pages say."""

    machine: str
    created: str
    short: bool
    versions: Mapping[str, str]
    artifacts: tuple[ArtifactId, ...]
    targets: tuple[TargetReport, ...]
    fidelity: tuple[Fidelity, ...]


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """A target's verdict: `fail` if one check failed unexpectedly, `pass` if one passed, else `skipped`."""
    verdicts = [check.verdict for check in checks if check.expected is None]
    if "fail" in verdicts:
        return "fail"
    return "pass" if "pass" in verdicts else "skipped"


def exit_code(report: Report) -> int:
    """0 only when a target was run and every one that was run passed, else 1. Skipped targets were not run."""
    run = [target.verdict for target in report.targets if target.verdict in ("pass", "fail")]
    return 0 if run and all(verdict == "pass" for verdict in run) else 1
