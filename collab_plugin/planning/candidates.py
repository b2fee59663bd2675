"""Candidates: a number of experts kept and used, with everything of the plan but the types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from collab_plugin.checkpoint.checkpoint import quantizable
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import bits_per_weight, tensor_bytes
from collab_plugin.planning.criteria.builtin_criteria import NORMALISATION
from collab_plugin.planning.criteria.criterion import CriterionOptions
from collab_plugin.planning.importance_notes import no_data_note
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.provenance import blank_plan, closing_notes
from collab_plugin.planning.pruning import Kept, check_enough, check_routing, check_servable, choose, fewest_servable
from collab_plugin.planning.top_k import scaled_top_k, weight_note
from collab_plugin.planning.type_choices import Types, size_in_file, sizes_in_file
from collab_plugin.plans.artifact import artifact_layout, new_shape
from collab_plugin.plans.plan import Activation, Plan, Pruning, TensorPlan, requirements_of


@dataclass(frozen=True)
class Candidate:
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


class Candidates:
    """Makes candidates from one planning input, and remembers which experts stay for each count."""

    def __init__(self, planning: PlanningInput) -> None:
        self.planning = planning
        self._kept: dict[tuple[int, int | None], Kept] = {}

    @cached_property
    def _blank(self) -> Plan:
        return blank_plan(self.planning)

    def kept(self, count: int, used: int) -> Kept:
        """Which experts stay when ``count`` a layer do, and a token uses ``used``."""
        p, t, request = self.planning, self.planning.topology, self.planning.request
        fewest = fewest_servable(t, used, p.policy) if request.layers == "varied" else None
        if (count, fewest) not in self._kept:
            if p.stats is None:
                raise CollabError("pruning and ordering experts need statistics: calibrate, then give `stats`")
            check_routing(p.stats.routing, t)
            self._kept[count, fewest] = choose(
                p.stats.routing, t, count, p.policy, p.criterion, CriterionOptions(p.criterion_options),
                request.order, fewest,
            )  # fmt: skip
        return self._kept[count, fewest]

    def candidate(self, count: int, used: int) -> Candidate:
        """The candidate; CollabError when the router cannot serve it or the stats are too thin."""
        t, checkpoint = self.planning.topology, self.planning.checkpoint
        check_servable(t, count, used, self.planning.policy)
        pruning, notes = self._pruning(count, used)
        if note := weight_note(t, count, used):
            notes.append(note)
        plan = replace(
            self._blank,
            pruning=pruning,
            requires=requirements_of(pruning),
            activation=Activation(t.experts_used, used, self._rule(used)),
            metadata=self._metadata(pruning, used),
            tensors={n: TensorPlan(i.type.name, 0, None) for n, i in checkpoint.tensors.items()},
            notes=(*self._blank.notes, *notes, *closing_notes(self.planning, self._blank)),
        )
        total = artifact_layout(checkpoint, plan).total
        free = sum(
            size_in_file(checkpoint, plan, n, i.type.name) for n, i in checkpoint.tensors.items() if quantizable(i)
        )
        return Candidate(plan, total - free)

    def _metadata(self, pruning: Pruning, used: int) -> dict[str, int | None]:
        """GGUF keys to set, or to remove."""
        t, arch = self.planning.topology, self.planning.checkpoint.architecture
        metadata: dict[str, int | None] = {}
        if pruning.expert_count != t.expert_count and not requirements_of(pruning):
            metadata[f"{arch}.expert_count"] = pruning.expert_count
        if used != t.experts_used:
            metadata[f"{arch}.expert_used_count"] = used
        if self.planning.policy == "disband":
            metadata |= {f"{arch}.expert_group_count": None, f"{arch}.expert_group_used_count": None}
        return metadata

    def _rule(self, used: int) -> str:
        asked = self.planning.request.experts_used
        if isinstance(asked, int):
            return "given"
        if used == self.planning.topology.experts_used:
            return "unchanged"
        return "searched" if asked == "auto" else "share"

    def _pruning(self, count: int, used: int) -> tuple[Pruning, list[str]]:
        p, t, request = self.planning, self.planning.topology, self.planning.request
        if count == t.expert_count and p.policy != "disband" and request.order == "original":
            return self._blank.pruning, []
        chosen = self.kept(count, used)
        if p.stats is not None and not request.allow_few_tokens and count < t.expert_count:
            check_enough(p.stats.routing, t)
        notes = []
        if chosen.unseen_dropped:
            notes.append(
                f"{chosen.unseen_dropped} of the dropped experts were never seen in calibration: unknown, not worthless"
            )
        if p.policy == "disband":
            notes.append(
                f"ROUTING CHANGES: the {t.groups} expert groups are disbanded, so a token may use experts of any group"
            )
        pruning = Pruning(
            p.criterion.name, p.criterion_options, NORMALISATION, p.policy, count, chosen.kept, chosen.mass_lost,
            request.order, request.layers,
        )  # fmt: skip
        if requirements_of(pruning):
            notes.append(
                f"ONLY vLLM RUNS IT: the layers keep {pruning.span} experts, which no GGUF and no config.json can say; "
                "its load format collab reads the checkpoint's own types, so types and bytes here are what the "
                "tensors would take"
            )
        return pruning, notes

    def smallest(self, candidate: Candidate, choices: Types) -> int:
        """Bytes of the file with every tensor at its smallest choice."""
        checkpoint, plan = self.planning.checkpoint, candidate.plan
        sizes = (min(sizes_in_file(checkpoint, plan, n, kinds)) for n, kinds in choices.items())
        return candidate.fixed + sum(sizes)

    def finish(self, candidate: Candidate, types: Mapping[str, str], errors: Mapping[str, Mapping[str, float]]) -> Plan:
        """The plan with these types (stored ones where none is named) and its exact bytes."""
        checkpoint = self.planning.checkpoint
        tensors = {}
        for name, info in checkpoint.tensors.items():
            kind = types.get(name, info.type.name)
            error = errors.get(name, {}).get(kind, 0.0 if kind == info.type.name else None)
            tensors[name] = TensorPlan(kind, tensor_bytes(kind, new_shape(info, candidate.plan)), error)
        experts = [t.type for n, t in tensors.items() if n.endswith("_exps.weight")]
        notes = (*candidate.plan.notes, *no_data_note(checkpoint, self.planning.stats, tensors))
        base = min(experts, key=bits_per_weight, default="")
        plan = replace(candidate.plan, tensors=tensors, notes=notes, base=base)
        total = artifact_layout(checkpoint, plan).total
        return replace(plan, bytes=total, bits_per_weight=total * 8 / self.planning.topology.total_parameters)

    def scaled(self, count: int) -> int:
        """Experts a token that go with ``count`` kept."""
        return scaled_top_k(self.planning.topology, count)
