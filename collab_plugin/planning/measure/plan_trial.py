"""A plan tried out: its file is made, compared with the original, and removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Engine, Windows
from collab_plugin.engines.results import Evaluation
from collab_plugin.plans.plan import Plan
from collab_plugin.progress import OnProgress, silent, track
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.repair.samples import BlockSamples
from collab_plugin.stats.stats import Stats


@dataclass(frozen=True)
class PlanTrial:
    """What plans of ``checkpoint`` are tried with. ``reference``: of `Engine.reference`, on the same ``windows``."""

    checkpoint: Checkpoint
    stats: Stats | None
    samples: BlockSamples | None
    kernels: Kernels | None
    engine: Engine
    windows: Windows
    reference: Path
    threads: int

    def measured(self, plan: Plan, out: Path, what: str = "", progress: OnProgress = silent) -> Evaluation:
        """How the file of ``plan``, ``out`` for a while, compares with the original. ``what``: its name in steps."""
        with track(progress, f"compressing {what}", unit="weights") as report:
            compress(
                self.checkpoint,
                plan,
                self.stats,
                out,
                kernels=self.kernels,
                threads=self.threads,
                report=report,
                samples=self.samples,
            )
        with track(progress, f"evaluating {what}", unit="tokens") as report:
            found = self.engine.evaluate(out, self.reference, self.windows, threads=self.threads, progress=report)
        out.unlink()
        return found
