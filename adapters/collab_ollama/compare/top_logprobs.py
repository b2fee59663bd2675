"""Compare two models of a server by what its API gives: the 20 likeliest next tokens with their log-probabilities.

Ollama gives log-probabilities of generated tokens only, 20 at most and without token ids, and nothing of
the routing. So there is no perplexity and no calibration through it; what can be had is the next token's
distribution after many prefixes of a text, cut to its head.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collab_ollama.server.client import Client
from collab_plugin.errors import CollabError

TOP = 20
PREFIX_CHARACTERS = 400

Distribution = Mapping[str, float]
"""Text of a token -> log-probability in nats, of the 20 likeliest; tokens of one text are added up."""


@dataclass(frozen=True)
class TopLogprobsComparison:
    """Over ``positions`` prefixes: the share where both models put the same token first; ``mean_kld_at_least``,
    KL(original || model) in nats over the tokens that both list and one class of all others, which is
    never more than the true divergence; the mean absolute difference of the log-probabilities of tokens
    that both list; the mean share of the 20 that both list. ``skipped`` prefixes had no answer (the next
    token is an end or half a character)."""

    positions: int
    skipped: int
    same_top1: float
    mean_kld_at_least: float
    mean_abs_logprob: float
    shared: float


def prefixes(texts: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """``count`` prefixes that end between words, spread over the texts by a seeded draw."""
    rng = random.Random(seed)
    whole = "\n".join(texts)
    ends = [at for at in range(1, len(whole)) if whole[at] == " " and not whole[at - 1].isspace()]
    ends = [at for at in ends if at >= min(PREFIX_CHARACTERS, len(whole) // 2)]
    if len(ends) < count:
        raise CollabError(f"the text has {len(ends)} places between words, and `positions` asks for {count}")
    return [whole[max(0, at - PREFIX_CHARACTERS) : at] for at in sorted(rng.sample(ends, count))]


def next_tokens(client: Client, model: str, prefix: str) -> Distribution | None:
    """The 20 likeliest tokens after ``prefix``, which is sent without a template; None when none are given."""
    options = {"temperature": 0, "seed": 0, "num_predict": 1}
    reply = client.generate(
        {"model": model, "prompt": prefix, "raw": True, "options": options, "logprobs": True, "top_logprobs": TOP}
    )
    steps = reply.get("logprobs") or []
    return merged(steps[0]["top_logprobs"]) if steps else None


def merged(entries: Sequence[Mapping[str, object]]) -> Distribution:
    """Add up entries whose tokens have the same bytes."""
    found: dict[str, float] = {}
    for entry in entries:
        token, value = str(entry.get("bytes") or entry["token"]), float(str(entry["logprob"]))
        found[token] = math.log(math.exp(found[token]) + math.exp(value)) if token in found else value
    return found


def ask(
    client: Client, model: str, texts: Sequence[str], report: Callable[[int, int], None]
) -> list[Distribution | None]:
    """The distributions of ``model`` after each prefix."""
    found = []
    for done, prefix in enumerate(texts, 1):
        found.append(next_tokens(client, model, prefix))
        report(done, len(texts))
    return found


def compare(original: Sequence[Distribution | None], model: Sequence[Distribution | None]) -> TopLogprobsComparison:
    """Measure ``model`` against ``original``, prefix by prefix; CollabError when nothing can be compared."""
    pairs = [(p, q) for p, q in zip(original, model, strict=True) if p and q]
    if not pairs:
        raise CollabError("the server gave no log-probabilities for these prefixes; it may be older than 0.30.0")
    shared = [set(p) & set(q) for p, q in pairs]
    gaps = [abs(p[t] - q[t]) for (p, q), tokens in zip(pairs, shared, strict=True) for t in tokens]
    return TopLogprobsComparison(
        positions=len(pairs),
        skipped=len(original) - len(pairs),
        same_top1=sum(max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in pairs) / len(pairs),
        mean_kld_at_least=sum(kld_at_least(p, q) for p, q in pairs) / len(pairs),
        mean_abs_logprob=sum(gaps) / len(gaps) if gaps else math.inf,
        shared=sum(len(tokens) for tokens in shared) / (TOP * len(pairs)),
    )


def kld_at_least(p: Distribution, q: Distribution) -> float:
    """KL(p || q) after all tokens that only one lists, or none, became one class."""
    tokens = set(p) & set(q)
    total = sum(math.exp(p[t]) * (p[t] - q[t]) for t in tokens)
    rest_p = 1 - sum(math.exp(p[t]) for t in tokens)
    rest_q = 1 - sum(math.exp(q[t]) for t in tokens)
    # Log-probabilities are rounded by the server: a rest may come out a hair below zero.
    if rest_p > 1e-9 and rest_q > 1e-9:
        total += rest_p * math.log(rest_p / rest_q)
    return max(total, 0.0)


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read texts; CollabError naming one that is not UTF-8."""
    found = []
    for path in paths:
        try:
            found.append(path.read_text("utf-8"))
        except OSError as error:
            raise CollabError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CollabError(f"{path} is not UTF-8") from None
    return found
