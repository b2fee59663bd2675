"""Print a JSON object: the key of `calibrate` for each of some jobs on the model folders MODEL and COPY, which has the
same files but for their times, and TEXT. Runs in vLLM's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from collab_vllm.jobs.calibrate import key_of
from collab_vllm.jobs.vllm_job_types import VllmCalibrateJob
from collab_vllm.jobs.windows import model_windows

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut


def key(model: str, windows: Windows) -> str:
    cut = text_cut(windows, open_safetensors(Path(model)).metadata)
    job = VllmCalibrateJob(model, 1, cut, "kept", 0)
    return key_of(job, model_windows(model, cut))


model, copy = sys.argv[1:3]
text = (Path(sys.argv[3]),)
plain = Windows(text, 128, 8, seed=0)
print(
    json.dumps(
        {
            "plain": key(model, plain),
            "again": key(model, Windows(text, 128, 8, seed=0, unfinished=Path("other"))),
            "seed": key(model, Windows(text, 128, 8, seed=1)),
            "chunks": key(model, Windows(text, 128, 9, seed=0)),
            "ctx": key(model, Windows(text, 64, 8, seed=0)),
            "model": key(copy, plain),
        }
    )
)
