"""The engine called with few tokens and one thread."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from numpy.typing import NDArray

from collab_plugin.engines.engine import Decoding, Windows
from collab_plugin.engines.results import Evaluation, Generation
from collab_plugin.progress import untold
from collab_plugin.stats.stats import Stats

CTX = 64
ENGINE = LlamaCppEngine()


def calibrate(model: Path, *texts: Path, ctx: int = CTX, chunks: int | None = None, seed: int | None = None) -> Stats:
    return ENGINE.calibrate(model, Windows(texts, ctx, chunks, seed=seed), threads=1, progress=untold)


def evaluate(model: Path, original: Path, *texts: Path, ctx: int = CTX, chunks: int | None = None) -> Evaluation:
    return ENGINE.evaluate(model, original, Windows(texts, ctx, chunks), threads=1, progress=untold)


def generate(
    model: Path, prompt: str, *, tokens: int = 12, temperature: float = 0.0, seed: int = 0, ctx: int = CTX
) -> tuple[Generation, list[str]]:
    """The generation and the pieces as they were written."""
    pieces: list[str] = []
    made = ENGINE.generate(
        model,
        prompt,
        Decoding(tokens, temperature, seed, ctx),
        threads=1,
        write=pieces.append,
    )
    return made, pieces


# Context and attention kernel as our sessions have them: others round otherwise, and a near-tie in a
# router then sends a token elsewhere.
_PLAIN = """
import json, sys
import llama_cpp, numpy as np
model, windows, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
llama = llama_cpp.Llama(model, n_ctx=64, n_batch=64, logits_all=True, flash_attn=True, verbose=False, n_threads=1)
found = []
for window in windows:
    llama.reset()
    llama.eval(window)
    found.append(np.array(llama.scores[: len(window)]))
np.save(out, np.stack(found))
"""


def plain_logits(model: Path, windows: list[list[int]], out: Path) -> NDArray[np.float32]:
    """Logits f32[windows, tokens, vocabulary] of `llama_cpp.Llama`, without our code, in a process of its own."""
    subprocess.run(
        [sys.executable, "-c", _PLAIN, str(model), json.dumps(windows), str(out)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    found: NDArray[np.float32] = np.load(out, allow_pickle=False)
    return found
