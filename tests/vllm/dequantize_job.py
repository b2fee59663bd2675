"""Dequantize random blocks with PyTorch and with gguf-py; print the largest difference by type, as JSON.

Runs in vLLM's environment. Any bytes are valid blocks, but scales must be finite: float16 with a clear top bit
of the exponent.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from collab_vllm.experts.ggml.dequantize import dequantize
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from collab_plugin.formats.ggml_types import TYPES

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q5_1": (0, 2)}


def blocks(kind: str, count: int = 512) -> np.ndarray:
    raw = np.random.default_rng(7).integers(0, 256, (count, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]), np.uint8)
    if kind == "IQ1_M":
        raw[:, 55] &= 0xBF  # the top four bits of the last word hold the exponent's top bit
    elif kind in ("F16", "BF16", "F32"):
        raw[:, -1] &= 0xBF
    else:
        for at in HALVES.get(kind, (0,)):
            raw[:, at + 1] &= 0xBF
    return raw


found = {}
for kind in TYPES:
    raw = blocks(kind).reshape(8, -1)
    expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    ours = dequantize(torch.from_numpy(raw), kind).numpy()
    assert ours.shape == expected.shape and np.isfinite(expected).all(), kind
    assert np.abs(expected).max() > 0.01, kind
    found[kind] = float(np.abs(ours - expected).max() / np.abs(expected).max())
print(json.dumps(found))
