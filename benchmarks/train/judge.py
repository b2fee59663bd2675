"""Is a trained model a good judge of pruning? The three figures of its card, by masking experts.

    python -m benchmarks.train.judge RUN/model.pt TOKENIZER TEXTS [--windows 24]

For each domain, calibrated on its calibration text and judged on its validation text: the share of
selections of the least used quarter; the KL divergence of dropping that quarter by freq-score against
five random choices; the perplexity of dropping half at random. top-k is scaled with the kept share.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.train.model import Decoder
from benchmarks.train.shapes import SHAPES, Shape

DOMAINS = ("english", "german", "python")


def windows(tokenizer: Tokenizer, path: Path, shape: Shape, count: int) -> Tensor:
    ids = torch.tensor(tokenizer.encode(path.read_text("utf-8"), add_special_tokens=False).ids)
    ids = ids[: len(ids) // shape.window * shape.window].view(-1, shape.window)
    ids = ids[torch.linspace(0, len(ids) - 1, count).long()].clone()
    if shape.bos is not None:
        ids[:, 0] = shape.bos
    return ids


@torch.no_grad()
def log_probs(model: Decoder, ids: Tensor) -> Tensor:
    return torch.cat([model(part).log_softmax(-1)[:, model.s.window // 2 - 1 : -1] for part in ids.split(4)])


@torch.no_grad()
def routing(model: Decoder, ids: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per MoE layer: selection counts and sums of router weights, f64[experts]."""
    total = [(np.zeros(m.s.experts), np.zeros(m.s.experts)) for m in model.expert_layers()]
    for part in ids.split(4):
        model(part)
        for (count, weight), m in zip(total, model.expert_layers(), strict=True):
            assert m.chosen is not None
            chosen, w = m.chosen
            count += np.bincount(chosen.flatten(), minlength=m.s.experts)
            weight += np.bincount(chosen.flatten(), w.flatten().double(), minlength=m.s.experts)
    return total


def keep(model: Decoder, scores: list[np.ndarray], count: int) -> None:
    """Allow the ``count`` best experts of each layer (as many in each group), scale top-k."""
    for m, score in zip(model.expert_layers(), scores, strict=True):
        grouped = torch.tensor(score).view(m.s.groups, -1)
        best = grouped.topk(count // m.s.groups, -1).indices
        m.allowed.copy_(torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, best, True).flatten())
        m.used = max(1, round(m.s.used * count / m.s.experts))


def freq_score(count: np.ndarray, weight: np.ndarray) -> np.ndarray:
    score = weight / np.maximum(count, 1)
    mixed: np.ndarray = 0.5 * count / count.max() + 0.5 * score / score.max()
    return mixed


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("tokenizer", type=Path)
    p.add_argument("texts", type=Path)
    p.add_argument("--windows", type=int, default=24)
    p.add_argument("--domains", nargs="+", default=DOMAINS, choices=DOMAINS)
    a = p.parse_args()
    torch.set_num_threads(1)
    state = torch.load(a.checkpoint, weights_only=True)
    model = Decoder(SHAPES[state["shape"]])
    model.load_state_dict(state["model"])
    tokenizer = Tokenizer.from_file(str(a.tokenizer / "tokenizer.json"))
    experts = model.s.experts
    print(f"{state['shape']}: step {state['step']}, {state['tokens']:,} tokens")
    for domain in a.domains:
        calibration = windows(tokenizer, a.texts / f"{domain}.calibration.txt", model.s, a.windows)
        validation = windows(tokenizer, a.texts / f"{domain}.validation.txt", model.s, a.windows // 2)
        targets = validation[:, model.s.window // 2 :]
        whole = [np.ones(experts)] * len(model.expert_layers())
        keep(model, whole, experts)
        seen = routing(model, calibration)
        base = log_probs(model, validation)
        quarter = [float(np.sort(c)[: experts // 4].sum() / c.sum()) for c, _ in seen]

        def judge(
            scores: list[np.ndarray],
            count: int,
            base: Tensor = base,
            validation: Tensor = validation,
            targets: Tensor = targets,
        ) -> tuple[float, float]:
            keep(model, scores, count)
            got = log_probs(model, validation)
            kld = (base.exp() * (base - got)).sum(-1).mean()
            return float(kld), float(fn.nll_loss(got.flatten(0, 1), targets.flatten()).exp())

        ours, _ = judge([freq_score(*s) for s in seen], experts * 3 // 4)
        rngs = [np.random.default_rng(i) for i in range(5)]
        random = [judge([r.random(experts) for _ in seen], experts * 3 // 4)[0] for r in rngs]
        half = [judge([r.random(experts) for _ in seen], experts // 2)[1] for r in rngs]
        ppl = float(fn.nll_loss(base.flatten(0, 1), targets.flatten()).exp())
        print(
            f"{domain}: perplexity {ppl:.2f}; least used quarter {np.mean(quarter):.1%} "
            f"({' '.join(f'{q:.1%}' for q in quarter)}); KLD of a quarter dropped: freq-score {ours:.4f}, "
            f"random {np.mean(random):.4f}, ratio {ours / np.mean(random):.2f}; half at random: "
            f"perplexity x{np.mean(half) / ppl:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
