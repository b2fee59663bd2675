"""What the child process does, in vLLM's environment: FOLDER/job.json to FOLDER/result.npz.

Progress goes to stdout as JSON lines, a user's mistake to FOLDER/error.txt (exit code 2), all else to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from collab_plugin.errors import CollabError
from collab_plugin.stats.text_overlap import sketch

Progress = Callable[[int, int], None]
BATCH = 8
"""Windows handed to the engine at a time: between two there is a sign of progress."""


def main() -> int:
    folder = Path(sys.argv[1])
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout

    def progress(done: int, total: int) -> None:
        print(json.dumps({"done": done, "total": total}), file=told, flush=True)

    try:
        arrays = calibrate(json.loads((folder / "job.json").read_text()), progress)
    except CollabError as error:
        (folder / "error.txt").write_text(str(error))
        return 2
    np.savez(folder / "result.npz", **arrays)  # type: ignore[arg-type]  # keyword arrays, as documented
    return 0


def calibrate(job: dict[str, Any], progress: Progress) -> dict[str, NDArray[Any]]:
    """All windows through the model, each for itself; the router's choice of every token is counted."""
    import collab_vllm

    collab_vllm.register()
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    from collab_vllm.live_stats.merge import merged

    ctx = job["ctx"]
    llm = LLM(
        job["model"],
        load_format="collab",
        model_loader_extra_config={"stats": True},
        dtype="float32" if current_platform.is_cpu() else "auto",
        enforce_eager=True,
        enable_prefix_caching=False,  # what is cached is not routed again
        max_model_len=ctx + 1,
        max_num_seqs=BATCH,
    )
    windows = cut(_tokenizer(job["model"]), job["texts"], ctx, job["chunks"], job["bos"])
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


def _tokenizer(model: str) -> Tokenizer:
    """The model's; the text of a control token is text."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def cut(
    tokenizer: Tokenizer, texts: Sequence[dict[str, str]], ctx: int, chunks: int | None, bos: int | None
) -> list[NDArray[np.int64]]:
    """Windows as the engine llamacpp cuts them: of ``ctx`` tokens, none across two texts, each starting with BOS
    where the vocabulary adds one; a text's rest is left out. With ``chunks`` the first so many of each text."""
    found: list[NDArray[np.int64]] = []
    total = 0
    for text in texts:
        ids = tokenizer.encode(text["content"], add_special_tokens=False).ids
        tokens = np.array(ids if bos is None else [bos, *ids], np.int64)
        total += len(tokens)
        found += [tokens[i : i + ctx].copy() for i in range(0, len(tokens) - ctx + 1, ctx)][:chunks]
    if not found:
        raise CollabError(f"{total} tokens of text are less than one window of {ctx}; give more text or lower `ctx`")
    if bos is not None:
        for window in found:
            window[0] = bos
    return found
