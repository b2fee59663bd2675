"""Everything that a plan is made from, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.planning.check_input import check_samples, check_sensitivity, of_model
from collab_plugin.planning.criteria.choose_criterion import criterion_and_notes
from collab_plugin.planning.criteria.criterion import ImportanceCriterion
from collab_plugin.planning.importance_notes import no_routing_note, unknown_tables_note
from collab_plugin.planning.limits import Limits
from collab_plugin.planning.options import OptionValue
from collab_plugin.planning.prediction import prediction_note
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.sources import SamplesSource, SensitivitySource, StatsSource
from collab_plugin.plans.plan import GroupPolicy
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.stats import Stats


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
        """The criterion asked for, or the one that it names for statistics that are counts only."""
        return self._criterion_and_notes[0]

    @property
    def criterion_options(self) -> dict[str, OptionValue]:
        """Values of the criterion's options; those given are for the criterion that was asked for."""
        asked = self.criterion is self.request.criterion
        return self.criterion.values(self.request.criterion_options if asked else {})

    @property
    def allocator_options(self) -> dict[str, OptionValue]:
        """Values of the allocator's options."""
        return self.request.allocator.values(self.request.allocator_options)

    @property
    def rule(self) -> str:
        """How experts are chosen, in one line: prunings probed by another rule do not count."""
        options = "".join(f" {name}={value}" for name, value in self.criterion_options.items())
        layers = "" if self.request.layers == "same" else f" layers={self.request.layers}"
        return f"{self.criterion.name}{options} groups={self.policy}{layers}"

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
        stats = self.stats
        routing = next(iter(stats.routing.values()), None) if stats else None
        return criterion_and_notes(self.request.criterion, routing, stats.engine if stats else "")

    def needed_kernels(self) -> Kernels:
        """Return the kernels; CollabError when there are none."""
        if self.kernels is None:
            raise CollabError("no quantization kernels: pip install 'collab-plugin[llamacpp]'")
        return self.kernels
