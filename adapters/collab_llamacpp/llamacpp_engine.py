"""The engine: hands jobs to the child process and turns arrays into documents."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.calibrate.job_types import (
    CalibrateJob,
    DisturbJob,
    EvaluateJob,
    GenerateJob,
    MeasureJob,
    ReferenceJob,
    SampleJob,
)
from collab_llamacpp.calibrate.llamacpp_child import run_job
from collab_llamacpp.native.libraries import installed_folder
from collab_llamacpp.pages_policy import pages_policy
from collab_llamacpp.tensor_places import TensorPlaces, honours, tensor_places
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.engines.child_process import heard
from collab_plugin.engines.compare_logits import evaluation_of
from collab_plugin.engines.disturbance import Disturbance, Effect, Effects, ErrorShape
from collab_plugin.engines.engine import REFERENCE, Ability, Decoding, Engine, Windows
from collab_plugin.engines.results import Evaluation, Generation, Served
from collab_plugin.engines.text_windows import text_cut
from collab_plugin.placement.machine_profile import DeviceSpeed, ReadMatrix
from collab_plugin.placement.placement import Placement
from collab_plugin.progress import Advance
from collab_plugin.stats.routing_trace import RoutingTrace
from collab_plugin.stats.stats import ImatrixEntry, InputRounding, LayerRouting, Stats, Stream
from collab_plugin.stats.trace_file import write_trace

# A served model's context unless told: longer ones cost memory that few tasks need.
MOST_CTX = 4096


class LlamaCppEngine(Engine):
    """llama.cpp as installed by llama-cpp-python; importing this loads nothing native."""

    name = "llamacpp"
    abilities: ClassVar[frozenset[Ability]] = frozenset(
        {"calibrate", "trace", "reference", "evaluate", "disturb", "sample", "generate", "serve", "measure", "place"}
    )

    def check_installed(self) -> None:
        installed_folder()

    def version(self) -> str:
        return f"llama-cpp-python {version('llama-cpp-python')}"

    def calibrate(self, model: Path, windows: Windows, *, threads: int, progress: Advance) -> Stats:
        return self._calibrate(model, windows, None, threads, progress)

    def trace(self, model: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> Stats:
        return self._calibrate(model, windows, out, threads, progress)

    def _calibrate(self, model: Path, windows: Windows, trace: Path | None, threads: int, progress: Advance) -> Stats:
        checkpoint = open_gguf(model)
        topology = topology_of(checkpoint)
        model_path = str(checkpoint.path)
        cut = text_cut(windows, checkpoint.metadata)
        job = CalibrateJob(
            model_path,
            threads,
            cut,
            topology.expert_count,
            topology.architecture,
            together=windows.together,
            trace=trace is not None,
            unfinished=str(windows.unfinished or ""),
        )
        arrays = run_job(job, f"calibrate {model_path}", heard(progress))
        routing = {
            layer: LayerRouting(
                int(arrays[f"layer_tokens.{layer}"]),
                arrays[f"count.{layer}"].astype(np.int64),
                arrays[f"weights.{layer}"],
                arrays[f"reap.{layer}"],
            )
            for layer in topology.moe_layers
            if f"count.{layer}" in arrays
        }
        if trace is not None:
            write_trace(trace, trace_of(arrays, topology.expert_count, windows, model_id(checkpoint)))
        names = [key.removeprefix("sums.") for key in arrays if key.startswith("sums.")]
        return Stats(
            routing=routing,
            imatrix={n: ImatrixEntry(arrays[f"sums.{n}"], arrays[f"seen.{n}"]) for n in names},
            tokens=int(arrays["tokens"]),
            chunk_size=windows.ctx,
            datasets=windows.names,
            engine=self.version(),
            text_sketch=arrays["sketch"].astype(np.uint64),
            streams={
                layer: Stream(*(float(arrays[f"stream.{node}.{layer}"]) for node in ("ffn_inp", "l_out")))
                for layer in range(topology.block_count)
                if {f"stream.{node}.{layer}" for node in ("ffn_inp", "l_out")} <= arrays.keys()
            },
            rounding={n: InputRounding(*(arrays[f"rounding.{n}"][:2] / arrays[f"rounding.{n}"][2])) for n in names},
            shared_gates={n: float(arrays[f"gate.{n}"]) for n in topology.moe_layers if f"gate.{n}" in arrays},
        )

    def reference(self, original: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> None:
        if out.suffix != REFERENCE:
            raise ValueError(f"a reference is a {REFERENCE} file, not {out}")
        checkpoint = open_gguf(original)
        path = str(checkpoint.path)
        run_job(
            ReferenceJob(path, threads, text_cut(windows, checkpoint.metadata), str(out)),
            f"run {path}",
            heard(progress),
        )

    def evaluate(self, model: Path, original: Path, windows: Windows, *, threads: int, progress: Advance) -> Evaluation:
        checkpoint = open_gguf(model)
        reference = original if original.suffix == REFERENCE else open_gguf(original).path
        ngrams = checkpoint.metadata.get("collab.calibration.ngrams")
        job = EvaluateJob(
            str(checkpoint.path),
            threads,
            text_cut(windows, checkpoint.metadata),
            str(reference),
            str(ngrams.value) if ngrams else "",
        )
        return evaluation_of(run_job(job, f"evaluate {checkpoint.path}", heard(progress)), windows.ctx)

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
        checkpoint = open_gguf(model)
        with tempfile.TemporaryDirectory(prefix="collab-") as folder:
            file = Path(folder) / "shapes.npz"
            needed = sorted({name for disturbance in disturbances for name in disturbance.tensors})
            arrays = {f"energy.{name}": shapes[name].energy for name in needed}
            arrays |= {f"inputs.{name}": shapes[name].inputs for name in needed}
            arrays |= {f"plain.{name}": shapes[name].plain for name in needed}
            np.savez(file, **arrays)  # type: ignore[arg-type]  # keyword arrays, as documented
            job = DisturbJob(
                str(checkpoint.path),
                threads,
                text_cut(windows, checkpoint.metadata),
                most,
                part,
                tuple(disturbances),
                str(file),
                checkpoint.tensors["token_embd.weight"].shape[0],
                topology_of(checkpoint).gating == "softmax-after-top-k",
            )
            found = run_job(job, f"run {checkpoint.path}", heard(progress))
        each = tuple(
            Effect(tuple((float(kld), float(square), int(tokens)) for kld, square, tokens in sums))
            for sums in found["sums"]
        )
        return Effects(each, *(int(found[name]) for name in ("windows", "scored", "tokens_run")))

    def sample(self, model: Path, windows: Windows, *, out: Path, threads: int, progress: Advance) -> None:
        checkpoint = open_gguf(model)
        topology, path = topology_of(checkpoint), str(checkpoint.path)
        job = SampleJob(
            path,
            threads,
            text_cut(windows, checkpoint.metadata),
            topology.moe_layers,
            topology.embedding_length,
            str(out),
            model_id(checkpoint),
            self.version(),
        )
        run_job(job, f"sample {path}", heard(progress))

    def generate(
        self, model: Path, prompt: str, decoding: Decoding, *, threads: int, write: Callable[[str], None]
    ) -> Generation:
        return self._generate(model, prompt, decoding, None, threads, write)

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
        return self._generate(model, prompt, decoding, placement, threads, write)

    def _generate(
        self,
        model: Path,
        prompt: str,
        decoding: Decoding,
        placement: Placement | None,
        threads: int,
        write: Callable[[str], None],
    ) -> Generation:
        checkpoint = open_gguf(model)
        path = str(checkpoint.path)
        places = TensorPlaces() if placement is None else tensor_places(placement, model)
        job = GenerateJob(
            path,
            threads,
            prompt,
            **dataclasses.asdict(decoding),
            on_processor=places.on_processor,
            on_gpu=places.on_gpu,
            pages=pages_policy(checkpoint, placement),
        )
        pieces: list[str] = []

        def on_line(line: dict[str, Any]) -> None:
            pieces.append(line["text"])
            write(line["text"])

        prompt_tokens, made, prompt_seconds, seconds = run_job(job, f"run {path}", on_line)["figures"]
        return Generation(
            text="".join(pieces),
            prompt_tokens=int(prompt_tokens),
            tokens=int(made),
            prompt_tokens_per_second=float(prompt_tokens / max(prompt_seconds, 1e-9)),
            tokens_per_second=float(made / max(seconds, 1e-9)),
        )

    def serve(
        self, model: Path, *, ctx: int | None, threads: int, start_limit: float = 3600.0
    ) -> AbstractContextManager[Served]:
        from collab_llamacpp.serve.serving import serve

        checkpoint = open_gguf(model)
        own = checkpoint.metadata.get(f"{checkpoint.architecture}.context_length")
        ctx = ctx or min(MOST_CTX, int(own.value) if own else MOST_CTX)
        return serve(checkpoint.path, ctx=ctx, threads=threads, start_limit=start_limit)

    def measure(
        self, matrices: Sequence[ReadMatrix], *, model_bytes: int, threads: int
    ) -> tuple[tuple[DeviceSpeed, ...], float]:
        job = MeasureJob(tuple(matrices), model_bytes, threads)
        arrays = run_job(job, "measure this machine", lambda _: None)
        devices = []
        for key, told in arrays.items():
            if not key.startswith("device."):
                continue
            name, kind = told.tolist()
            speeds = f"speed.{key.removeprefix('device.')}."
            kernels = {k.removeprefix(speeds): float(v) for k, v in arrays.items() if k.startswith(speeds)}
            devices.append(DeviceSpeed(name, "host" if kind == "host" else "gpu", kind != "gpu", kernels))
        return tuple(devices), float(arrays["node_seconds"])

    def honours(self, placement: Placement) -> tuple[str, ...]:
        return honours(placement)


def trace_of(arrays: Mapping[str, NDArray[Any]], experts: int, windows: Windows, model: str) -> RoutingTrace:
    """What a CalibrateJob kept of each layer; every window is a sequence."""
    layers = sorted(int(key.removeprefix("chosen.")) for key in arrays if key.startswith("chosen."))
    chosen = np.stack([arrays[f"chosen.{layer}"] for layer in layers], axis=1)
    starts = tuple(range(0, len(chosen), windows.ctx))
    label = windows.names[0] if len(windows.names) == 1 else ""
    return RoutingTrace(chosen, tuple(layers), experts, starts, (label,) * len(starts), model)
