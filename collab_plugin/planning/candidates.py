"""A plan's skeleton for a kept count and a top-k: everything but the types, and the bytes around tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

from collab_plugin import __version__
from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.checkpoint.identity import fingerprint, model_id
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, bits_per_weight, fallback, tensor_bytes, without_imatrix
from collab_plugin.formats.gguf_layout import DEFAULT_ALIGNMENT, padded
from collab_plugin.planning.back_off import Limits
from collab_plugin.planning.criteria.builtin_criteria import NORMALISATION
from collab_plugin.planning.criteria.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.planning.importance_notes import no_data_note, no_routing_note
from collab_plugin.planning.prediction import prediction_note
from collab_plugin.planning.pruning import Choice, check_enough, check_routing, check_servable, choose, fewest_servable
from collab_plugin.planning.request import DEFAULT_TYPES, PlanRequest, StatsSource
from collab_plugin.planning.top_k import scaled_top_k, weight_note
from collab_plugin.plans.artifact import artifact_layout, new_shape
from collab_plugin.plans.plan import (
    Activation,
    Calibration,
    GroupPolicy,
    Plan,
    Pruning,
    Source,
    TensorPlan,
    requirements_of,
)
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.text_overlap import encode_sketch

Types = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Frame:
    """``plan`` with every tensor at its stored type; ``fixed``: bytes of the file but for the tensors
    that have a choice."""

    plan: Plan
    fixed: int

    @property
    def count(self) -> int:
        return self.plan.pruning.expert_count

    @property
    def used(self) -> int:
        return self.plan.activation.used


class Frames:
    """Makes frames of one model, one set of statistics and one request."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        topology: Topology,
        source: StatsSource | None,
        request: PlanRequest,
        kernels: Kernels | None,
    ) -> None:
        if source is not None:
            source = replace(source, stats=replace(source.stats, borrow=request.borrow))
        self.checkpoint, self.topology, self.source = checkpoint, topology, source
        self.request, self.kernels = request, kernels
        self.policy: GroupPolicy = request.groups or ("balanced" if topology.groups > 1 else "none")
        if self.policy != "none" and topology.groups == 1:
            raise CollabError(f"--groups {self.policy}: this model's router has no groups")
        self.policy_notes: list[str] = [*prediction_note(topology), *(source.notes if source else ())]
        if request.keep == "auto" and not request.keep_types:
            self.policy_notes += no_routing_note(topology, source.stats if source else None)
        self.criterion = self._criterion()
        if source is not None and not source.stats.imatrix:
            self.policy_notes.append(
                f"NO IMPORTANCE MATRIX: the stats lack it ({self._engine}), so all columns count alike and types "
                "that need it are not used"
            )
        self._choices: dict[tuple[int, int | None], Choice] = {}

    def _criterion(self) -> ImportanceCriterion:
        """The criterion asked for, or frequency alone when the stats are a foreign imatrix."""
        from collab_plugin.plugins.manager import registry

        wanted = self.request.criterion
        routing = next(iter(self.source.stats.routing.values()), None) if self.source else None
        missing = [need for need in wanted.needs if routing is not None and getattr(routing, need) is None]
        if not missing:
            return wanted
        if wanted.name != "freq-score":
            raise CollabError(
                f"criterion {wanted.name} needs {missing[0]}, which the stats lack ({self._engine}); "
                "calibrate with --engine llamacpp, or take another --criterion"
            )
        self.policy_notes.append(
            "FREQUENCY ONLY: the stats are an imatrix of another tool without router weights, so experts "
            "are chosen by how often they were used"
        )
        return registry().criteria["freq"]

    @property
    def _engine(self) -> str:
        return self.source.stats.engine if self.source else ""

    @property
    def rule(self) -> str:
        """How experts are chosen, in one line: probes of another rule do not count."""
        r = self.request
        layers = "" if r.layers == "same" else f" layers={r.layers}"
        return f"{self.criterion.name} alpha={r.alpha} seed={r.seed} groups={self.policy}{layers}"

    def scaled(self, count: int) -> int:
        return scaled_top_k(self.topology, count)

    def servable(self, count: int, used: int) -> bool:
        try:
            check_servable(self.topology, count, used, self.policy)
        except CollabError:
            return False
        return True

    def choice(self, count: int, used: int) -> Choice:
        """Which experts stay when ``count`` a layer do, and a token uses ``used``."""
        t, r = self.topology, self.request
        fewest = fewest_servable(t, used, self.policy) if r.layers == "varied" else None
        if (count, fewest) not in self._choices:
            if self.source is None:
                raise CollabError("pruning and ordering experts need statistics: calibrate, then give --stats")
            routing, options = self.source.stats.routing, CriterionOptions(r.alpha, r.seed)
            check_routing(routing, t)
            self._choices[count, fewest] = choose(
                routing, t, count, self.policy, self.criterion, options, r.order, fewest
            )
        return self._choices[count, fewest]

    def frame(self, count: int, used: int) -> Frame:
        """The skeleton; CollabError when the router cannot serve it or the stats are too thin."""
        t, checkpoint = self.topology, self.checkpoint
        check_servable(t, count, used, self.policy)
        pruning, notes = self._pruning(count, used)
        if note := weight_note(t, count, used):
            notes.append(note)
        arch = checkpoint.architecture
        metadata: dict[str, int | None] = {}
        if count != t.expert_count and not requirements_of(pruning):
            metadata[f"{arch}.expert_count"] = count
        if used != t.experts_used:
            metadata[f"{arch}.expert_used_count"] = used
        if self.policy == "disband":
            metadata |= {f"{arch}.expert_group_count": None, f"{arch}.expert_group_used_count": None}
        plan = self._skeleton(pruning, Activation(t.experts_used, used, self._rule(used)), metadata, notes)
        stored = {n: TensorPlan(i.type.name, 0, None) for n, i in checkpoint.tensors.items()}
        plan = replace(plan, tensors=stored)
        total = artifact_layout(checkpoint, plan).total
        free = sum(self.size(plan, n, i.type.name) for n, i in checkpoint.tensors.items() if quantizable(i))
        return Frame(plan, total - free)

    def _rule(self, used: int) -> str:
        asked = self.request.experts_used
        if isinstance(asked, int):
            return "given"
        if used == self.topology.experts_used:
            return "unchanged"
        return "searched" if asked == "auto" else "share"

    def _pruning(self, count: int, used: int) -> tuple[Pruning, list[str]]:
        t, r = self.topology, self.request
        if count == t.expert_count and self.policy != "disband" and r.order == "original":
            return Pruning("none", {}, NORMALISATION, self.policy, count, {}, 0.0 if self.source else None), []
        chosen = self.choice(count, used)
        if self.source is not None and not r.allow_few_tokens and count < t.expert_count:
            check_enough(self.source.stats.routing, t)
        notes = []
        if chosen.unseen_dropped:
            notes.append(
                f"{chosen.unseen_dropped} of the dropped experts were never seen in calibration: unknown, not worthless"
            )
        if self.policy == "disband":
            notes.append(
                f"ROUTING CHANGES: the {t.groups} expert groups are disbanded, so a token may use experts of any group"
            )
        how: dict[str, float | int | str] = {"alpha": r.alpha, "seed": r.seed, "order": r.order}
        if r.layers == "varied":
            how["layers"] = r.layers
        pruning = Pruning(self.criterion.name, how, NORMALISATION, self.policy, count, chosen.kept, chosen.mass_lost)
        if requirements_of(pruning):
            notes.append(
                f"ONLY vLLM RUNS IT: the layers keep {pruning.span} experts, which no GGUF and no config.json can say; "
                "its load format collab reads the checkpoint's own types, so types and bytes here are what the "
                "tensors would take"
            )
        return pruning, notes

    @cached_property
    def _source(self) -> Source:
        t, c = self.topology, self.checkpoint
        return Source(fingerprint(c), model_id(c), t.name, c.architecture, c.format, t.total_bytes, t.total_parameters)

    def _skeleton(
        self, pruning: Pruning, activation: Activation, metadata: dict[str, int | None], notes: list[str]
    ) -> Plan:
        c = self.checkpoint
        if any(i.type.name.startswith(("Q", "IQ")) for i in c.tensors.values()) and not self.request.keep_types:
            notes.append("the source is already quantized: quantizing it again loses more than from the original")
        calibration = self._calibration()
        if calibration is not None and calibration.unseen:
            notes.append(f"{calibration.unseen} experts were never seen in calibration; their importance is unknown")
        return Plan(
            source=self._source,
            requires=requirements_of(pruning),
            calibration=calibration,
            pruning=pruning,
            activation=activation,
            metadata=metadata,
            tensors={},
            budget=self.request.budget,
            bytes=0,
            bits_per_weight=0.0,
            predicted_kld=None,
            sensitivity="",
            considered=(),
            allocator="none" if self.request.keep_types else self.request.allocator.name,
            base="",
            back_off=(),
            notes=(*c.notes, *self.policy_notes, *notes),
            versions=_versions(self.kernels),
        )

    def _calibration(self) -> Calibration | None:
        if self.source is None:
            return None
        stats = self.source.stats
        first = next(iter(stats.routing.values()), None)
        return Calibration(
            sha256=self.source.sha256,
            tokens=stats.tokens,
            datasets=stats.datasets,
            engine=stats.engine,
            frequency_only=first is not None and first.weight_sum is None,
            unseen=sum(int(r.unseen.sum()) for r in stats.routing.values()),
            borrow=stats.borrow,
            text_sketch=encode_sketch(stats.text_sketch),
            file=self.source.file,
        )

    # -- types and sizes

    def choices(self, limits: Limits) -> dict[str, tuple[str, ...]]:
        """Candidate types by tensor, ascending bits; only quantizable tensors are listed."""
        return {n: self._tensor_choices(i, limits) for n, i in self.checkpoint.tensors.items() if quantizable(i)}

    def _tensor_choices(self, info: TensorInfo, limits: Limits) -> tuple[str, ...]:
        stored = info.type.name
        if stored not in TYPES:
            return (stored,)
        low, high = (bits_per_weight(kind) for kind in limits.bounds(info.role))
        usable = {
            k
            for k in (self.possible(info, kind) for kind in self.request.types or DEFAULT_TYPES)
            if bits_per_weight(k) < bits_per_weight(stored)
        }
        kinds = {k for k in usable if low <= bits_per_weight(k) <= high}
        if not self.request.types and bits_per_weight(stored) <= high:
            kinds.add(stored)
        if not kinds:
            # Nothing lies between floor and ceiling: the largest type there is, before leaving it as it is.
            kinds = {max(usable, key=bits_per_weight)} if usable else {stored}
        return tuple(sorted(kinds, key=lambda kind: (bits_per_weight(kind), kind)))

    def possible(self, info: TensorInfo, kind: str) -> str:
        """``kind``, or what this tensor gets instead: no importance vector, or rows that do not divide."""
        has_vector = self.source is not None and info.name in self.source.stats.imatrix
        return fallback(kind if has_vector else without_imatrix(kind), info.shape[-1])

    def size(self, plan: Plan, name: str, kind: str) -> int:
        """Bytes in the file, padding included."""
        info = self.checkpoint.tensors[name]
        return padded(tensor_bytes(kind, new_shape(info, plan)), self._alignment)

    @cached_property
    def _alignment(self) -> int:
        align = self.checkpoint.metadata.get("general.alignment")
        return int(align.value) if align else DEFAULT_ALIGNMENT

    def smallest(self, frame: Frame, choices: Types) -> int:
        """Bytes of the file with every tensor at its smallest choice."""
        return frame.fixed + sum(min(self.size(frame.plan, n, k) for k in kinds) for n, kinds in choices.items())

    def finish(self, frame: Frame, types: Mapping[str, str], errors: Mapping[str, Mapping[str, float]]) -> Plan:
        """The plan with these types (stored ones where none is named) and its exact bytes."""
        tensors = {}
        for name, info in self.checkpoint.tensors.items():
            kind = types.get(name, info.type.name)
            error = errors.get(name, {}).get(kind, 0.0 if kind == info.type.name else None)
            tensors[name] = TensorPlan(kind, tensor_bytes(kind, new_shape(info, frame.plan)), error)
        experts = [t.type for n, t in tensors.items() if n.endswith("_exps.weight")]
        notes = (*frame.plan.notes, *no_data_note(self.checkpoint, self.source.stats if self.source else None, tensors))
        plan = replace(frame.plan, tensors=tensors, notes=notes, base=min(experts, key=bits_per_weight, default=""))
        total = artifact_layout(self.checkpoint, plan).total
        return replace(plan, bytes=total, bits_per_weight=total * 8 / self.topology.total_parameters)


def _versions(kernels: Kernels | None) -> dict[str, str]:
    return {
        "collab-plugin": __version__,
        "gguf": version("gguf"),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "kernels": kernels.version() if kernels else "none",
    }
