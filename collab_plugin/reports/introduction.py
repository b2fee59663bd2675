"""What the model was, what was asked, what was decided and how good that is, for somebody new to all of it."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.placement.artifact_shape import weights_of
from collab_plugin.plans.plan import Plan
from collab_plugin.reports.gather import Facts
from collab_plugin.reports.number_words import digits, exact, kld, listed, percent, quantity, share_of, size

SCALE = (
    "For orientation, llama.cpp's published figures for Llama-3-8B, another model on other text: Q8_0 0.0014, "
    "Q4_K_M 0.03, Q2_K 0.33, IQ1_S 2.2."
)
KLD = (
    "KL divergence measures how far the compressed model's predictions of the next token are from the original's: "
    "0 means that they are the same."
)


@dataclass(frozen=True)
class Paragraph:
    """A question that a newcomer has, and the answer."""

    question: str
    text: str


def opening(facts: Facts) -> tuple[Paragraph, ...]:
    """Return the four answers."""
    return (
        Paragraph("What was the model?", _model(facts)),
        Paragraph("What was asked?", _asked(facts.plan)),
        Paragraph("What was decided?", _decided(facts)),
        Paragraph("How good is it?", " ".join(_quality(facts))),
    )


def _model(facts: Facts) -> str:
    plan, source = facts.plan, facts.plan.source
    of = f" of {exact(facts.experts)}" if facts.experts is not None else ""
    return (
        f"{source.name} is a Mixture-of-Experts language model ({source.architecture}) of "
        f"{quantity(source.parameters)} weights, {size(source.bytes)} as it was given. Most of its weights are in "
        f"experts: small networks side by side in a layer, of which a router picks {plan.activation.original}{of} "
        "for every token."
    )


def _asked(plan: Plan) -> str:
    if plan.budget is None:
        return "No budget was given: every tensor keeps the type it has, and only the experts were to be chosen."
    bits = 8 * plan.budget / max(plan.source.parameters, 1)
    return (
        f"To fit the model into a file of at most {size(plan.budget)} ({exact(plan.budget)} bytes), "
        f"{share_of(plan.budget, plan.source.bytes)} of the original's size or {bits:.2f} bits for each of its "
        "weights, with as little harm as possible."
    )


def _decided(facts: Facts) -> str:
    plan = facts.plan
    said = [_experts(facts), _tokens(plan), _types(plan)]
    left = "" if plan.budget is None else f", {exact(plan.budget - plan.bytes)} below the budget"
    if plan.requires:
        said.append(
            f"No file holds a number of experts for each layer: vLLM's load format collab runs the plan. In a file "
            f"these tensors would take {exact(plan.bytes)} bytes ({size(plan.bytes)}){left}."
        )
    else:
        said.append(f"The file will have exactly {exact(plan.bytes)} bytes ({size(plan.bytes)}){left}.")
    return " ".join(said)


def _experts(facts: Facts) -> str:
    pruning = facts.plan.pruning
    if not pruning.kept or facts.experts == pruning.expert_count:
        return f"All {pruning.expert_count} experts of every layer stay."
    if facts.experts is None:
        return f"{pruning.span} experts of every layer stay, chosen by {pruning.criterion}."
    dropped = facts.experts - pruning.expert_count
    lost = (
        f", which had {percent(pruning.mass_lost)} of the router's selections there"
        if pruning.mass_lost is not None
        else ""
    )
    if facts.plan.requires:
        return (
            f"The experts of all layers compete: {pruning.span} of {facts.experts} stay in a layer, and "
            f"{share_of(dropped, facts.experts)} of all are dropped, the least important on the calibration text by "
            f"the criterion {pruning.criterion}{lost}."
        )
    return (
        f"In every layer {dropped} of the {facts.experts} experts ({share_of(dropped, facts.experts)}) are dropped: "
        f"the least important on the calibration text by the criterion {pruning.criterion}{lost}."
    )


def _tokens(plan: Plan) -> str:
    before, now = plan.activation.original, plan.activation.used
    if before == now:
        return f"A token uses {now} experts, as before."
    return f"A token uses {now} experts instead of {before}."


def _types(plan: Plan) -> str:
    kinds = sorted({t.type for t in plan.tensors.values()} - {"F32"}, key=lambda kind: (bits_per_weight(kind), kind))
    weights = sum(map(weights_of, plan.tensors.values()))
    bits = 8 * sum(t.nbytes for t in plan.tensors.values()) / max(weights, 1)
    if plan.allocator == "none":
        return f"Every tensor keeps its type ({listed(kinds)}), {bits:.2f} bits a weight on average."
    span = kinds[0] if len(kinds) == 1 else f"from {kinds[0]} to {kinds[-1]}" if kinds else "as they were"
    return (
        f"What stays, {quantity(weights)} weights, is stored in {digits(bits)} bits a weight on average ({span}), "
        "more where it helps more."
    )


def _quality(facts: Facts) -> list[str]:
    plan, said = facts.plan, []
    for e in facts.evaluations:
        said.append(
            f"Measured ({e.file}, {exact(e.tokens)} tokens): KL divergence from the original "
            f"{kld(e.mean_kld)} ± {kld(e.mean_kld_stderr)} nats a token, the same most likely token in "
            f"{percent(e.same_top1)} of the cases, perplexity {e.ppl:.2f} against {e.ppl_original:.2f}."
        )
    own = next((p for p in facts.points if p.chosen and p.measured_kld is not None), None)
    if own is not None:
        said.append(f"Measured when the plan was made: KL divergence {kld(own.measured_kld)} nats a token.")
    if plan.predicted_kld is None:
        said.append("Nothing was predicted, because no error was measured.")
    elif plan.prediction:
        said.append(
            f"Predicted: KL divergence {kld(plan.predicted_kld)} nats a token. This rests on: {plan.prediction}."
        )
    else:
        said.append(
            f"Predicted cost: {kld(plan.predicted_kld)}, a sum of relative errors that compares plans of one model "
            "but is no KL divergence."
        )
    if not facts.evaluations and own is None and not plan.requires:
        said.append("The file itself was not measured yet: compress it, then run `collab-plugin evaluate`.")
    return [*said, KLD, SCALE]
