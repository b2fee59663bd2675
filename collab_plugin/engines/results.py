"""What engines give back: a comparison, generated text, a model behind HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """How a model compares with its original on the same tokens.

    ``mean_kld`` is KL(original || model) in nats, a token's mean over all ``tokens`` scored;
    ``mean_kld_stderr`` its standard error; ``kld_p50`` to ``kld_p999`` its percentiles (50, 90, 95, 99,
    99.9) and ``kld_max`` its largest value; ``same_top1`` the share of positions where both put the same
    token first. ``ppl`` and ``ppl_original`` are perplexities. Chunking as in llama-perplexity: windows of
    ``ctx`` tokens, the second half scored. ``text_overlap`` is the share of the calibration text's n-grams
    seen in the evaluation text, None when the model carries no record of its calibration.
    """

    ppl: float
    ppl_original: float
    mean_kld: float
    mean_kld_stderr: float
    kld_p50: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top1: float
    tokens: int
    ctx: int
    text_overlap: float | None = None


@dataclass(frozen=True)
class Generation:
    """Generated text and its speed; ``tokens_per_second`` counts generation alone."""

    text: str
    prompt_tokens: int
    tokens: int
    prompt_tokens_per_second: float
    tokens_per_second: float


@dataclass(frozen=True)
class Served:
    """A model behind HTTP on loopback: ``url``/v1/completions takes token ids and, with ``echo`` and
    ``logprobs``, tells the log-probability of each at its own index; /tokenize, /detokenize and
    /tokenizer_info as vLLM has them. Requests carry ``token`` as bearer. ``ctx``: context in tokens.
    """

    url: str
    token: str
    ctx: int
