"""One model, calibrated and probed, and files of it built and measured: what the benchmarks of quality work with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Decoding, Windows
from collab_plugin.errors import CollabError
from collab_plugin.planning.allocators.allocator import Allocator, Item
from collab_plugin.planning.back_off import DEFAULT_BASE, DEFAULT_FLOORS
from collab_plugin.planning.budget import parse_budget
from collab_plugin.planning.candidates import Candidates
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.decide import decide
from collab_plugin.planning.measure.measuring import Measuring
from collab_plugin.planning.measure.probe import probe
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.predictor import predictor_of
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.sources import SensitivitySource, StatsSource
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.plugins.manager import registry
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.stats.sensitivity_file import write_sensitivity
from collab_plugin.stats.stats_file import write_stats

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "tests" / "texts"
PROMPT = "The history of the house begins in the year"


def trained_models() -> list[Path]:
    """The trained models of the tests, and the one of another seed that only benchmarks use."""
    folders = (ROOT / "tests" / "models", ROOT / "benchmarks" / "models")
    return [config.parent for folder in folders for config in sorted(folder.glob("*/config.json"))]


@dataclass(frozen=True)
class Row:
    """One built file. ``budget_bpw``: asked for; ``bpw``: what it has, both of the original's parameters."""

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
    tokens_per_second: float


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
    def __init__(self, model: Path, work: Path, chunks: int, threads: int, probe_minutes: float) -> None:
        self.model, self.work, self.chunks, self.threads = model, work, chunks, threads
        self.probe_minutes = probe_minutes
        work.mkdir(parents=True, exist_ok=True)
        self.checkpoint = open_checkpoint(model)
        self.topology = topology_of(self.checkpoint)
        self.kernels = Remembering()
        self.engine = registry().engines["llamacpp"]
        self.original = as_gguf(open_checkpoint(model), threads)

    # -- statistics

    @property
    def calibration(self) -> tuple[Path, ...]:
        return tuple(sorted(TEXTS.glob("*.calibration.txt")))

    @property
    def validation(self) -> tuple[Path, ...]:
        return tuple(sorted(TEXTS.glob("*.validation.txt")))

    @cached_property
    def plain_stats_file(self) -> Path:
        """Stats of the calibration texts, made once."""
        path = self.work / "plain.stats.gguf"
        if not path.exists():
            stats = self.engine.calibrate(
                self.original, Windows(self.calibration, chunks=24), threads=self.threads, progress=untold
            )
            write_stats(path, dataclasses.replace(stats, model_id=model_id(self.checkpoint)))
        return path

    @cached_property
    def plain_stats(self) -> StatsSource:
        return StatsSource.read(self.plain_stats_file)

    @cached_property
    def sensitivity(self) -> SensitivitySource:
        path = self.work / "sensitivity.json"
        if not path.exists():
            planning = self.planning(None, experts_used="auto")
            write_sensitivity(path, probe(planning, self._measuring, self.probe_minutes * 60))
        return SensitivitySource.read(path)

    @property
    def _measuring(self) -> Measuring:
        return Measuring(self.engine, Windows(self.calibration, chunks=min(4, self.chunks)))

    def planning(
        self,
        sensitivity: SensitivitySource | None,
        *,
        budget: int | None = None,
        criterion: str | ImportanceCriterion = "freq-score",
        allocator: str | Allocator = "knapsack",
        **options: Any,
    ) -> PlanningInput:
        """What a plan of this model is made from."""
        request = PlanRequest(
            budget=budget,
            criterion=registry().criteria[criterion] if isinstance(criterion, str) else criterion,
            allocator=registry().allocators[allocator] if isinstance(allocator, str) else allocator,
            threads=self.threads,
            **options,
        )
        return PlanningInput(self.checkpoint, self.topology, request, self.plain_stats, sensitivity, self.kernels)

    # -- files by plan

    def planned(
        self,
        variant: str,
        bpw: float,
        *,
        probed: bool = True,
        confirm: int = 0,
        allocator: str = "knapsack",
        criterion: str = "freq-score",
        floors: bool = False,
        **options: Any,
    ) -> list[Row]:
        """Plan, build and measure; no row when no plan holds the budget."""
        options = {"allocator": allocator, "criterion": criterion, "floors": floors, **options}
        key = f"plan {variant} {bpw} {confirm} {sorted(options.items())} {probed}"
        if (row := self._known(key)) is not None:
            return [row]
        try:
            plan = self._decide(self.sensitivity if probed else None, bpw, options, confirm)
        except CollabError as error:
            print(f"{self.model.name} {bpw} {variant}: {error}")
            return []
        p = plan.pruning
        detail = f"{p.expert_count} experts, top-{plan.activation.used}, predicted {plan.predicted_kld:.4f}"
        return [self.built(key, variant, bpw, detail, plan, self.plain_stats)]

    def _decide(self, sensitivity: SensitivitySource | None, bpw: float, options: dict[str, Any], confirm: int) -> Plan:
        options = dict(options)
        if options.pop("floors", False):
            options |= {"floors": {str(r): k for r, k in DEFAULT_FLOORS.items()}, "base": DEFAULT_BASE}
        if options.get("allocator") == "error-alone":
            options["allocator"] = self._error_alone(sensitivity)
        budget = parse_budget(f"{bpw}bpw", self.topology.total_parameters)
        planning = self.planning(sensitivity, budget=budget, **options)
        return decide(planning, confirm=confirm, measuring=self._measuring)

    def _error_alone(self, sensitivity: SensitivitySource | None) -> Allocator:
        """The knapsack without sensitivity: every tensor's relative error counts alike."""
        knapsack = registry().allocators["knapsack"]
        weights = predictor_of(Candidates(self.planning(sensitivity))).weights

        def solve(items: Any, budget: int, values: Any) -> Any:
            plain = [
                Item(
                    item.name,
                    tuple(dataclasses.replace(c, cost=c.cost / max(weights[item.name], 1e-12)) for c in item.choices),
                )
                for item in items
            ]
            return knapsack.solve(plain, budget, values)

        return Allocator("error-alone", "relative error without sensitivity", solve, options=knapsack.options)

    def built(self, key: str, variant: str, bpw: float, detail: str, plan: Plan, stats: StatsSource) -> Row:
        out = self.work / "out.gguf"
        same = f"file {plan_fingerprint(plan)}"
        known = self._known(same)
        if known is None:
            compress(
                self.checkpoint, plan, stats.stats, out, kernels=self.kernels, threads=self.threads,
                report=lambda done, total=None: None,
            )  # fmt: skip
            known = self.measured(same, variant, bpw, detail, out)
        return self._keep(key, dataclasses.replace(known, variant=variant, budget_bpw=bpw, detail=detail))

    # -- measuring

    @property
    def validated(self) -> Windows:
        return Windows(self.validation, chunks=self.chunks)

    @cached_property
    def reference(self) -> Path:
        path = self.work / "reference.npy"
        if not path.exists():
            part = self.work / "part.npy"
            self.engine.reference(self.original, self.validated, out=part, threads=self.threads, progress=untold)
            part.with_suffix(".windows.npy").rename(path.with_suffix(".windows.npy"))
            part.rename(path)
        return path

    def measured(self, key: str, variant: str, bpw: float, detail: str, file: Path) -> Row:
        """Evaluate ``file`` and let it generate; remembered under ``key``."""
        if (known := self._known(key)) is not None:
            return known
        e = self.engine.evaluate(file, self.reference, self.validated, threads=self.threads, progress=untold)
        speed = self.engine.generate(
            file, PROMPT, Decoding(ctx=512), threads=self.threads, write=lambda t: None
        ).tokens_per_second
        size = file.stat().st_size
        row = Row(
            self.model.name, bpw, variant, detail, size, size * 8 / self.topology.total_parameters, e.mean_kld,
            e.mean_kld_stderr, e.ppl, e.ppl_original, e.same_top1, speed,
        )  # fmt: skip
        return self._keep(key, row)

    def _file(self, key: str) -> Path:
        return self.work / f"row-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _known(self, key: str) -> Row | None:
        path = self._file(key)
        return Row(**json.loads(path.read_text())) if path.exists() else None

    def _keep(self, key: str, row: Row) -> Row:
        self._file(key).write_text(json.dumps(dataclasses.asdict(row)))
        return row
