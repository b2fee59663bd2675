"""Tiny checkpoints that transformers made, their logits there, and those of their GGUF in llama.cpp."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import TensorPlan
from small_models.family_cases import KEPT, USED, VOCABULARY
from small_models.hand_made_plans import pruned
from small_models.hf_folder import MODELS
from small_models.marked_tokenizer import write_marked_tokenizer
from small_models.tiktoken_model import RANKS, TOLD, with_ranks

TOKENS = [*range(3, 60), *[7, 200, 31, 90, 12] * 3]
JOB = Path(__file__).parents[1] / "checkpoint" / "families_job.py"
_LLAMA_CPP = """
import json, sys
import numpy as np
import llama_cpp
f32 = llama_cpp.GGML_TYPE_F32
tokens = json.load(sys.stdin)
for path in sys.argv[1:]:
    print("tried", path, flush=True)
    try:
        llama = llama_cpp.Llama(path, n_ctx=128, n_batch=128, logits_all=True, type_k=f32, type_v=f32, verbose=False,
                                n_threads=1)
    except ValueError as error:
        print(error, file=sys.stderr)
        continue
    llama.eval(tokens)
    np.save(path.removesuffix(".gguf") + ".npy", np.array(llama.scores[: len(tokens)]))
    llama.close()
"""


def _trained(folder: Path) -> list[Path]:
    return [MODELS / "tiny-qwen3moe" / name for name in ("tokenizer.json", "tokenizer_config.json")]


def _tiktoken(folder: Path) -> list[Path]:
    folder.mkdir()
    return sorted(with_ranks(folder, RANKS, TOLD).iterdir())


_TOKENIZERS: dict[str, Callable[[Path], list[Path]]] = {
    "qwen3": _trained,
    "marked": lambda folder: write_marked_tokenizer(folder, VOCABULARY),
    "tiktoken": _tiktoken,
}


def make_checkpoints(
    python: str,
    folder: Path,
    cases: Mapping[str, Mapping[str, Any]],
    converter: Path | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """``folder``/CASE/model, original.npy and pruned.npy of every case, by transformers in ``python``; converted.gguf
    by llama.cpp's ``converter`` where it is given; and defaults.json of transformers' config ``classes``."""
    asked = {case.get("tokenizer", "qwen3") for case in cases.values()}
    tokenizers = {name: list(map(str, _TOKENIZERS[name](folder / name))) for name in asked | {"qwen3"}}
    job = {
        "folder": str(folder), "cases": dict(cases), "tokens": TOKENS, "kept": KEPT, "used": USED,
        "vocabulary": VOCABULARY, "classes": list(classes), "converter": None if converter is None else str(converter),
        "tokenizers": tokenizers,
    }  # fmt: skip
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [python, str(JOB), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(JOB.parents[1]), "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def as_gguf(checkpoint: Checkpoint, out: Path, kept: Sequence[int] | None, *, wide: bool = False) -> Path:
    """The GGUF at the stored types, or all floats as F32 when ``wide``; of all experts or of those ``kept``, of which a
    token uses `USED`."""
    plan = copy_plan(checkpoint)
    if wide:
        floats = {name: info for name, info in checkpoint.tensors.items() if not is_hash_table(name)}
        tensors = {name: TensorPlan("F32", tensor_bytes("F32", info.shape), None) for name, info in floats.items()}
        plan = dataclasses.replace(plan, tensors=dict(plan.tensors) | tensors)
    if kept is not None:
        plan = pruned(checkpoint, plan, kept)
        metadata = dict(plan.metadata) | {f"{checkpoint.architecture}.expert_used_count": USED}
        activation = dataclasses.replace(plan.activation, used=USED)
        plan = dataclasses.replace(plan, metadata=metadata, activation=activation)
    plan = dataclasses.replace(plan, bytes=artifact_layout(checkpoint, plan).total)
    kernels = GgmlKernels() if wide else None
    compress(checkpoint, plan, None, out, kernels=kernels, threads=1, report=lambda done, total=None: None)
    return out


def llama_cpp_logits(*ggufs: Path) -> list[NDArray[np.float32] | None]:
    """float32[tokens, vocabulary] of `TOKENS` by each GGUF, with keys and values cached as float32; None for one that
    llama.cpp does not load or compute. One process for all, and another one where it dies."""
    outs = [gguf.with_suffix(".npy") for gguf in ggufs]
    left = list(ggufs)
    while left:
        done = subprocess.run(
            [sys.executable, "-c", _LLAMA_CPP, *map(str, left)],
            input=json.dumps(TOKENS),
            text=True,
            check=False,
            timeout=240,
            capture_output=True,
        )
        tried = [gguf for gguf in left if gguf.with_suffix(".npy").is_file() or f"tried {gguf}\n" in done.stdout]
        assert tried, done.stderr[-2000:]
        left = [] if done.returncode == 0 else [gguf for gguf in left if gguf not in tried]
    return [np.load(out) if out.is_file() else None for out in outs]


def nmse(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Squared error over the variance of ``expected``."""
    wanted = expected.astype(np.float64)
    return float(np.square(found - wanted).sum() / np.square(wanted - wanted.mean()).sum())
