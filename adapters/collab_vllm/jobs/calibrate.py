"""Routing statistics of text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.progress import Advance
from collab_plugin.stats.text_overlap import sketch
from collab_vllm.jobs.start_vllm import start_vllm
from collab_vllm.jobs.vllm_job_types import VllmCalibrateJob
from collab_vllm.jobs.windows import model_windows

BATCH = 8
"""Windows handed to the engine at a time: between two there is a sign of progress."""


def calibrate(job: VllmCalibrateJob, progress: Advance) -> dict[str, NDArray[Any]]:
    """All windows through the model, each for itself; the router's choice of every token is counted."""
    ctx = job.cut.ctx
    windows = model_windows(job.model, job.cut)
    llm = start_vllm(job.model, ctx=ctx + 1, stats=True, max_num_seqs=BATCH)  # vLLM makes one token at least
    from vllm import SamplingParams

    from collab_vllm.live_stats.routed_stats import merged

    llm.collective_rpc("collab_reset")
    # One token is asked for, and that comes out of the prompt's own pass.
    wanted = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    for start in range(0, len(windows), BATCH):
        batch = windows[start : start + BATCH]
        llm.generate([{"prompt_token_ids": w.tolist()} for w in batch], wanted, use_tqdm=False)
        progress((start + len(batch)) * ctx, len(windows) * ctx)
    routing = merged(llm.collective_rpc("collab_routing"))
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.array(len(windows) * ctx),
        "sketch": sketch(np.concatenate(windows)),
    }
    for layer, one in routing.items():
        arrays[f"count.{layer}"] = one.count
        arrays[f"weights.{layer}"] = np.asarray(one.weight_sum)
        arrays[f"layer_tokens.{layer}"] = np.array(one.tokens)
    return arrays
