"""What runs benchmark tasks on a served model. How to write one: docs/plugins.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from collab_plugin.engines.results import Served
from collab_plugin.evaluation.scores import TaskRun
from collab_plugin.progress import Advance


class LoadedTasks(ABC):
    """Tasks with their documents, for one model after another. ``tasks``: how many, members of groups counted."""

    tasks: int

    @abstractmethod
    def run(self, served: Served, progress: Advance) -> TaskRun:
        """Run the tasks on ``served``, the same documents and examples for every model; ``progress`` gets (requests
        answered, requests known so far). CollabError when the model cannot answer."""


class TaskRunner(ABC):
    """A program that knows benchmark tasks by name."""

    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str:
        """Name and version, which decide what scores mean; CollabError saying what to install when it is not there."""

    @abstractmethod
    def load(
        self, names: Sequence[str], *, limit: int | None, folder: Path | None
    ) -> AbstractContextManager[LoadedTasks]:
        """Load tasks or groups, from ``folder`` too, with at most ``limit`` documents each.

        Raises CollabError for unknown tasks and for data that cannot be had.
        """
