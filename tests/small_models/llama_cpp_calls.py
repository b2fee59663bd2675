"""What llama.cpp itself makes of a model: its quantizer and its logits, to compare ours with.

llama_cpp is imported in the functions: test files are read without it, too, to leave out tests that need it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.stats.stats import Stats


def llama_quantize(
    source: Path, out: Path, type_name: str, ftype: LlamaFileType, checkpoint: Checkpoint, stats: Stats | None
) -> None:
    """`llama_model_quantize` with every quantizable tensor at ``type_name`` ("" leaves it to ftype)."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 2
    params.ftype = int(ftype)
    keep: list[Any] = []
    if stats is not None:
        data = (llama_cpp.llama_model_imatrix_data * (len(stats.imatrix) + 1))()
        for item, (name, _) in zip(data, stats.imatrix.items(), strict=False):
            info = checkpoint.tensors[name]
            slices = info.shape[0] if len(info.shape) == 3 else 1
            vectors = [stats.imatrix[name].vector(i, info.shape[-1]) for i in range(slices)]
            flat = np.ascontiguousarray(np.concatenate(vectors), np.float32)
            keep.append(flat)
            item.name, item.size = name.encode(), flat.size
            item.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    if type_name:
        number = GGMLQuantizationType[type_name].value
        overrides = (llama_cpp.llama_model_tensor_override * 2)()
        overrides[0].pattern, overrides[0].type = b".*", number
        params.tt_overrides = overrides
        params.output_tensor_type = params.token_embedding_type = number
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError("llama_model_quantize failed")


def logits(path: Path, text: str = "the quick brown fox jumps over a dog") -> NDArray[np.float32]:
    """Logits f32[tokens, vocabulary] of a text in plain llama_cpp.Llama."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False, n_threads=1, n_gpu_layers=0
    )
    try:
        tokens = model.tokenize(text.encode(), add_bos=False)
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)])
    finally:
        model.close()
