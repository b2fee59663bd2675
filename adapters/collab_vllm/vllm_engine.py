"""vLLM as an engine: hands jobs to the child process and turns arrays into documents."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.engines.child_process import heard
from collab_plugin.engines.compare_logits import evaluation_of
from collab_plugin.engines.engine import REFERENCE, Ability, Decoding, Engine, Windows
from collab_plugin.engines.results import Evaluation, Generation
from collab_plugin.engines.text_windows import TextCut, text_cut
from collab_plugin.errors import CollabError
from collab_plugin.placement.placement import Placement
from collab_plugin.progress import Advance
from collab_plugin.stats.stats import Stats
from collab_vllm.jobs.vllm_child import run_job
from collab_vllm.jobs.vllm_job_types import (
    VllmCalibrateJob,
    VllmEvaluateJob,
    VllmGenerateJob,
    VllmReferenceJob,
)
from collab_vllm.live_stats.routed_stats import layers_of
from collab_vllm.vllm_python import vllm_python


class VllmEngine(Engine):
    """vLLM, here or in an environment of its own (vllm_python.py); importing this loads nothing of it.

    It reads folders of safetensors as they are. One model at a time is in memory: to compare two, the original's
    logits are written to a temporary file first.
    """

    name = "vllm"
    abilities: ClassVar[frozenset[Ability]] = frozenset({"calibrate", "reference", "evaluate", "generate"})
    reads: ClassVar[tuple[str, ...]] = ("safetensors",)

    def check_installed(self) -> None:
        vllm_python()

    def honours(self, placement: Placement) -> tuple[str, ...]:
        if placement.experts is None:
            return ()
        moves = "go on moving" if placement.experts.policy.dynamic else "stay where they are"
        return (
            f"single experts (`experts`), by its load format collab: the first tier is the device, and experts {moves}",
            "all other tiers are host memory, a disk too: every expert is read at the start",
        )

    def version(self) -> str:
        ask = [vllm_python(), "-c", "from importlib.metadata import version; print(version('vllm'))"]
        return f"vLLM {subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()}"

    def calibrate(self, model: Path, windows: Windows, *, threads: int, progress: Advance) -> Stats:
        """Routing alone: neither the importance matrix nor REAP's sums are measured."""
        checkpoint = open_safetensors(model)
        unfinished = "" if windows.unfinished is None else str(windows.unfinished.resolve())
        job = VllmCalibrateJob(str(checkpoint.path.resolve()), threads, _cut(checkpoint, windows), unfinished)
        arrays = run_job(job, "calibrate", heard(progress))
        return Stats(
            routing=layers_of(arrays),
            imatrix={},
            tokens=int(arrays["tokens"]),
            chunk_size=windows.ctx,
            datasets=windows.names,
            engine=self.version(),
            text_sketch=arrays["sketch"].astype(np.uint64),
        )

    def reference(self, original: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> None:
        if out.suffix != REFERENCE:
            raise ValueError(f"a reference is a {REFERENCE} file, not {out}")
        checkpoint = open_safetensors(original)
        model, cut = str(checkpoint.path.resolve()), _cut(checkpoint, windows)
        run_job(VllmReferenceJob(model, threads, cut, str(out.resolve())), "run", heard(progress))

    def evaluate(self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance) -> Evaluation:
        checkpoint = open_safetensors(model)
        with tempfile.TemporaryDirectory(prefix="collab-reference-") as folder:
            reference, first = original, 0.0
            if original.suffix != REFERENCE:
                reference, first = Path(folder) / f"original{REFERENCE}", 0.5
                told = _part(progress, 0.0, 0.5)
                self.reference(original, windows, out=reference, threads=threads, progress=told)
            job = VllmEvaluateJob(
                str(checkpoint.path.resolve()), threads, _cut(checkpoint, windows), str(reference.resolve())
            )
            arrays = run_job(job, "evaluate", heard(_part(progress, first, 1.0)))
        return evaluation_of(arrays, windows.ctx)

    def generate(
        self, model: Path, prompt: str, decoding: Decoding, *, threads: int, write: Callable[[str], None]
    ) -> Generation:
        checkpoint = open_safetensors(model)
        pieces: list[str] = []

        def on_line(line: dict[str, Any]) -> None:
            pieces.append(line["text"])
            write(line["text"])

        job = VllmGenerateJob(
            str(checkpoint.path.resolve()), threads, prompt, decoding.max_tokens, decoding.temperature, decoding.seed,
            min(decoding.ctx, _longest(checkpoint)), _bos(checkpoint),
        )  # fmt: skip
        prompt_tokens, made, prompt_seconds, seconds = run_job(job, "run", on_line)["figures"]
        return Generation(
            text="".join(pieces),
            prompt_tokens=int(prompt_tokens),
            tokens=int(made),
            prompt_tokens_per_second=float(prompt_tokens / max(prompt_seconds, 1e-9)),
            tokens_per_second=float(max(made - 1, 0) / max(seconds, 1e-9)),
        )


def _cut(checkpoint: Checkpoint, windows: Windows) -> TextCut:
    """How texts are cut; CollabError when a window and the token that vLLM makes after it do not fit."""
    longest = _longest(checkpoint)
    if windows.ctx >= longest:
        raise CollabError(f"vLLM needs a context of {windows.ctx} + 1 tokens, the model has {longest}; lower `ctx`")
    return text_cut(windows, checkpoint.metadata)


def _longest(checkpoint: Checkpoint) -> int:
    """The model's own context in tokens."""
    return int(checkpoint.metadata[f"{checkpoint.architecture}.context_length"].value)


def _bos(checkpoint: Checkpoint) -> int | None:
    """The token that begins each window, None where the vocabulary adds none."""
    keys = checkpoint.metadata
    adds = keys.get("tokenizer.ggml.add_bos_token")
    token = keys.get("tokenizer.ggml.bos_token_id")
    return int(token.value) if adds is not None and adds.value and token is not None else None


def _part(progress: Advance, first: float, last: float) -> Advance:
    """Progress of a run that is the part ``first`` to ``last`` of the whole."""

    def advance(done: float, total: float | None = None) -> None:
        if total:
            whole = total / (last - first)
            progress(first * whole + done, whole)

    return advance
