"""What the adapter registers. Importing this must stay cheap: it is done for every `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin import hookimpl

if TYPE_CHECKING:
    from collab_plugin import TaskRunner


@hookimpl
def collab_register_task_runners(register: Callable[[TaskRunner], None]) -> None:
    from collab_lm_eval.lm_eval_runner import LmEvalRunner

    register(LmEvalRunner())
