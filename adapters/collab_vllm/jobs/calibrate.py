"""Routing statistics of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.unfinished_calibration import UnfinishedCalibration, calibration_key
from collab_plugin.progress import Advance, take_up
from collab_plugin.stats.text_overlap import sketch
from collab_vllm.import_vllm import import_vllm
from collab_vllm.jobs.start_vllm import start_vllm
from collab_vllm.jobs.vllm_job_types import VllmCalibrateJob
from collab_vllm.jobs.windows import I64, model_windows
from collab_vllm.live_stats.routed_stats import RoutedSums, engine_version, merged

BATCH = 8
"""Windows handed to the engine at a time: between two there is a sign of progress, and sums may be kept."""


def calibrate(job: VllmCalibrateJob, progress: Advance) -> dict[str, NDArray[Any]]:
    """All windows through the model, each for itself; the router's choice of every token is counted."""
    ctx = job.cut.ctx
    windows = model_windows(job.model, job.cut)
    sums = RoutedSums()
    kept = UnfinishedCalibration(job.unfinished, key_of(job, windows), job.save_seconds)
    first = kept.resume(sums)
    take_up(progress, first * ctx, len(windows) * ctx)
    llm = start_vllm(job.model, ctx=ctx + 1, stats=True, max_num_seqs=BATCH)  # vLLM makes one token at least
    from vllm import SamplingParams

    # One token is asked for, and that comes out of the prompt's own pass.
    wanted = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    for start in range(first, len(windows), BATCH):
        batch = windows[start : start + BATCH]
        # Counted batch by batch and added up here, so that a run that goes on adds in the same order.
        llm.collective_rpc("collab_reset")
        llm.generate([{"prompt_token_ids": w.tolist()} for w in batch], wanted, use_tqdm=False)
        sums.add(merged(llm.collective_rpc("collab_routing")))
        progress((start + len(batch)) * ctx, len(windows) * ctx)
        kept.keep(sums, start + len(batch))
    about = {"tokens": np.array(len(windows) * ctx), "sketch": sketch(np.concatenate(windows))}
    return about | sums.state()


def key_of(job: VllmCalibrateJob, windows: Sequence[I64]) -> str:
    import_vllm()
    from vllm.platforms import current_platform

    # The kind of device, because processors run float32 and GPUs the type that the model says.
    folder = Path(job.model)
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return calibration_key(engine_version(), files, windows, (BATCH, current_platform.device_type))
