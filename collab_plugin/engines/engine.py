"""What an engine can do for the core, and how it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from collab_plugin.engines.disturbance import Disturbance, Effects, ErrorShape
from collab_plugin.engines.results import Evaluation, Generation, Served
from collab_plugin.errors import CollabError
from collab_plugin.placement.machine_profile import DeviceSpeed, ReadMatrix
from collab_plugin.placement.placement import Placement
from collab_plugin.progress import Advance
from collab_plugin.stats.stats import Stats

Ability = Literal[
    "calibrate", "trace", "reference", "evaluate", "disturb", "sample", "generate", "serve", "measure", "place"
]
"""Names of the methods of `Engine` that not every engine has."""

REFERENCE = ".npy"
"""Suffix of the files that `Engine.reference` writes."""


@dataclass(frozen=True)
class Windows:
    """Text as engines run it: cut into windows of ``ctx`` tokens, none across two texts, a text's rest left out.

    ``texts``: files of UTF-8 text, JSON lines or Parquet (text_pieces.py). ``chunks``: at most so many windows of each
    text, None for all. ``weights``: one for each text, or none at all; they multiply ``chunks``, and without it are the
    proportions of windows. ``seed``: windows that are not all are drawn with it, None for the first ones.
    `text_windows.windows_of` does all of this. ``together``: windows that calibration runs at a time, so that weights
    that come from a disk are read once for all of them. ``unfinished``: a file in which calibration may keep what it
    has done so far, and which the same calibration goes on from.
    """

    texts: tuple[Path, ...]
    ctx: int = 512
    chunks: int | None = None
    weights: tuple[float, ...] = ()
    seed: int | None = None
    together: int = 1
    unfinished: Path | None = None

    @property
    def drawn(self) -> int | None:
        """The seed when it decides anything: None when all windows are taken, or the first."""
        return self.seed if self.chunks is not None or len(set(self.weights)) > 1 else None

    @property
    def names(self) -> tuple[str, ...]:
        """What documents call the texts: file names, with their weights when they differ."""
        weights = self.weights if len(set(self.weights)) > 1 else (1.0,) * len(self.texts)
        return tuple(
            text.name if weight == 1 else f"{text.name}:{weight:g}"
            for text, weight in zip(self.texts, weights, strict=True)
        )


@dataclass(frozen=True)
class Decoding:
    """How text is generated: at most ``max_tokens``; ``temperature`` 0 is greedy, above 0 ``seed`` decides.
    ``ctx``: context in tokens, prompt and new tokens together."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    ctx: int = 2048


class Engine(ABC):
    """Runs models. Native code runs in a child process: its abort is a CollabError here.

    ``abilities``: the methods below that it has. ``reads``: formats of models that it runs, as
    `Checkpoint.format` names them. `runnable` checks both before any work: an engine is never asked for
    more than it declares. ``progress`` is told of tokens.
    """

    name: str
    abilities: ClassVar[frozenset[Ability]]
    reads: ClassVar[tuple[str, ...]] = ("gguf",)

    @abstractmethod
    def version(self) -> str:
        """Return name and version of the engine, as recorded in documents."""

    def check_installed(self) -> None:  # noqa: B027  # an engine that is part of its adapter has nothing to check
        """CollabError saying what to install when the engine cannot run here. Asked before a model is converted."""

    def calibrate(self, model: Path, windows: Windows, *, threads: int, progress: Advance) -> Stats:
        """Run ``windows`` through ``model``; ``model_id`` of the stats is left None."""
        raise CollabError(f"engine {self.name!r} cannot calibrate")

    def trace(self, model: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> Stats:
        """As `calibrate`, and write each token's choice of experts to ``out`` (stats/trace_file.py)."""
        raise CollabError(f"engine {self.name!r} cannot record a routing trace")

    def reference(self, original: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> None:
        """Write what ``evaluate`` needs of ``original`` to the file ``out``, to compare many models with it.

        ``out`` has the suffix `REFERENCE`. Logits in 16 bits: 2 bytes × half of the tokens × vocabulary.
        """
        raise CollabError(f"engine {self.name!r} cannot write a reference")

    def evaluate(self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance) -> Evaluation:
        """Compare ``model`` with ``original`` on ``windows``.

        ``original`` is a model, or what `reference` wrote of one on the same windows.
        """
        raise CollabError(f"engine {self.name!r} cannot compare models")

    def disturb(
        self,
        model: Path,
        disturbances: Sequence[Disturbance],
        shapes: Mapping[str, ErrorShape],
        windows: Windows,
        *,
        most: int | None = None,
        part: tuple[int, int] = (0, 1),
        threads: int,
        progress: Advance,
    ) -> Effects:
        """How far each disturbance moves the output of ``model`` on ``windows``, whose second halves are scored.

        ``most`` of the windows run (None: all), evenly spread over them, and of those, where ``part`` is (i, n), every
        nth from number i on: the parts of n calls are together what one call measures, number for number
        (`Effects.joined`). ``shapes`` by tensor name, of every tensor that ``disturbances`` names. The model is read,
        never written or copied; each token of a window is run once for each disturbance, and once for the undisturbed
        model. The same on every run. CollabError for a tensor whose
        product the model's graph does not show.
        """
        raise CollabError(f"engine {self.name!r} cannot disturb a running model")

    def sample(self, model: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> None:
        """Write to ``out`` what goes into and comes out of the routed experts of each layer (repair/samples.py).

        For each token of ``windows`` and layer 8 bytes × the stream's width.
        """
        raise CollabError(f"engine {self.name!r} cannot sample what experts compute")

    def generate(
        self, model: Path, prompt: str, decoding: Decoding, *, threads: int, write: Callable[[str], None]
    ) -> Generation:
        """Continue ``prompt``, passing each piece of text to ``write`` as it comes."""
        raise CollabError(f"engine {self.name!r} cannot generate text")

    def place(
        self,
        model: Path,
        prompt: str,
        decoding: Decoding,
        placement: Placement,
        *,
        threads: int,
        write: Callable[[str], None],
    ) -> Generation:
        """As `generate`, with experts in the memories that ``placement`` says. CollabError when it is for another
        model."""
        raise CollabError(f"engine {self.name!r} cannot place experts")

    def serve(
        self, model: Path, *, ctx: int | None, threads: int, start_limit: float = 3600.0
    ) -> AbstractContextManager[Served]:
        """Serve ``model`` while the context lasts; ``ctx`` None: the model's own context, at most 4096.

        CollabError when it is not up within ``start_limit`` seconds.
        """
        raise CollabError(f"engine {self.name!r} cannot serve a model")

    def measure(
        self, matrices: Sequence[ReadMatrix], *, model_bytes: int, threads: int
    ) -> tuple[tuple[DeviceSpeed, ...], float]:
        """How fast each device here multiplies one token with these matrices of a model of so many bytes, by their ggml
        types, and the seconds that one small operation of a graph takes on the processor."""
        raise CollabError(f"engine {self.name!r} cannot measure this machine")

    def honours(self, placement: Placement) -> tuple[str, ...]:
        """What the engine does with ``placement`` and what it cannot do, a sentence each; empty: it reads none."""
        return ()
