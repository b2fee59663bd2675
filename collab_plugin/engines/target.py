"""What `verify` holds to a reference: an engine on a device of this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]


class NotOfferedError(Exception):
    """Raised by a session or a bench for what the engine's interface does not give; the text is the reason
    that the report shows beside `skipped`."""


@dataclass(frozen=True)
class Device:
    """As the engine or driver names it. ``driver``: name and version, "" where none is told (a CPU);
    ``memory_bytes`` and ``unified_memory`` (shared with the CPU) None where unknown."""

    name: str
    kind: Literal["cpu", "gpu", "igpu", "accelerator"]
    driver: str
    memory_bytes: int | None
    unified_memory: bool | None


@dataclass(frozen=True)
class TargetInfo:
    """A target of this machine, or one that the machine lacks.

    ``name``: engine, device and number or code path, as `--target` takes it: "llamacpp:cpu",
    "llamacpp:vulkan:0", "vllm:cpu", "ollama". ``absent``: why it cannot be run here, in words ("no Vulkan
    device"); the report then says `not-run`, never `pass`. ``build``: the engine's commit, wheel or
    library version; ``versions``: of whatever else decides the numbers. ``slow``: why only the short form of a
    suite is run there, "" where the whole is.
    """

    name: str
    engine: str
    build: str
    device: Device | None
    absent: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    slow: str = ""


@dataclass(frozen=True)
class Routing:
    """Experts that one layer chose: ``ids`` i32[tokens, k], in any order within a token."""

    layer: int
    ids: I32


@dataclass(frozen=True)
class LogProbabilities:
    """The most probable next tokens: ``ids`` i32[tokens, n] by falling ``values`` f32[tokens, n], in nats."""

    ids: I32
    values: F32


class Session:
    """A loaded artifact. What an engine cannot give raises NotOfferedError (the default)."""

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> F32:
        """Logits f32[tokens, vocabulary] after each token of a fresh sequence, ``batch`` tokens at a time
        (None: all at once)."""
        raise NotOfferedError("the engine gives no logits")

    def logits_at(self, tokens: Sequence[int], positions: Sequence[int], *, batch: int | None = None) -> F32:
        """Rows of `logits` after the tokens at ``positions``, ascending: for engines where a row is dear."""
        found = self.logits(tokens, batch=batch)
        if len(found) != len(tokens):
            raise ValueError(f"the engine gave logits after {len(found)} tokens, not {len(tokens)}")
        return np.asarray(found[list(positions)], np.float32)

    def top(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        """The ``n`` most probable tokens after each token; engines that give no logits have this."""
        raise NotOfferedError("the engine gives no log-probabilities")

    def routing(self, tokens: Sequence[int]) -> tuple[Routing, ...]:
        """Experts chosen in every MoE layer, ascending."""
        raise NotOfferedError("the engine does not show its routing")

    def greedy(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        """Continue ``tokens`` greedily: the 5 most probable at each of ``n`` steps; column 0 is taken."""
        raise NotOfferedError("the engine cannot continue token ids")


class KernelBench(ABC):
    """Single operations on the target's device, through the engine's public interface. Types are ggml's."""

    @abstractmethod
    def types(self) -> Sequence[str]:
        """Types that the backend claims to multiply with."""

    @abstractmethod
    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        """``weights`` uint8[rows, bytes a row] times ``x`` f32[n, columns]: f32[n, rows]. n = 1 is the
        matrix-vector kernel, larger n the matrix-matrix one."""

    @abstractmethod
    def mul_mat_id(self, type_name: str, weights: Bytes, x: F32, ids: I32) -> F32:
        """``weights`` uint8[experts, rows, bytes a row], ``x`` f32[tokens, columns], ``ids`` i32[tokens, k]
        chosen experts: f32[tokens, k, rows]."""


@dataclass(frozen=True)
class LoadOptions:
    """``kv_type``: ggml type of the key and value cache, "f16" being llama.cpp's own; ``ctx``: tokens.
    ``placement``: the document that says in which memory experts lie, None: as the engine does it by itself."""

    ctx: int = 1024
    kv_type: str = "f32"
    threads: int = 1
    placement: Path | None = None


class Target(ABC):
    """Made in the child process; native code may abort there. ``places``: `load` carries out a placement; others are
    not asked to."""

    places: ClassVar[bool] = False

    @abstractmethod
    def load(self, artifact: Path, options: LoadOptions) -> AbstractContextManager[Session]:
        """Load a GGUF. CollabError when the engine refuses it or the placement, NotOfferedError for an option it
        lacks."""

    def kernels(self) -> AbstractContextManager[KernelBench]:
        """Single operations; NotOfferedError where the engine has no interface to them."""
        raise NotOfferedError("the engine has no interface to single operations")


class TargetProvider(ABC):
    """All targets of one engine. ``name`` is the first part of their names."""

    name: str

    @abstractmethod
    def find(self) -> Sequence[TargetInfo]:
        """Targets of this machine, and those it could have but lacks, with the reason. Starts no engine in
        this process that can abort it, and takes seconds at most."""

    @abstractmethod
    def open(self, name: str) -> Target:
        """Make the target that `find` called ``name``. Called in the child process only."""

    def command(self, name: str) -> Sequence[str]:
        """The Python that the child runs, with its own options; empty: this one."""
        return ()

    def environment(self, name: str) -> Mapping[str, str]:
        """Environment variables to set for the child: library paths, chosen devices."""
        return {}
