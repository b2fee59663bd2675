"""What a plan says of where it comes from: checkpoint, statistics, sensitivity, tools."""

from __future__ import annotations

from importlib.metadata import version

from collab_plugin import __version__
from collab_plugin.checkpoint.identity import fingerprint, model_id
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.planning.criteria.builtin_criteria import NORMALISATION
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.sources import StatsSource
from collab_plugin.plans.plan import Activation, Calibration, Plan, Pruning, Repair, SensitivityFile, Source
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.text_overlap import encode_sketch


def blank_plan(planning: PlanningInput) -> Plan:
    """A plan with nothing decided: every expert kept, no types."""
    c, t, request = planning.checkpoint, planning.topology, planning.request
    calibration = _calibration(planning.matched_stats, request.borrow) if planning.matched_stats else None
    measured, samples = planning.sensitivity_source, planning.samples_source
    return Plan(
        source=Source(fingerprint(c), model_id(c), t.name, c.architecture, c.format, t.total_bytes, t.total_parameters),
        requires=(),
        calibration=calibration,
        pruning=Pruning(
            "none", {}, NORMALISATION, planning.policy, t.expert_count, {}, 0.0 if planning.stats else None
        ),
        activation=Activation(t.experts_used, t.experts_used, "unchanged"),
        metadata={},
        tensors={},
        budget=request.budget,
        bytes=0,
        bits_per_weight=0.0,
        predicted_kld=None,
        prediction="",
        sensitivity=SensitivityFile(measured.sha256, measured.file) if measured else None,
        considered=(),
        allocator="none" if request.keep_types else request.allocator.name,
        allocator_options={} if request.keep_types else planning.allocator_options,
        base="",
        notes=(*c.notes, *planning.notes),
        versions=_versions(planning.kernels),
        repair=Repair(samples.sha256, samples.samples.tokens, samples.samples.path.name) if samples else None,
    )


def closing_notes(planning: PlanningInput, plan: Plan) -> tuple[str, ...]:
    """What a reader must know of the checkpoint and the calibration."""
    notes = []
    tensors = planning.checkpoint.tensors.values()
    # A folder of few bits is what was trained, or all that was published.
    requantized = planning.checkpoint.format == "gguf" and not planning.request.keep_types
    if requantized and any(i.type.name.startswith(("Q", "IQ")) for i in tensors):
        notes.append("the source is already quantized: quantizing it again loses more than from the original")
    tables = [i.layer for i in tensors if is_hash_table(i.name) and i.layer in plan.pruning.kept]
    if tables:
        notes.append(
            f"{len(tables)} layers take their experts from a table of tokens (blk.{tables[0]}, ...): where it named an "
            "expert that is dropped, it names a kept one now, chosen so that all get about as many tokens more"
        )
    if plan.calibration is not None and plan.calibration.unseen:
        notes.append(f"{plan.calibration.unseen} experts were never seen in calibration; their importance is unknown")
    return tuple(notes)


def _calibration(source: StatsSource, borrow: float) -> Calibration:
    stats = source.stats
    first = next(iter(stats.routing.values()), None)
    return Calibration(
        sha256=source.sha256,
        tokens=stats.tokens,
        datasets=stats.datasets,
        engine=stats.engine,
        frequency_only=first is not None and first.weight_sum is None,
        unseen=sum(int(r.unseen.sum()) for r in stats.routing.values()),
        borrow=borrow,
        text_sketch=encode_sketch(stats.text_sketch),
        file=source.file,
    )


def _versions(kernels: Kernels | None) -> dict[str, str]:
    return {
        "collab-plugin": __version__,
        "gguf": version("gguf"),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "kernels": kernels.version() if kernels else "none",
    }
