"""What the adapter registers with collab-plugin. Importing this must stay cheap: vLLM is loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin import hookimpl

if TYPE_CHECKING:
    from collab_plugin import Engine, TargetProvider


@hookimpl
def collab_register_engines(register: Callable[[Engine], None]) -> None:
    from collab_vllm.vllm_engine import VllmEngine

    register(VllmEngine())


@hookimpl
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    from collab_vllm.targets.vllm_targets import VllmTargets

    register(VllmTargets())
