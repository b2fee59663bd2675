"""What the adapter registers. Importing this must stay cheap: llama_cpp is loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collab_plugin import hookimpl

if TYPE_CHECKING:
    from collab_plugin import Engine, Kernels, TargetProvider


@hookimpl
def collab_register_kernels(register: Callable[[Kernels], None]) -> None:
    from collab_llamacpp.native.ggml_kernels import GgmlKernels

    register(GgmlKernels())


@hookimpl
def collab_register_engines(register: Callable[[Engine], None]) -> None:
    from collab_llamacpp.llamacpp_engine import LlamaCppEngine

    register(LlamaCppEngine())


@hookimpl
def collab_register_targets(register: Callable[[TargetProvider], None]) -> None:
    from collab_llamacpp.targets.llamacpp_targets import LlamaCppTargets

    register(LlamaCppTargets())
