"""What `collab-plugin plan` prints for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from collab_plugin.formats.tensor_names import role_of
from collab_plugin.plans.plan import Plan


def render_plan(console: Console, plan: Plan) -> None:
    """Print the plan's figures, types by role and notes."""
    p = plan.pruning
    of = f" of {plan.budget:,} ({plan.bytes / plan.budget:.2%})" if plan.budget else ""
    console.print(f"[bold]{plan.source.name}[/bold]: {plan.bytes:,} bytes{of}, {plan.bits_per_weight:.3f} bpw")
    lost = f", {p.mass_lost:.1%} of the routing mass dropped" if p.mass_lost else ""
    console.print(
        f"experts kept a layer: {p.span} ({p.criterion}{lost}); "
        f"experts a token: {plan.activation.used} (was {plan.activation.original})"
    )
    roles: dict[str, dict[str, int]] = {}
    for name, tensor in plan.tensors.items():
        kinds = roles.setdefault(role_of(name), {})
        kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.nbytes
    table = Table("role", "bytes", "share", "types")
    table.columns[1].justify = table.columns[2].justify = "right"
    for role, kinds in sorted(roles.items(), key=lambda item: -sum(item[1].values())):
        size = sum(kinds.values())
        parts = ", ".join(f"{k} {v / size:.0%}" for k, v in sorted(kinds.items(), key=lambda kv: -kv[1]))
        table.add_row(role, f"{size:,}", f"{size / plan.bytes:.1%}", parts)
    console.print(table)
    if plan.predicted_kld is not None:
        console.print(f"predicted KL divergence: {plan.predicted_kld:.4f} nats ({plan.prediction})")
    for point in plan.considered:
        if point.measured_kld is not None:
            console.print(
                f"measured: {point.measured_kld:.4f} nats with {point.expert_count} experts kept, "
                f"{point.experts_used} a token"
                f"{', taken' if point.chosen else ''}"
            )
    for note in plan.notes:
        console.print(f"note: {note}")
