"""vLLM's engine in this process, as all jobs want it."""

from __future__ import annotations

from typing import Any

from collab_plugin.errors import CollabError
from collab_vllm.import_vllm import import_vllm


def start_vllm(model: str, *, ctx: int, stats: bool = False, **options: Any) -> Any:
    """Return a `vllm.LLM` of the folder ``model`` with room for ``ctx`` tokens, in float32 on processors.

    With ``stats`` its routers are counted, which our load format does. CollabError when vLLM refuses the model.
    """
    vllm = import_vllm()
    from vllm.platforms import current_platform

    from collab_vllm.load.latent_attention import around_latent_attention

    if stats:
        import collab_vllm

        collab_vllm.register()
        options |= {"load_format": "collab", "model_loader_extra_config": {"stats": True}}
    try:
        return vllm.LLM(
            model,
            dtype="float32" if current_platform.is_cpu() else "auto",
            enforce_eager=True,
            enable_prefix_caching=False,  # what is cached is not run again: neither routed nor scored
            max_model_len=ctx,
            **around_latent_attention(model),
            **options,
        )
    except (ValueError, NotImplementedError) as error:  # how vLLM says that it has no code or no room for a model
        raise CollabError(f"vLLM cannot run {model}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The line that says it; pydantic, which checks vLLM's configuration, puts others around."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = [line.removeprefix("Value error, ") for line in lines if line.startswith("Value error, ")]
    return (said or lines)[0][:300]
