"""vLLM as an engine of `calibrate`: hands a job to the child process and turns arrays into stats."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.engines.engine import Ability, Engine, Windows
from collab_plugin.errors import CollabError
from collab_plugin.formats.text_file import read_text
from collab_plugin.progress import Advance
from collab_plugin.stats.stats import LayerRouting, Stats
from collab_vllm.calibrate.vllm_child import run_job, vllm_python


class VllmEngine(Engine):
    """vLLM, here or in the environment that ``COLLAB_VLLM`` names; importing this loads nothing of it."""

    name = "vllm"
    abilities: ClassVar[frozenset[Ability]] = frozenset({"calibrate"})
    reads: ClassVar[tuple[str, ...]] = ("safetensors",)

    def version(self) -> str:
        ask = [vllm_python(), "-c", "from importlib.metadata import version; print(version('vllm'))"]
        return f"vLLM {subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()}"

    def calibrate(self, model: Path, windows: Windows, *, threads: int, progress: Advance) -> Stats:
        """Routing alone: neither the importance matrix nor REAP's sums are measured."""
        checkpoint = open_safetensors(model)
        longest = int(checkpoint.metadata[f"{checkpoint.architecture}.context_length"].value)
        if windows.ctx >= longest:
            raise CollabError(f"vLLM needs a context of {windows.ctx} + 1 tokens, the model has {longest}; lower `ctx`")
        job = {
            "do": "calibrate",
            "model": str(model.resolve()),
            "texts": [{"name": text.name, "content": read_text(text)} for text in windows.texts],
            "ctx": windows.ctx,
            "chunks": windows.chunks,
            "threads": threads,
            "bos": _bos(checkpoint),
        }
        arrays = run_job(job, progress)
        layers = sorted(int(key.removeprefix("count.")) for key in arrays if key.startswith("count."))
        return Stats(
            routing={
                layer: LayerRouting(
                    int(arrays[f"layer_tokens.{layer}"]), arrays[f"count.{layer}"], arrays[f"weights.{layer}"]
                )
                for layer in layers
            },
            imatrix={},
            tokens=int(arrays["tokens"]),
            chunk_size=windows.ctx,
            datasets=tuple(text.name for text in windows.texts),
            engine=self.version(),
            text_sketch=arrays["sketch"].astype(np.uint64),
        )


def _bos(checkpoint: Checkpoint) -> int | None:
    """The token that begins each window, None where the vocabulary adds none."""
    keys = checkpoint.metadata
    adds = keys.get("tokenizer.ggml.add_bos_token")
    token = keys.get("tokenizer.ggml.bos_token_id")
    return int(token.value) if adds is not None and adds.value and token is not None else None
