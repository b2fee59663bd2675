"""A target made of numpy and gguf-py that computes right, or goes wrong in the way its name says.

The child finds it like any plugin, by an entry point: `installed` writes the metadata of one into a folder.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from collab_plugin import hookimpl
from collab_plugin.engines.target import (
    F32,
    I32,
    Bytes,
    Device,
    KernelBench,
    LoadOptions,
    NotOfferedError,
    Target,
    TargetInfo,
    TargetProvider,
)

PATH = "ODD_TARGET_PATH"


def _product(type_name: str, weights: Bytes, x: F32) -> F32:
    return x @ dequantize(weights, GGMLQuantizationType[type_name]).T


class NumpyBench(KernelBench):
    def types(self) -> Sequence[str]:
        return ("Q8_0", "F16")

    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        return _product(type_name, weights, x)

    def mul_mat_id(self, type_name: str, weights: Bytes, x: F32, ids: I32) -> F32:
        rows = [[_product(type_name, weights[e], x[t]) for e in chosen] for t, chosen in enumerate(ids)]
        return np.array(rows, np.float32)


class OffByAPercent(NumpyBench):
    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        return super().mul_mat(type_name, weights, x) * np.float32(1.01)


class GoesWrong(NumpyBench):
    """Goes wrong in the matrix-matrix product of F16, after those of Q8_0 were measured."""

    def __init__(self, how: str) -> None:
        self.how = how

    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        if type_name == "F16" and len(x) > 1:
            match self.how:
                case "abort":
                    print("GGML_ASSERT(false) failed, says the driver", flush=True)
                    os.abort()
                case "out-of-memory":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "raise":
                    raise RuntimeError("no such pipeline")
                case "shape":
                    return np.zeros((1, 1), np.float32)
                case "nan":
                    return super().mul_mat(type_name, weights, x) * np.float32("nan")
                case "not-offered":
                    raise NotOfferedError("no matrix products of F16 here")
                case "chatty":
                    print('{"measured": "printed by native code"}', flush=True)
                    os.write(1, b"and more of it\n")
        return super().mul_mat(type_name, weights, x)


class OddTarget(Target):
    def __init__(self, how: str) -> None:
        self.how = how

    def load(self, artifact: Path, options: LoadOptions) -> None:  # type: ignore[override]
        raise NotOfferedError("loads no artifacts")

    @contextmanager
    def kernels(self) -> Iterator[KernelBench]:
        if self.how == "fork":
            if os.fork() == 0:  # a process that holds the pipe open and outlives the child
                time.sleep(3600)
            os._exit(3)
        yield {"right": NumpyBench, "percent": OffByAPercent}.get(self.how, lambda: GoesWrong(self.how))()


class OddTargets(TargetProvider):
    name = "odd"

    def find(self) -> Sequence[TargetInfo]:
        cpu = Device("numpy", "cpu", "", None, None)
        return [
            TargetInfo("odd:right", "odd", np.__version__, cpu),
            TargetInfo("odd:gpu", "odd", np.__version__, None, absent="numpy has no GPU"),
        ]

    def open(self, name: str) -> Target:
        return OddTarget(name.partition(":")[2])

    def environment(self, name: str) -> Mapping[str, str]:
        return {"PYTHONPATH": os.environ[PATH]}


@hookimpl
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    register(OddTargets())


def installed(folder: Path) -> str:
    """A PYTHONPATH on which this module is a plugin's entry point."""
    info = folder / "odd_target-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-target\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[collab_plugin]\nodd = odd_target\n")
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join([str(folder), str(Path(__file__).parent), *before])
