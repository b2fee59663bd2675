"""What an engine can do for the core: calibrate, evaluate, generate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from collab_plugin.engines.results import Evaluation, Generation, Served
from collab_plugin.errors import CollabError
from collab_plugin.stats.stats import Stats

ReportProgress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""

REFERENCE = ".npy"
"""Suffix of the files that `Engine.reference` writes."""


class Engine(ABC):
    """Runs models. Native code runs in a child process: its abort is a CollabError here.

    ``reads``: formats of models that it runs, as `Checkpoint.format` names them; all get a GGUF where that
    is among them. An engine need not have every method: one that it lacks is a CollabError.
    """

    name: str
    reads: tuple[str, ...] = ("gguf",)

    @abstractmethod
    def version(self) -> str:
        """Return name and version of the engine, as recorded in documents."""

    def calibrate(
        self,
        model: Path,
        texts: Sequence[Path],
        *,
        ctx: int,
        chunks: int | None,
        threads: int,
        progress: ReportProgress,
    ) -> Stats:
        """Run ``texts`` through ``model`` in windows of ``ctx`` tokens; ``model_id`` is left None.

        ``chunks``: at most so many windows of each text, None for all.
        """
        raise CollabError(f"engine {self.name!r} cannot calibrate on text")

    def reference(
        self,
        original: Path,
        texts: Sequence[Path],
        *,
        out: Path,
        ctx: int,
        chunks: int | None,
        threads: int,
        progress: ReportProgress,
    ) -> None:
        """Write what ``evaluate`` needs of ``original`` to the file ``out``, to compare many models with it.

        Logits as float32: 4 bytes × half of the tokens × vocabulary.
        """
        raise CollabError(f"engine {self.name!r} cannot compare models")

    def evaluate(
        self,
        model: Path,
        original: Path,
        texts: Sequence[Path],
        *,
        ctx: int,
        chunks: int | None,
        threads: int,
        progress: ReportProgress,
    ) -> Evaluation:
        """Compare ``model`` with ``original`` on ``texts``; ``chunks`` as in calibrate.

        ``original`` is a model, or what `reference` wrote of one on the same texts, ctx and chunks.
        """
        raise CollabError(f"engine {self.name!r} cannot compare models")

    def generate(
        self,
        model: Path,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        ctx: int,
        threads: int,
        write: Callable[[str], None],
    ) -> Generation:
        """Continue ``prompt``, passing each piece of text to ``write`` as it comes."""
        raise CollabError(f"engine {self.name!r} cannot generate text")

    def serve(
        self, model: Path, *, ctx: int | None, threads: int, start_limit: float = 3600.0
    ) -> AbstractContextManager[Served]:
        """Serve ``model`` while the context lasts; ``ctx`` None: the model's own context, at most 4096.

        CollabError when it is not up within ``start_limit`` seconds. An engine need not have this.
        """
        raise CollabError(f"engine {self.name!r} cannot serve a model")
