"""Make a plan: choose what stays, how many experts a token uses, and the type of every tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from collab_plugin import __version__
from collab_plugin.activation import scaled_top_k, weight_note
from collab_plugin.allocate.allocator import Choice as TypeChoice
from collab_plugin.allocate.allocator import Item
from collab_plugin.backoff import Limits, next_limits
from collab_plugin.checkpoint.base import Checkpoint, TensorInfo
from collab_plugin.checkpoint.identity import fingerprint, model_id
from collab_plugin.compress.artifact import artifact_layout, new_shape
from collab_plugin.errors import CollabError
from collab_plugin.gguf_layout import DEFAULT_ALIGNMENT, padded
from collab_plugin.importance.builtin import NORMALISATION
from collab_plugin.importance.criterion import CriterionOptions, ImportanceCriterion
from collab_plugin.overlap import encode_sketch
from collab_plugin.plan import (
    Activation,
    BackOff,
    Calibration,
    GroupPolicy,
    Plan,
    Pruning,
    Source,
    TensorPlan,
)
from collab_plugin.plan_request import DEFAULT_TYPES, PlanRequest, StatsSource, check_stats
from collab_plugin.progress import Report
from collab_plugin.pruning import check_enough, check_routing, check_servable, choose, parse_keep
from collab_plugin.quant.cost import harm
from collab_plugin.quant.error import measure_errors
from collab_plugin.quant.kernels import Kernels
from collab_plugin.quant.types import (
    TYPES,
    bits_per_weight,
    fallback,
    quantizable,
    tensor_bytes,
    without_imatrix,
)
from collab_plugin.topology import Topology


@dataclass(frozen=True)
class _Frame:
    """A plan's skeleton for one kept count: everything but the types, and the bytes around tensors."""

    plan: Plan
    choices: Mapping[str, tuple[str, ...]]
    fixed: int


def make_plan(
    checkpoint: Checkpoint,
    topology: Topology,
    source: StatsSource | None,
    request: PlanRequest,
    kernels: Kernels | None,
    report: Report,
) -> Plan:
    """Return the plan with the least predicted cost that holds ``request.budget``.

    Raises CollabError when the request contradicts itself, the stats are not of this model, or no plan
    within the rules holds the budget (the smallest that would is named).
    """
    check_stats(checkpoint, topology, source)
    context = _Context(checkpoint, topology, source, request, kernels, report)
    if request.keep_types:
        return context.keep_types()
    if request.budget is None:
        raise CollabError("--budget is missing: give a size such as 103GB, 98.5GiB or 2.5bpw (or --keep-types)")
    if kernels is None:
        raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")
    return context.within_budget(request.budget, kernels)


class _Context:
    def __init__(
        self,
        checkpoint: Checkpoint,
        topology: Topology,
        source: StatsSource | None,
        request: PlanRequest,
        kernels: Kernels | None,
        report: Report,
    ) -> None:
        self.checkpoint, self.topology, self.source = checkpoint, topology, source
        self.request, self.kernels, self.report = request, kernels, report
        self.policy: GroupPolicy = request.groups or ("balanced" if topology.groups > 1 else "none")
        if self.policy != "none" and topology.groups == 1:
            raise CollabError(f"--groups {self.policy}: this model's router has no groups")
        self.policy_notes: list[str] = []
        self.criterion = self._criterion()

    def _criterion(self) -> ImportanceCriterion:
        """The criterion asked for, or frequency alone when the stats are a foreign imatrix."""
        from collab_plugin.manager import registry

        wanted = self.request.criterion
        routing = next(iter(self.source.stats.routing.values()), None) if self.source else None
        missing = [need for need in wanted.needs if routing is not None and getattr(routing, need) is None]
        if not missing:
            return wanted
        if wanted.name != "freq-score":
            raise CollabError(
                f"criterion {wanted.name} needs {missing[0]}, which an imatrix of another tool lacks; "
                "calibrate with collab-plugin, or --criterion freq"
            )
        self.policy_notes.append(
            "FREQUENCY ONLY: the stats are an imatrix of another tool without router weights, so experts "
            "are chosen by how often they were used"
        )
        return registry().criteria["freq"]

    # -- the two kinds of plan

    def keep_types(self) -> Plan:
        """Prune and reorder only: every tensor keeps its stored type, byte for byte."""
        count = self.topology.expert_count if self.request.keep == "auto" else self._given_count()
        frame = self._frame(count, Limits.open())
        types = {name: info.type.name for name, info in self.checkpoint.tensors.items()}
        plan = self._finish(frame.plan, types, {}, None, ())
        if self.request.budget is not None and plan.bytes > self.request.budget:
            raise CollabError(
                f"with --keep-types the file takes {plan.bytes:,} bytes, the budget is {self.request.budget:,}; "
                "keep fewer experts or raise the budget"
            )
        return plan

    def within_budget(self, budget: int, kernels: Kernels) -> Plan:
        steps: list[BackOff] = []
        explicit = self.request.keep != "auto"
        count = self._given_count() if explicit else self.topology.expert_count
        limits = Limits.start(
            self.request.base, self.request.floors, self.request.ceilings, self.request.allocator.name
        )
        while True:
            frame = self._frame(count, limits)
            smallest = frame.fixed + self._smallest(frame)
            if steps:
                steps[-1] = dataclasses.replace(steps[-1], smallest_bytes=smallest)
            if smallest <= budget:
                break
            relaxed = next_limits(limits)
            if relaxed is not None:
                limits, step = relaxed
            else:
                fewer = None if explicit else self._next_count(count)
                if fewer is None:
                    why = "with --keep " + self.request.keep if explicit else f"with {count} experts a layer"
                    raise CollabError(
                        f"no plan holds {budget:,} bytes: the smallest {why} takes {smallest:,} bytes; "
                        f"raise --budget to that{' or lower --keep' if explicit else ''}"
                        f"{' or --base' if self.request.base else ''}"
                    )
                count, step = fewer, f"keep {fewer} of {self.topology.expert_count} experts a layer"
            steps.append(BackOff(step, 0))
        return self._allocate(frame, budget, kernels, tuple(steps))

    # -- parts

    def _given_count(self) -> int:
        return parse_keep(self.request.keep, self.topology, self.policy)

    def _next_count(self, count: int) -> int | None:
        """One notch fewer: a sixteenth of the experts, whole groups; down to half of them."""
        t = self.topology
        if self.source is None or not set(t.moe_layers) <= set(self.source.stats.routing):
            return None
        step = max(t.expert_count // 16, 1)
        if self.policy == "balanced":
            step = -(-step // t.groups) * t.groups
        fewer = count - step
        return fewer if fewer >= t.expert_count / 2 and self._servable(fewer) else None

    def _servable(self, count: int) -> bool:
        try:
            check_servable(self.topology, count, self._used(count), self.policy)
        except CollabError:
            return False
        return True

    def _used(self, count: int) -> int:
        return self.request.experts_used or scaled_top_k(self.topology, count)

    def _pruning(self, count: int) -> tuple[Pruning, list[str]]:
        t, r = self.topology, self.request
        if count == t.expert_count and self.policy != "disband" and r.order == "original":
            return Pruning("none", {}, NORMALISATION, self.policy, count, {}, 0.0 if self.source else None), []
        if self.source is None:
            raise CollabError("pruning and ordering experts need statistics: calibrate, then give --stats")
        check_routing(self.source.stats.routing, t)
        if not r.allow_few_tokens and count < t.expert_count:
            check_enough(self.source.stats.routing, t)
        options = CriterionOptions(r.alpha, r.seed)
        chosen = choose(self.source.stats.routing, t, count, self.policy, self.criterion, options, r.order)
        notes = []
        if chosen.unseen_dropped:
            notes.append(
                f"{chosen.unseen_dropped} of the dropped experts were never seen in calibration: unknown, not worthless"
            )
        if self.policy == "disband":
            notes.append(
                f"ROUTING CHANGES: the {t.groups} expert groups are disbanded, so a token may use experts of any group"
            )
        used: dict[str, float | int | str] = {"alpha": r.alpha, "seed": r.seed, "order": r.order}
        pruning = Pruning(self.criterion.name, used, NORMALISATION, self.policy, count, chosen.kept, chosen.mass_lost)
        return pruning, notes

    def _frame(self, count: int, limits: Limits) -> _Frame:
        t, checkpoint = self.topology, self.checkpoint
        used = self._used(count)
        check_servable(t, count, used, self.policy)
        pruning, notes = self._pruning(count)
        if note := weight_note(t, count, used):
            notes.append(note)
        arch = checkpoint.architecture
        metadata: dict[str, int | None] = {}
        if count != t.expert_count:
            metadata[f"{arch}.expert_count"] = count
        if used != t.experts_used:
            metadata[f"{arch}.expert_used_count"] = used
        if self.policy == "disband":
            metadata |= {f"{arch}.expert_group_count": None, f"{arch}.expert_group_used_count": None}
        rule = "given" if self.request.experts_used else ("unchanged" if used == t.experts_used else "share")
        plan = self._skeleton(pruning, Activation(t.experts_used, used, rule), metadata, notes)
        choices = {} if self.request.keep_types else self._choices(limits)
        types = {n: (choices[n][0] if n in choices else i.type.name) for n, i in checkpoint.tensors.items()}
        probe = dataclasses.replace(plan, tensors={n: TensorPlan(k, 0, None) for n, k in types.items()})
        total = artifact_layout(checkpoint, probe).total
        return _Frame(probe, choices, total - sum(self._size(probe, n, choices[n][0]) for n in choices))

    def _skeleton(
        self, pruning: Pruning, activation: Activation, metadata: dict[str, int | None], notes: list[str]
    ) -> Plan:
        t, c = self.topology, self.checkpoint
        calibration = None
        if self.source is not None:
            stats = self.source.stats
            first = next(iter(stats.routing.values()), None)
            unseen = sum(int(r.unseen.sum()) for r in stats.routing.values())
            calibration = Calibration(
                sha256=self.source.sha256,
                tokens=stats.tokens,
                datasets=stats.datasets,
                engine=stats.engine,
                frequency_only=first is not None and first.weight_sum is None,
                unseen=unseen,
                text_sketch=encode_sketch(stats.text_sketch),
                file=self.source.path.name,
            )
            if unseen:
                notes.append(f"{unseen} experts were never seen in calibration; their importance is unknown")
        if any(i.type.name.startswith(("Q", "IQ")) for i in c.tensors.values()) and not self.request.keep_types:
            notes.append("the source is already quantized: quantizing it again loses more than from the original")
        return Plan(
            source=Source(
                fingerprint(c),
                model_id(c),
                t.name,
                c.architecture,
                c.format,
                t.total_bytes,
                t.total_parameters,
            ),
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

    def _choices(self, limits: Limits) -> dict[str, tuple[str, ...]]:
        """Candidate types by tensor, ascending bits; only quantizable tensors are listed."""
        found = {}
        for name, info in self.checkpoint.tensors.items():
            if quantizable(info):
                found[name] = self._tensor_choices(info, limits)
        return found

    def _tensor_choices(self, info: TensorInfo, limits: Limits) -> tuple[str, ...]:
        n, stored = info.shape[-1], info.type.name
        if stored not in TYPES:
            return (stored,)
        has_vector = self.source is not None and info.name in self.source.stats.imatrix
        low, high = (bits_per_weight(kind) for kind in limits.bounds(info.role))
        named = {kind if has_vector else without_imatrix(kind) for kind in self.request.types or DEFAULT_TYPES}
        usable = {k for kind in named if bits_per_weight(k := fallback(kind, n)) < bits_per_weight(stored)}
        kinds = {k for k in usable if low <= bits_per_weight(k) <= high}
        if not self.request.types and bits_per_weight(stored) <= high:
            kinds.add(stored)
        if not kinds:
            # Nothing lies between floor and ceiling: the largest type there is, before leaving it as it is.
            kinds = {max(usable, key=bits_per_weight)} if usable else {stored}
        return tuple(sorted(kinds, key=lambda kind: (bits_per_weight(kind), kind)))

    def _size(self, plan: Plan, name: str, kind: str) -> int:
        info = self.checkpoint.tensors[name]
        align = self.checkpoint.metadata.get("general.alignment")
        return padded(tensor_bytes(kind, new_shape(info, plan)), int(align.value) if align else DEFAULT_ALIGNMENT)

    def _smallest(self, frame: _Frame) -> int:
        return sum(min(self._size(frame.plan, n, k) for k in kinds) for n, kinds in frame.choices.items())

    def _allocate(self, frame: _Frame, budget: int, kernels: Kernels, steps: tuple[BackOff, ...]) -> Plan:
        stats = self.source.stats if self.source else None
        errors = measure_errors(
            self.checkpoint,
            frame.choices,
            frame.plan.pruning.kept,
            stats,
            kernels,
            self.request.threads,
            self.report,
        )
        items = [
            Item(name, tuple(self._type_choice(frame, name, kind, errors[name][kind]) for kind in kinds))
            for name, kinds in frame.choices.items()
        ]
        try:
            picked = self.request.allocator.solve(items, budget - frame.fixed)
        except ValueError as error:
            raise CollabError(f"allocator {self.request.allocator.name}: {error}; raise --budget") from None
        types = {name: frame.plan.tensors[name].type for name in self.checkpoint.tensors}
        types |= {item.name: item.choices[picked[item.name]].type for item in items}
        cost = sum(item.choices[picked[item.name]].cost for item in items)
        plan = self._finish(frame.plan, types, errors, cost, steps)
        if plan.bytes > budget:
            raise AssertionError(f"allocator {plan.allocator} went over the budget: {plan.bytes} > {budget}")
        return plan

    def _type_choice(self, frame: _Frame, name: str, kind: str, error: float) -> TypeChoice:
        info = self.checkpoint.tensors[name]
        return TypeChoice(kind, self._size(frame.plan, name, kind), harm(info, error))

    def _finish(
        self,
        plan: Plan,
        types: Mapping[str, str],
        errors: Mapping[str, Mapping[str, float]],
        cost: float | None,
        steps: Sequence[BackOff],
    ) -> Plan:
        tensors = {}
        for name, kind in types.items():
            info = self.checkpoint.tensors[name]
            error = errors.get(name, {}).get(kind, 0.0 if kind == info.type.name else None)
            tensors[name] = TensorPlan(kind, tensor_bytes(kind, new_shape(info, plan)), error)
        experts = [t.type for n, t in tensors.items() if self.checkpoint.tensors[n].name.endswith("_exps.weight")]
        plan = dataclasses.replace(
            plan,
            tensors=tensors,
            predicted_kld=cost,
            back_off=tuple(steps),
            base=min(experts, key=bits_per_weight, default=""),
        )
        total = artifact_layout(self.checkpoint, plan).total
        bpw = total * 8 / self.topology.total_parameters
        return dataclasses.replace(plan, bytes=total, bits_per_weight=bpw)


def _versions(kernels: Kernels | None) -> dict[str, str]:
    return {
        "collab-plugin": __version__,
        "gguf": version("gguf"),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "kernels": kernels.version() if kernels else "none",
    }
