"""Which checkpoint is this, and is it the same model as that one?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from weakref import WeakKeyDictionary

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.prediction_layers import prediction_layers
from collab_plugin.formats.tensor_names import Role

_SAMPLE_ROWS = 2
_AT_ONCE = 8  # each waits for an answer where the files are far away


def _once(identify: Callable[[Checkpoint], str]) -> Callable[[Checkpoint], str]:
    """``identify``, asked once of each checkpoint: models do not change, and routers have hundreds of megabytes."""
    known: WeakKeyDictionary[Checkpoint, str] = WeakKeyDictionary()

    @wraps(identify)
    def found(checkpoint: Checkpoint) -> str:
        if checkpoint not in known:
            known[checkpoint] = identify(checkpoint)
        return known[checkpoint]

    return found


@_once
def fingerprint(checkpoint: Checkpoint) -> str:
    """Return "sha256:..." over names, shapes, types, integer metadata and sampled rows of every tensor.

    The first rows of the first and last slice of each tensor are hashed, so a terabyte costs a few
    megabytes of reading; a change elsewhere in a tensor is not noticed.
    """
    digest = hashlib.sha256()
    for key, meta in sorted(checkpoint.metadata.items()):
        # The name is the folder's or whatever somebody chose: the same checkpoint under another name is the same.
        if not key.startswith("tokenizer.") and key != "general.name":
            digest.update(f"{key}={meta.value!r}\n".encode())

    def sample(info: TensorInfo) -> bytes:
        head = f"{info.name}{info.shape}{info.type.name}\n".encode()
        if len(info.shape) == 1:
            return head + np.ascontiguousarray(checkpoint.read_raw(info.name)).tobytes()[:4096]
        slices = {0, info.shape[0] - 1} if len(info.shape) == 3 else {None}
        rows = (checkpoint.read_raw(info.name, expert=e, rows=slice(0, _SAMPLE_ROWS)) for e in slices)
        return head + b"".join(np.ascontiguousarray(part).tobytes() for part in rows)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for part in pool.map(sample, checkpoint.tensors.values()):
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"


@_once
def model_id(checkpoint: Checkpoint) -> str:
    """Return "sha256:..." over the float32 router weights of every layer but those for prediction.

    Routers are never quantized (llama-quant.cpp:300), so a Hugging Face folder, the GGUF made from it
    and every quantized copy share this id: statistics calibrated on one serve all. Prediction layers are
    left out of some of them.
    """
    predicting = prediction_layers(checkpoint)
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        if info.role == Role.ROUTER and info.layer not in predicting:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(checkpoint.read(name), np.float32).tobytes())
    return f"sha256:{digest.hexdigest()}"
