"""One model, calibrated and probed, and files of it built and measured: what the benchmarks of quality work with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

import collab_plugin as cp
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.compression.inputs import samples_at
from collab_plugin.compression.ray_cluster import RayCluster
from collab_plugin.engines.engine import Windows
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.measure.plans_on_cluster import ClusterPlans, measured_on
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.plugins.manager import registry
from collab_plugin.progress import untold

CALIBRATION = 24  # windows of 512 tokens, of each text
PROBING = 4
ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "tests" / "texts"
# What plans and files depend on; a row of other sources is measured anew.
SOURCES = ("collab_plugin", "adapters")


def trained_models() -> list[Path]:
    """The trained models of the tests, and those that only benchmarks use."""
    folders = (ROOT / "tests" / "models", ROOT / "benchmarks" / "models")
    return [config.parent for folder in folders for config in sorted(folder.glob("*/config.json"))]


@dataclass(frozen=True)
class Row:
    """One built file. ``budget_bpw``: asked for; ``bpw``: what it has, both of the original's parameters; ``version``:
    of the sources that planned and measured it."""

    model: str
    budget_bpw: float
    variant: str
    detail: str
    bytes: int
    bpw: float
    mean_kld: float
    stderr: float
    ppl: float
    ppl_original: float
    same_top1: float
    version: str

    @property
    def fits(self) -> bool:
        return self.bpw <= self.budget_bpw


@cache
def version() -> str:
    """The commit, with "+" where the planner's sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    return git("rev-parse", "--short=9", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "--", *SOURCES))


@cache
def planner() -> str:
    """A digest of the sources that plans and files depend on: commits that leave them alone share their rows."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in SOURCES for p in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Remembering(GgmlKernels):
    """ggml's kernels; what was quantized once is not quantized again, because the plans compared share most."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, NDArray[np.uint8]] = {}

    def quantize(
        self, values: NDArray[np.float32], type_name: str, imatrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        digest = hashlib.sha256(np.ascontiguousarray(values).data)
        digest.update(type_name.encode() + (b"" if imatrix is None else imatrix.tobytes()))
        key = digest.digest()
        if key not in self._known:
            self._known[key] = super().quantize(values, type_name, imatrix)
        return self._known[key]


class Bench:
    def __init__(self, model: Path, work: Path, chunks: int, threads: int, probe_tokens: int | None = None) -> None:
        self.model, self.work, self.chunks, self.threads = model, work, chunks, threads
        self.probe_tokens = probe_tokens
        work.mkdir(parents=True, exist_ok=True)
        self.checkpoint = cp.open_checkpoint(model)
        self.topology = cp.inspect(self.checkpoint)
        self.kernels = Remembering()
        self.original = as_gguf(self.checkpoint, threads)
        trained = self.checkpoint.metadata[f"{self.checkpoint.architecture}.context_length"].value
        # Windows of the length that the model was trained for, and about as many tokens in all.
        self.ctx = min(512, int(trained))

    # -- statistics

    @property
    def calibration(self) -> tuple[Path, ...]:
        return tuple(sorted(TEXTS.glob("*.calibration.txt")))

    @property
    def validation(self) -> tuple[Path, ...]:
        return tuple(sorted(TEXTS.glob("*.validation.txt")))

    @cached_property
    def stats(self) -> Path:
        """Stats of the calibration texts, made once."""
        path = self.work / "plain.stats.gguf"
        if not path.exists():
            cp.write_stats(path, cp.calibrate(self.original, **self._texts(self.calibration, CALIBRATION)))
        return path

    @cached_property
    def sensitivity(self) -> Path:
        """What the calibration texts tell of the model, probed once."""
        path = self.work / f"sensitivity-{planner()}.json"
        if not path.exists():
            found = cp.probe(self.checkpoint, stats=self.stats, texts=self.calibration, tokens=self.probe_tokens,
                             experts_used="auto", threads=self.threads)  # fmt: skip
            cp.write_sensitivity(path, found)
        return path

    @cached_property
    def samples(self) -> Path:
        """What experts compute on the calibration texts, sampled once."""
        path = self.work / "samples.gguf"
        if not path.exists():
            cp.sample(self.original, path, **self._texts(self.calibration, CALIBRATION))
        return path

    def _texts(self, texts: tuple[Path, ...], chunks: int) -> dict[str, Any]:
        """``chunks``: windows of 512 tokens of each text, or as many tokens in the model's own windows."""
        return {"texts": texts, "ctx": self.ctx, "chunks": -(-chunks * 512 // self.ctx), "threads": self.threads}

    def planning(self, sensitivity: Path | None, criterion: str = "freq-score", **options: Any) -> PlanningInput:
        """What a plan of this model is made from, for plans by rule and for what the planner predicts."""
        request = PlanRequest(
            None, registry().criteria[criterion], registry().allocators["knapsack"], threads=self.threads, **options
        )
        return PlanningInput(
            self.checkpoint,
            self.topology,
            request,
            StatsSource.read(self.stats),
            None if sensitivity is None else SensitivitySource.read(sensitivity),
            self.kernels,
        )

    # -- files by plan

    def planned(
        self,
        variant: str,
        bpw: float,
        *,
        probed: bool = True,
        repaired: bool = False,
        confirm: int = 0,
        allocator: str = "knapsack",
        criterion: str = "auto",
        **options: Any,
    ) -> list[Row]:
        """Plan, build and measure; no row when no plan holds the budget."""
        options = {"allocator": allocator, "criterion": criterion, **options}
        key = f"plan {planner()} {variant} {bpw} {confirm} {sorted(options.items())} {probed} {repaired}"
        if (row := self.known(key)) is not None:
            return [row]
        try:
            samples = self.samples if repaired else None
            plan = self._decide(self.sensitivity if probed else None, bpw, options | {"samples": samples}, confirm)
        except cp.CollabError as error:
            print(f"{self.model.name} {bpw} {variant}: {error}")
            return []
        p = plan.pruning
        detail = f"{p.expert_count} experts, top-{plan.activation.used}"
        if plan.predicted_kld is not None:
            detail += f", predicted {_digits(plan.predicted_kld)}"
        return [self.built(key, variant, bpw, detail, plan)]

    def _decide(self, sensitivity: Path | None, bpw: float, options: dict[str, Any], confirm: int) -> cp.Plan:
        options = dict(options)
        if options.get("allocator") == "error-alone":
            options["allocator"] = self._error_alone(sensitivity)
        texts = self._texts(self.calibration, min(PROBING, self.chunks))
        return cp.plan(self.checkpoint, stats=self.stats, sensitivity=sensitivity, budget=f"{bpw}bpw", confirm=confirm,
                       kernels=self.kernels, **texts, **options)  # fmt: skip

    def _error_alone(self, sensitivity: Path | None) -> cp.Allocator:
        """The knapsack without sensitivity: every tensor's relative error counts alike."""
        knapsack = registry().allocators["knapsack"]
        weights = predictor_of(Candidates(self.planning(sensitivity))).weights

        def solve(items: Any, budget: int, values: Any) -> Any:
            plain = [
                cp.Item(
                    item.name,
                    tuple(dataclasses.replace(c, cost=c.cost / max(weights[item.name], 1e-12)) for c in item.choices),
                )
                for item in items
            ]
            return knapsack.solve(plain, budget, values)

        return cp.Allocator("error-alone", "relative error without sensitivity", solve, options=knapsack.options)

    def built(self, key: str, variant: str, bpw: float, detail: str, plan: cp.Plan, *, rival: bool = False) -> Row:
        """``rival``: a plan by rule, whose file does not change with the planner."""
        out = self.work / "out.gguf"
        same = _of_file(plan, rival)
        known = self.known(same)
        if known is None:
            samples = None if plan.repair is None else self.samples
            cp.compress(self.checkpoint, plan, out, stats=self.stats, samples=samples, kernels=self.kernels,
                        threads=self.threads)  # fmt: skip
            known = self.measured(same, variant, bpw, detail, out)
        return self._keep(key, dataclasses.replace(known, variant=variant, budget_bpw=bpw, detail=detail))

    # -- measuring

    def measure_on(self, cluster: str, plans: Sequence[cp.Plan]) -> None:
        """Measure on the Ray cluster at that address; what `built` then finds is what it would have measured itself."""
        todo = {_of_file(plan): plan for plan in plans}
        todo = {key: plan for key, plan in todo.items() if self.known(key) is None}
        samples = self.samples.resolve() if any(plan.repair is not None for plan in todo.values()) else None
        model = partial(cp.open_checkpoint, self.model.resolve())
        workers = RayCluster(cluster, model, GgmlKernels, partial(samples_at, samples))
        texts = tuple(text.resolve() for text in self.validation)
        windows = Windows(texts, self.ctx, int(self._texts(texts, self.chunks)["chunks"]))
        stats, reference = StatsSource.read(self.stats).stats, self.reference.resolve()
        job = ClusterPlans(workers, LlamaCppEngine(), windows, reference, stats, tuple(todo.values()), self.threads)
        for (key, plan), e in zip(todo.items(), measured_on(job, untold), strict=True):
            self._keep(key, self._row("", 0.0, "", plan.bytes, e))

    @cached_property
    def reference(self) -> Path:
        path = self.work / "reference.npy"
        if not path.exists():
            part = self.work / "part.npy"
            cp.reference(self.original, part, **self._texts(self.validation, self.chunks))
            part.with_suffix(".windows.npy").rename(path.with_suffix(".windows.npy"))
            part.rename(path)
        return path

    def evaluated(self, file: Path) -> cp.Evaluation:
        return cp.evaluate(file, against=self.reference, **self._texts(self.validation, self.chunks))

    def measured(self, key: str, variant: str, bpw: float, detail: str, file: Path) -> Row:
        """Evaluate ``file``; remembered under ``key``."""
        if (known := self.known(key)) is not None:
            return known
        e = self.evaluated(file)
        return self._keep(key, self._row(variant, bpw, detail, file.stat().st_size, e))

    def _row(self, variant: str, bpw: float, detail: str, size: int, e: cp.Evaluation) -> Row:
        return Row(
            self.model.name, bpw, variant, detail, size, size * 8 / self.topology.total_parameters, e.mean_kld,
            e.mean_kld_stderr, e.ppl, e.ppl_original, e.same_top1, version(),
        )  # fmt: skip

    def _file(self, key: str) -> Path:
        return self.work / f"row-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def known(self, key: str) -> Row | None:
        path = self._file(key)
        return Row(**json.loads(path.read_text())) if path.exists() else None

    def _keep(self, key: str, row: Row) -> Row:
        self._file(key).write_text(json.dumps(dataclasses.asdict(row)))
        return row


def _digits(kld: float) -> str:
    """Four decimals, of little two digits that count."""
    return f"{kld:.4f}" if kld >= 0.0095 else f"{kld:.5f}"


def _of_file(plan: cp.Plan, rival: bool = False) -> str:
    """The key of what a plan's file measures."""
    return f"file {'' if rival else planner()} {plan_fingerprint(plan)}"
