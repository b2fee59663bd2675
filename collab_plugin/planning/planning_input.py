"""Everything that a plan is made from, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.planning.check_input import check_samples, check_sensitivity, of_model
from collab_plugin.planning.criteria.choose_criterion import criterion_and_notes, least_costly, missing_need
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.importance_notes import no_routing_note, unknown_tables_note
from collab_plugin.planning.options import OptionValue
from collab_plugin.planning.prediction import prediction_note
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.sources import SamplesSource, SensitivitySource, StatsSource
from collab_plugin.planning.type_limits import Limits
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import LayerRouting, Stats


@dataclass(frozen=True)
class PlanningInput:
    """A checkpoint with its topology, the documents measured on it, the request, and what quantizes.

    ``kernels`` may be missing only where every tensor keeps its type. Raises CollabError when it is made, where
    stats or sensitivity are of another model, the model has no expert groups that the request names, an option
    of criterion or allocator does not exist, or a floor is above its ceiling.
    """

    checkpoint: Checkpoint
    topology: Topology
    request: PlanRequest
    stats_source: StatsSource | None = None
    sensitivity_source: SensitivitySource | None = None
    kernels: Kernels | None = None
    samples_source: SamplesSource | None = None

    def __post_init__(self) -> None:
        request = self.request
        self.matched_stats  # noqa: B018  # now, because it may refuse them
        if self.sensitivity_source is not None:
            check_sensitivity(self.checkpoint, self.sensitivity_source)
        if self.samples_source is not None:
            check_samples(self.checkpoint, self.samples_source, request.layers)
        if self.policy != "none" and self.topology.groups == 1:
            raise CollabError(f"`groups` {self.policy}: this model's router has no groups")
        request.criterion.values(request.criterion_options)
        request.allocator.values(request.allocator_options)
        Limits.of(request.base, request.floors, request.ceilings)
        self._criterion_and_notes  # noqa: B018  # now, because it may refuse the criterion

    @cached_property
    def matched_stats(self) -> StatsSource | None:
        """The stats as they count for this model."""
        return of_model(self.checkpoint, self.stats_source)

    @property
    def stats(self) -> Stats | None:
        """The statistics, if there are any."""
        return self.matched_stats.stats if self.matched_stats else None

    @property
    def sensitivity(self) -> Sensitivity | None:
        """What was probed, if anything was."""
        return self.sensitivity_source.sensitivity if self.sensitivity_source else None

    @cached_property
    def imatrix(self) -> ImportanceMatrix | None:
        """The stats' importance matrix, borrowing as the request says."""
        return ImportanceMatrix.of(self.stats, self.request.borrow)

    @property
    def policy(self) -> GroupPolicy:
        """What happens to expert groups."""
        return self.request.groups or ("balanced" if self.topology.groups > 1 else "none")

    @property
    def criterion(self) -> ImportanceCriterion:
        """The criterion asked for, the one of several whose probed prunings cost least, or the one that it names for
        statistics that are counts only."""
        return self._criterion_and_notes[0]

    @property
    def criterion_options(self) -> dict[str, OptionValue]:
        """Values of the criterion's options; those given are for the criterion that was asked for."""
        return self._options_of(self.criterion)

    def _options_of(self, criterion: ImportanceCriterion) -> dict[str, OptionValue]:
        asked = self.request.criterion
        own = {option.name for option in criterion.options} if criterion is asked or criterion in asked.among else ()
        return criterion.values({name: v for name, v in self.request.criterion_options.items() if name in own})

    @property
    def allocator_options(self) -> dict[str, OptionValue]:
        """Values of the allocator's options."""
        return self.request.allocator.values(self.request.allocator_options)

    @property
    def rule(self) -> str:
        """How experts are chosen, in one line: prunings probed by another rule do not count."""
        return self._rule_of(self.criterion)

    def _rule_of(self, criterion: ImportanceCriterion) -> str:
        options = "".join(f" {name}={value}" for name, value in self._options_of(criterion).items())
        layers = "" if self.request.layers == "same" else f" layers={self.request.layers}"
        return f"{criterion.name}{options} groups={self.policy}{layers}"

    def by_rule(self) -> dict[str, PlanningInput]:
        """The same input for each criterion that the request leaves open and the stats allow, by its rule."""
        open_ = self._open_criteria()
        if len(open_) < 2:
            return {self.rule: self}
        return {
            self._rule_of(c): replace(
                self, request=replace(self.request, criterion=c, criterion_options=self._options_of(c))
            )
            for c in open_
        }

    def _open_criteria(self) -> list[ImportanceCriterion]:
        return [c for c in self.request.criterion.among if missing_need(c, self._routing) is None]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan must know of the model and the statistics."""
        notes = [*prediction_note(self.topology), *(self.matched_stats.notes if self.matched_stats else ())]
        if self.request.keep == "auto" and not self.request.keep_types:
            notes += (*no_routing_note(self.topology, self.stats), *unknown_tables_note(self.checkpoint))
        notes += self._criterion_and_notes[1]
        if self.stats is not None and not self.stats.imatrix:
            notes.append(
                f"NO IMPORTANCE MATRIX: the stats lack it ({self.stats.engine}), so all columns count alike and types "
                "that need it are not used"
            )
        return tuple(notes)

    @cached_property
    def _criterion_and_notes(self) -> tuple[ImportanceCriterion, tuple[str, ...]]:
        asked, open_ = self.request.criterion, self._open_criteria()
        if open_:
            found, source = self.sensitivity, self.stats_source
            same = found is not None and source is not None and found.stats_sha256 == source.sha256
            rules = {self._rule_of(c): c for c in open_}
            asked = rules[least_costly(list(rules), found.prunings if found is not None and same else ())]
        return criterion_and_notes(asked, self._routing, self.stats.engine if self.stats else "")

    @property
    def _routing(self) -> LayerRouting | None:
        """Of some layer: what one has, all have."""
        return next(iter(self.stats.routing.values()), None) if self.stats else None

    def needed_kernels(self) -> Kernels:
        """Return the kernels; CollabError when there are none."""
        if self.kernels is None:
            raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")
        return self.kernels
