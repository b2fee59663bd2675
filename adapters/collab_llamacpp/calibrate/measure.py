"""Time the devices that llama.cpp has here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.job_types import MeasureJob
from collab_llamacpp.native.ggml import ggml
from collab_llamacpp.native.matrix_speed import clock_of, matrix_speed, node_seconds, started

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
            for name in dict.fromkeys(matrix.type for matrix in job.matrices):
                own = [matrix for matrix in job.matrices if matrix.type == name]
                speeds = [matrix_speed(lib, device, backend, matrix, job.model_bytes, clock) for matrix in own]
                if None not in speeds:
                    seconds = sum(m.bytes / speed for m, speed in zip(own, speeds, strict=True) if speed)
                    arrays[f"speed.{number}.{name}"] = np.array(sum(m.bytes for m in own) / seconds)
            if kind == "host":
                arrays["node_seconds"] = np.array(node_seconds(lib, device, backend, clock))
    return arrays
