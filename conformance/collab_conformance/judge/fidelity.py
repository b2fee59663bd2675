"""Question B: how far the compressed file is from its original. Reported in classes; no class is a pass mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import collab_plugin as cp
from collab_conformance.report.verify_report import Fidelity
from collab_plugin.progress import silent

CTX = 512
LEAST_BITS = 2.0
NOT_GRADED = "not graded"


@dataclass(frozen=True)
class Class:
    """``name`` is given up to ``most`` nats of mean KL divergence."""

    name: str
    most: float


CLASSES = (
    Class("like Q8_0", 0.0027),
    Class("like Q6_K", 0.0077),
    Class("like Q5_K_M", 0.018),
    Class("like Q4_K_M", 0.056),
    Class("like IQ3_M", 0.18),
    Class("like Q2_K", 0.52),
)
"""A class is the neighbourhood of what llama.cpp's README of llama-perplexity measured for that type on
Llama 3 8B: 0.00136, 0.0055, 0.0108, 0.031, 0.103 and 0.33 nats; 0.81 for IQ2_XXS. A bound is the geometric
mean of two neighbours."""
BEYOND = "beyond Q2_K"


def grade(mean_kld: float, stderr: float, bits_per_weight: float) -> str:
    """Class of a mean KL divergence in nats, taken two standard errors too high; below 2 bits a weight none."""
    if bits_per_weight < LEAST_BITS:
        return NOT_GRADED
    high = mean_kld + 2 * stderr
    return next((kind.name for kind in CLASSES if high <= kind.most), BEYOND)


def measure_fidelity(
    engine: str,
    artifact: Path,
    name: str,
    original: Path,
    texts: Sequence[Path],
    threads: int,
    progress: cp.OnProgress = silent,
) -> Fidelity:
    """Evaluate ``artifact`` against ``original`` on ``texts``, in windows of 512 tokens. CollabError as `evaluate`."""
    whole = cp.open_checkpoint(original)
    parameters = sum(info.n_elements for info in whole.tensors.values())
    small = cp.open_checkpoint(artifact)
    if small.architecture != whole.architecture:
        raise cp.CollabError(
            f"{artifact} is a {small.architecture} and {original} a {whole.architecture}: not its original"
        )
    e = cp.evaluate(small, against=whole, texts=texts, ctx=CTX, engine=engine, threads=threads, progress=progress)
    bits = 8 * sum(info.nbytes for info in small.tensors.values()) / parameters
    return fidelity_of(name, e, bits)


def fidelity_of(name: str, e: cp.Evaluation, bits_per_weight: float) -> Fidelity:
    """The figures of the report; ``bits_per_weight`` over the original's parameters, pruned ones included."""
    return Fidelity(
        artifact=name,
        bits_per_weight=bits_per_weight,
        mean_kld=e.mean_kld,
        mean_kld_stderr=e.mean_kld_stderr,
        kld_p99=e.kld_p99,
        same_top1=e.same_top1,
        ppl_ratio=e.ppl / e.ppl_original,
        tokens=e.tokens,
        grade=grade(e.mean_kld, e.mean_kld_stderr, bits_per_weight),
    )
