"""An artifact on a target: loaded when first asked for, what it computed kept for the next check."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from collab_conformance.pack.pack_document import Pack, Prompt, Recording
from collab_conformance.run.job import Job, Subject
from collab_plugin.engines.target import (
    F32,
    LoadOptions,
    LogProbabilities,
    NotOfferedError,
    Routing,
    Session,
    Target,
)

T = TypeVar("T")
CTX = 1024
SHORT_TOKENS = 256
"""The short form leaves longer prompts out."""


class Running:
    """``pack`` is what the artifact is held to. ``prompts``: the pack's, in the short form those of at most
    `SHORT_TOKENS`."""

    def __init__(self, target: Target, subject: Subject, pack: Pack, job: Job) -> None:
        self.subject, self.pack, self.short, self.threads = subject, pack, job.short, job.threads
        pairs = tuple(zip(pack.document.prompts, pack.recordings, strict=True))
        self.prompts: tuple[tuple[Prompt, Recording], ...] = (
            tuple(pair for pair in pairs if len(pair[0].tokens) <= SHORT_TOKENS) if job.short else pairs
        )
        self._target, self._placement = target, None if job.placement is None else Path(job.placement)
        self._kept: dict[object, object] = {}
        self._loaded: tuple[LoadOptions, AbstractContextManager[Session], Session] | None = None

    @property
    def ctx(self) -> int:
        """Context that holds every prompt and its continuation, at least `CTX`."""
        return max([CTX] + [len(p.tokens) + p.greedy_steps for p in self.pack.document.prompts])

    def session(self, *, ctx: int | None = None, kv_type: str = "f32") -> Session:
        """The artifact loaded with these options; the one before is closed, as two may not fit."""
        if self._placement is not None and not self._target.places:
            raise NotOfferedError("this target takes no placement")
        options = LoadOptions(ctx or self.ctx, kv_type, self.threads, self._placement)
        if self._loaded is None or self._loaded[0] != options:
            self.close()
            manager = self._target.load(Path(self.subject.artifact), options)
            self._loaded = options, manager, manager.__enter__()
        return self._loaded[2]

    def close(self) -> None:
        """Unload the artifact."""
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            loaded[1].__exit__(None, None, None)

    def kept(self, key: object, make: Callable[[], T]) -> T:
        """``make``'s result, or what it raised, made once for ``key``: checks share what they measure."""
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except Exception as error:
                self._kept[key] = error
        found = self._kept[key]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[return-value]  # the key decides the type

    def logits(self, prompt: Prompt) -> F32:
        """Logits f32[positions, vocabulary] at the prompt's positions, all tokens at once."""
        return self.kept(("logits", prompt.name), lambda: self.logits_of(self.session(), prompt))

    def logits_of(self, session: Session, prompt: Prompt, batch: int | None = None) -> F32:
        """Logits at the prompt's positions; ValueError for another shape than positions by vocabulary."""
        found = session.logits_at(prompt.tokens, prompt.positions, batch=batch)
        expected = len(prompt.positions), self.pack.document.artifact.vocabulary
        if found.shape != expected:
            raise ValueError(f"the engine gave logits of shape {found.shape}, not {expected}")
        return found

    def top(self, prompt: Prompt, n: int) -> LogProbabilities:
        """The ``n`` most probable tokens after each of the prompt's."""
        return self.kept(("top", prompt.name, n), lambda: self.session().top(prompt.tokens, n))

    def routing(self, prompt: Prompt) -> tuple[Routing, ...]:
        """Experts chosen for the prompt's tokens."""
        return self.kept(("routing", prompt.name), lambda: self.session().routing(prompt.tokens))
