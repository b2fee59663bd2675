"""Which experts a token uses, with what weights, and how near the choice was."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from collab_conformance.reference.hyperparameters import RouterHyperparameters


@dataclass(frozen=True)
class RouterChoice:
    """``ids`` i64[tokens, k] by falling score, ``weights`` f64[tokens, k], ``margins`` f64[tokens]: how much the
    score of the last one chosen exceeds that of the first left out, of experts or of groups, whichever is less;
    infinite when nothing was left out."""

    ids: torch.Tensor
    weights: torch.Tensor
    margins: torch.Tensor


def route(router: RouterHyperparameters, logits: torch.Tensor, bias: torch.Tensor | None) -> RouterChoice:
    """Choose from router ``logits`` f64[tokens, experts]. ``bias`` f64[experts] sways the choice, not the weights;
    with groups, those with the largest sums of their two best scores stay (DeepSeek-V3, arXiv 2412.19437)."""
    if router.gating == "softmax-after-top-k":
        ids, nearest = _best(logits, router.used)
        return RouterChoice(ids, logits.gather(-1, ids).softmax(-1) * router.scale, nearest)
    probabilities = logits.softmax(-1) if router.gating == "softmax" else logits.sigmoid()
    scores = probabilities if bias is None else probabilities + bias
    margins = torch.full(scores.shape[:1], float("inf"), dtype=torch.float64)
    if router.groups > 1:
        grouped = scores.reshape(len(scores), router.groups, -1)
        sums = grouped.topk(2, -1).values.sum(-1)
        groups, margins = _best(sums, router.groups_used)
        stays = torch.zeros_like(sums, dtype=torch.bool).scatter(-1, groups, True)
        scores = grouped.masked_fill(~stays[..., None], float("-inf")).flatten(-2)
    ids, nearest = _best(scores, router.used)
    weights = probabilities.gather(-1, ids)
    if router.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return RouterChoice(ids, weights * router.scale, torch.minimum(margins, nearest))


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [tokens, count] of the largest scores, equal ones by ascending id, and the margin to the next."""
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    if count == scores.shape[-1]:
        return ids, torch.full(scores.shape[:1], float("inf"), dtype=torch.float64)
    return ids[:, :count], ordered[:, count - 1] - ordered[:, count]
