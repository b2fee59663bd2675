"""A calibration in vLLM that keeps what it has done after each batch, as a program: MODEL TEXT KEPT. It prints the
tokens that are done, a line a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from collab_vllm.jobs.vllm_child import run_job
from collab_vllm.jobs.vllm_job_types import VllmCalibrateJob

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.engines.child_process import OnLine
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.text_windows import text_cut

CTX = 128
WINDOWS = 40


def calibrate(model: Path, text: Path, kept: Path, on_line: OnLine) -> None:
    """What `calibrate --ctx 128 --chunks 40` asks the child for, but that it is kept each time."""
    cut = text_cut(Windows((text,), CTX, WINDOWS, seed=0), open_safetensors(model).metadata)
    run_job(VllmCalibrateJob(str(model), 1, cut, str(kept), save_seconds=0), "calibrate", on_line)


def _told(line: dict[str, Any]) -> None:
    print(int(line["done"]), flush=True)


if __name__ == "__main__":
    calibrate(*(Path(argument).resolve() for argument in sys.argv[1:4]), _told)
