"""Time vLLM's unquantized experts and ours at types of ggml in one process; a child of kernels.py beside it.

kernels_child.py TYPES TOKENS ROUNDS, lists with commas: runs in vLLM's environment, with -P, on one core. Prints a JSON
line: tokens -> way -> milliseconds of the thread's own time for a layer, of each round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import vllm._custom_ops as vllm_ops
from collab_vllm.experts.host.expert_graph import ExpertShape
from collab_vllm.experts.host.ggml_cpu import ggml_cpu
from collab_vllm.experts.host.host_kernel import HostKernel
from collab_vllm.experts.host.huge_pages import host_bytes
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

EXPERTS, WIDE, NARROW, USED, LAYERS, CALLS = 64, 768, 512, 8, 3, 6
WHOLE = "unquantized"
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q5_1": (0, 2)}
"""Where a block has float16 scales; elsewhere at its start."""
Way = Callable[[Tensor, Tensor, Tensor], object]


def blocks(kind: str, rows: int, columns: int) -> Tensor:
    """Noise with scales of one order of magnitude, uint8[EXPERTS, rows, bytes a row]."""
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = np.random.default_rng(rows).integers(0, 256, (EXPERTS, rows, columns // size, nbytes), np.uint8)
    if kind == "IQ1_M":
        raw[..., 55] = raw[..., 55] & 0x8F | 0x20
    for at in () if kind == "IQ1_M" else _SCALES.get(kind, (0,)):
        raw[..., at + 1] = raw[..., at + 1] & 0x83 | 0x20
    stored = host_bytes((EXPERTS, rows, columns // size * nbytes))
    stored.copy_(torch.from_numpy(raw.reshape(EXPERTS, rows, -1)))
    return stored


def ours(kind: str) -> Way:
    ggml = ggml_cpu()
    assert ggml is not None, "COLLAB_GGML names no libraries"
    matrices = [blocks(kind, *shape) for shape in ((NARROW, WIDE), (NARROW, WIDE), (WIDE, NARROW))]
    return HostKernel(ggml, ExpertShape(EXPERTS, WIDE, NARROW, (kind, kind, kind)), matrices).compute


def whole(isa: str) -> Way:
    up = vllm_ops.cpu_prepack_moe_weight((torch.randn(EXPERTS, 2 * NARROW, WIDE) / 20).bfloat16(), isa)
    down = vllm_ops.cpu_prepack_moe_weight((torch.randn(EXPERTS, WIDE, NARROW) / 20).bfloat16(), isa)

    def compute(x: Tensor, weights: Tensor, ids: Tensor) -> None:
        vllm_ops.cpu_fused_moe(torch.empty_like(x), x, up, down, None, None, weights, ids, "silu", isa)

    return compute


def main(kinds: list[str], numbers: list[int], rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    # Layers in turn, each with weights of its own, so that no cache holds what is read.
    ways = {WHOLE: [whole(isa) for _ in range(LAYERS)]}
    ways |= {kind: [ours(kind) for _ in range(LAYERS)] for kind in kinds}
    found: dict[int, dict[str, list[float]]] = {}
    for tokens in numbers:
        x = torch.randn(tokens, WIDE).bfloat16()
        batches = [chosen(tokens) for _ in range(8 * LAYERS)]
        found[tokens] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, layers in ways.items():
                begun = time.thread_time()
                for call in range(CALLS):
                    at = number * CALLS + call
                    layers[at % LAYERS](x, *batches[at % len(batches)])
                if number:  # the first measures, and touches memory
                    found[tokens][name].append(1e3 * (time.thread_time() - begun) / CALLS)
    print("MEASURED " + json.dumps({"isa": isa, "times": found}), flush=True)


def chosen(tokens: int) -> tuple[Any, Any]:
    """Weights and ids [tokens, USED]."""
    ids = torch.stack([torch.randperm(EXPERTS)[:USED] for _ in range(tokens)]).to(torch.int32)
    return torch.rand(tokens, USED), ids


if __name__ == "__main__":
    main(sys.argv[1].split(","), [int(number) for number in sys.argv[2].split(",")], int(sys.argv[3]))
