"""How fast llama.cpp computes a GGUF on the processor; a child of artifact.py beside it. Prints one JSON line.

llama_speed.py GGUF NEW THREADS: prompts with NEW tokens after each, as measure.py beside it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import llama_cpp as llama

PROMPTS, PROMPT, REPEATS, CTX = 8, 32, 3, 256
CLOCK = time.process_time if os.environ.get("BENCH_CLOCK") == "processor" else time.perf_counter


def main(path: str, new: int, threads: int) -> None:
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), options)
    chosen = llama.llama_context_default_params()
    chosen.n_ctx, chosen.n_seq_max, chosen.n_batch = CTX * PROMPTS, PROMPTS, PROMPT * PROMPTS
    chosen.n_threads = chosen.n_threads_batch = threads
    context = llama.llama_init_from_model(model, chosen)
    prompts = [[3 + (7 * i + j) % 2048 for j in range(PROMPT)] for i in range(PROMPTS)]
    figures = {}
    for name, count in (("one", 1), ("all", PROMPTS)):
        run(context, prompts[:count], new)
        found = [run(context, prompts[:count], new) for _ in range(REPEATS)]
        figures[f"{name}_s"] = statistics.median(speed for _, speed in found)
        figures["prompt_s"] = statistics.median(speed for speed, _ in found)
    print("MEASURED " + json.dumps(figures), flush=True)


def run(context: object, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
    """Tokens a second of prompts, and of what follows; which token is likeliest is not looked up."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    begun = CLOCK()
    decode(context, [(token, at, seq) for seq, prompt in enumerate(prompts) for at, token in enumerate(prompt)])
    middle = CLOCK()
    for step in range(new):
        decode(context, [(100 + step, PROMPT + step, seq) for seq in range(len(prompts))])
    end = CLOCK()
    return len(prompts) * PROMPT / (middle - begun), len(prompts) * new / (end - middle)


def decode(context: object, tokens: Sequence[tuple[int, int, int]]) -> None:
    """(token, position, sequence) each; logits for the last of each sequence."""
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    last = {seq: at for at, (_, _, seq) in enumerate(tokens)}
    for at, (token, position, seq) in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, position, 1, seq
        batch.logits[at] = last[seq] == at
    if llama.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    llama.llama_synchronize(context)
    llama.llama_batch_free(batch)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
