"""Logits of windows: written as a reference, or compared with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.engines.compare_logits import Comparison, scored_rows
from collab_plugin.engines.reference_file import Reference, writing_reference
from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance
from collab_vllm.jobs.start_vllm import start_vllm
from collab_vllm.jobs.vllm_job_types import VllmEvaluateJob, VllmReferenceJob
from collab_vllm.jobs.windows import I64, model_windows

if TYPE_CHECKING:
    import torch

F32 = NDArray[np.float32]
ROWS = 256
"""Positions whose logits are on the device at a time."""


class WindowScorer:
    """A model that gives the logits of any position of a window.

    vLLM gives log-probabilities one Python object a token and position; this takes what the model itself computes: the
    hidden states of the window's pass, and the output layer on the positions that are wanted.
    """

    def __init__(self, model: str, ctx: int) -> None:
        self._llm = start_vllm(model, ctx=ctx + 1, max_num_seqs=1, max_num_batched_tokens=ctx + 1)
        self._states: list[torch.Tensor] = []
        self._model: Any = None
        self._llm.apply_model(self._watch)
        self.n_vocab = int(self._llm.model_config.get_vocab_size())

    def _watch(self, model: Any) -> None:
        self._model = model
        model.register_forward_hook(lambda module, inputs, states: self._states.append(states))

    def logits(self, window: I64, rows: slice) -> F32:
        """Logits f32[rows, vocabulary] at the positions ``rows`` of ``window``."""
        import torch
        from vllm import SamplingParams

        self._states.clear()
        wanted = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        self._llm.generate([{"prompt_token_ids": window.tolist()}], wanted, use_tqdm=False)
        states = torch.cat(self._states)
        if len(states) != len(window):
            raise RuntimeError(f"vLLM ran {len(states)} positions of a window of {len(window)}")
        with torch.inference_mode():
            parts = [self._model.compute_logits(part).float().cpu().numpy() for part in states[rows].split(ROWS)]
        found: F32 = np.concatenate(parts)
        return found


def reference(job: VllmReferenceJob, progress: Advance) -> None:
    """Write the logits of ``job.model`` as ``job.out``."""
    ctx = job.cut.ctx
    windows = model_windows(job.model, job.cut)
    scorer = WindowScorer(job.model, ctx)
    with writing_reference(Path(job.out), windows, scorer.n_vocab) as store:
        for index, window in enumerate(windows):
            store.add(index, scorer.logits(window, scored_rows(ctx)))
            progress((index + 1) * ctx, len(windows) * ctx)


def evaluate(job: VllmEvaluateJob, progress: Advance) -> dict[str, NDArray[Any]]:
    """`Comparison.arrays` of ``job.model`` against ``job.reference``."""
    ctx, rows = job.cut.ctx, scored_rows(job.cut.ctx)
    windows = model_windows(job.model, job.cut)
    original = Reference(Path(job.reference))
    if not original.same_windows(windows):
        raise CollabError(f"{job.model} and its original tokenize the text differently: not the same model")
    scorer = WindowScorer(job.model, ctx)
    if scorer.n_vocab != original.n_vocab:
        raise CollabError(f"{job.model} has {scorer.n_vocab} tokens and its original {original.n_vocab}")
    found = Comparison()
    for index, window in enumerate(windows):
        found.add(scorer.logits(window, rows), original.logits(index), window[rows.start + 1 :])
        progress((index + 1) * ctx, len(windows) * ctx)
    return found.arrays()
