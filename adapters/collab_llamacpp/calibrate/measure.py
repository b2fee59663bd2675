"""Time the devices that llama.cpp has here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.job_types import MeasureJob
from collab_llamacpp.native.expert_speed import clock_of, expert_speed, node_seconds, started
from collab_llamacpp.native.ggml import ggml

_KINDS = {0: "host", 1: "gpu", 2: "igpu"}
"""ggml_backend_dev_type (ggml-backend.h); others compute beside the processor and hold no weights."""


def measure(job: MeasureJob) -> dict[str, NDArray[Any]]:
    """``device.N``: name and kind; ``speed.N.TYPE``: bytes a second; ``node_seconds`` of the processor."""
    lib = ggml()
    arrays: dict[str, NDArray[Any]] = {"node_seconds": np.array(0.0)}
    for number, device in enumerate(lib.devices()):
        kind = _KINDS.get(lib.ggml_backend_dev_type(device))
        if kind is None:
            continue
        arrays[f"device.{number}"] = np.array([lib.ggml_backend_dev_name(device).decode(), kind])
        clock = clock_of(kind, job.threads)
        with started(lib, device, job.threads) as backend:
            for name in job.types:
                if (speed := expert_speed(lib, device, backend, name, clock)) is not None:
                    arrays[f"speed.{number}.{name}"] = np.array(speed)
            if kind == "host":
                arrays["node_seconds"] = np.array(node_seconds(lib, device, backend, clock))
    return arrays
