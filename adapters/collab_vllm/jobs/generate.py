"""Text that continues a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_vllm.jobs.start_vllm import start_vllm
from collab_vllm.jobs.vllm_job_types import VllmGenerateJob
from collab_vllm.jobs.windows import token_ids, tokenizer_of


def generate(job: VllmGenerateJob, write: Callable[[str], None]) -> dict[str, NDArray[Any]]:
    """Pass pieces of text to ``write`` as they come; return tokens of the prompt and made, and the seconds of both.

    The first token comes out of the prompt's pass, so its time counts there.
    """
    tokens = token_ids(tokenizer_of(job.model, special=True), job.prompt, job.bos)
    if not len(tokens):
        raise CollabError("the `prompt` is empty")
    if len(tokens) + job.max_tokens > job.ctx:
        raise CollabError(
            f"{len(tokens)} prompt tokens and {job.max_tokens} new ones exceed the context of {job.ctx}; "
            "lower `max_tokens`, or raise `ctx` if the model has more"
        )
    llm = start_vllm(job.model, ctx=job.ctx, max_num_seqs=1)
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    wanted = SamplingParams(
        max_tokens=job.max_tokens,
        temperature=job.temperature,
        seed=job.seed,
        output_kind=RequestOutputKind.DELTA,
        skip_special_tokens=False,  # control tokens as they are written, as the engine llamacpp shows them
    )
    engine = llm.llm_engine
    begun = time.perf_counter()
    engine.add_request("0", {"prompt_token_ids": tokens.tolist()}, wanted)
    made, first, stopped = 0, 0.0, False
    while engine.has_unfinished_requests():
        for output in engine.step():
            (piece,) = output.outputs
            first = first or time.perf_counter()
            made += len(piece.token_ids)
            stopped = piece.finish_reason == "stop"
            if piece.text:
                write(piece.text)
    seconds = time.perf_counter() - first
    # The token that ends the text is counted by vLLM and is none of the text's.
    return {"figures": np.array([len(tokens), made - stopped, first - begun, seconds], np.float64)}
