"""Random blocks, dequantized with PyTorch and computed with ggml's kernels, beside gguf-py; prints JSON.

Runs in vLLM's environment. Any bytes are valid blocks, but scales must be finite: float16 with a clear top bit
of the exponent.

``dequantize``: largest difference by type. ``kernels``: by type, how far experts that ggml computes are from those of
the dequantized weights in float64 (norm of the difference over norm): with activations rounded as ggml says it rounds
them, and with exact ones.

``tiers``: by how misses are served, what serves them and the policy, how far experts in tiers are from the exact ones,
and what was counted, over some steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from collab_vllm.experts.ggml.dequantize import dequantize
from collab_vllm.experts.grouped import grouped_experts, sorted_places
from collab_vllm.experts.host.expert_graph import ExpertShape
from collab_vllm.experts.host.ggml_cpu import ggml_cpu
from collab_vllm.experts.host.host_kernel import HostKernel
from collab_vllm.experts.tiering.resident_set import ResidentSet
from collab_vllm.experts.tiering.tier_counts import TierCounts
from collab_vllm.experts.tiering.tiered_layer import TieredLayer
from collab_vllm.selection.loader_options import MISSES, Misses
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.placement.residencies import DecayedCount

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q5_1": (0, 2)}
EXPERTS, WIDE, NARROW, TOKENS, USED = 6, 512, 256, 7, 3
# What ggml rounds activations to before weights of a type; before all others to blocks of 256.
ROUNDED = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q8_0", "Q5_0": "Q8_0", "Q8_0": "Q8_0", "IQ4_NL": "Q8_0",
    "Q5_1": "Q8_1",
}  # fmt: skip


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


def moderate(kind: str, rows: int, columns: int) -> np.ndarray:
    """uint8[EXPERTS, rows, bytes]: scales of one order of magnitude, so that no block drowns the others."""
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(rows)
    if kind in ("F32", "F16", "BF16"):
        values = generator.standard_normal((EXPERTS * rows, columns), np.float32) / 20
        return quants.quantize(values, GGMLQuantizationType[kind]).view(np.uint8).reshape(EXPERTS, rows, -1)
    raw = generator.integers(0, 256, (EXPERTS, rows, columns // size, nbytes), np.uint8)
    if kind == "IQ1_M":
        raw[..., 55] = raw[..., 55] & 0x8F | 0x20
    for at in () if kind == "IQ1_M" else HALVES.get(kind, (0,)):
        raw[..., at + 1] = raw[..., at + 1] & 0x83 | 0x20
    return raw.reshape(EXPERTS, rows, -1)


def rounded(values: torch.Tensor, kind: str) -> torch.Tensor:
    """As quantize_row_q8_0, _q8_1 and _q8_K of ggml-quants.c round, and the plain types."""
    how = ROUNDED.get(kind, "Q8_K")
    if how in ("F32", "F16", "BF16"):
        return values.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[how]).double()
    parts = values.float().reshape(-1, 256 if how == "Q8_K" else 32)
    largest = parts.gather(1, parts.abs().argmax(1, keepdim=True))
    if how == "Q8_K":
        inverse = -127 / largest
        whole, scale = (inverse * parts).round().clamp(max=127), 1 / inverse
    else:
        scale = largest.abs() / 127
        whole, scale = (parts / scale).round(), scale.half().float()
    return (whole.double() * scale).reshape(values.shape)


def exact(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, matrices: list[torch.Tensor],
          round_as: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:  # fmt: skip
    out = torch.zeros(x.shape, dtype=torch.float64)
    gate, up, down = matrices
    for token in range(len(x)):
        values = round_as(x[token])
        for share, expert in zip(weights[token], ids[token], strict=True):
            hidden = torch.nn.functional.silu(gate[expert] @ values) * (up[expert] @ values)
            out[token] += share * (down[expert] @ round_as(hidden))
    return out


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


STEPS, ROOM = 12, 3


def tiers(misses: Misses, with_ggml: bool, dynamic: bool) -> dict[str, Any]:
    """Steps of different sizes; expert 0 belongs to another rank."""
    library = ggml_cpu() if with_ggml else None
    types = ("Q8_0", "BF16", "F32")
    shapes = ((NARROW, WIDE), (NARROW, WIDE), (WIDE, NARROW))
    stored = [torch.from_numpy(moderate(kind, *shape)) for kind, shape in zip(types, shapes, strict=True)]
    values = [
        dequantize(m.flatten(0, 1), k).double().unflatten(0, (EXPERTS, -1)) for m, k in zip(stored, types, strict=True)
    ]
    judge = DecayedCount(np.zeros((1, EXPERTS)), {"decay": 0.9}) if dynamic else None
    resident = ResidentSet(EXPERTS, ROOM, (1, 2), judge)
    counts = TierCounts(0)
    layer = TieredLayer(
        ExpertShape(EXPERTS, WIDE, NARROW, types), stored, resident, torch.device("cpu"), library, misses, 4, counts,
        lambda rows: 0 if rows > 8 else rows,
    )  # fmt: skip
    torch.manual_seed(2)
    worst = 0.0
    for step in range(STEPS):
        rows = (1, 3, 8, 20)[step % 4]
        x, weights = torch.randn(rows, WIDE), torch.rand(rows, USED)
        ids = torch.stack([torch.randperm(EXPERTS)[:USED] for _ in range(rows)])
        local = torch.where(ids == 0, -1, ids)
        found = layer.compute(x, weights, local)
        worst = max(
            worst, apart(found, grouped_experts(x.double(), weights, local, lambda e: tuple(m[e] for m in values)))
        )
    return {
        "apart": worst,
        "hot": resident.experts,
        "expert bytes": sum(m[0].nbytes for m in stored),
        **counts.so_far(),
    }


def kernels(kind: str) -> dict[str, float]:
    library = ggml_cpu()
    assert library is not None, "no ggml: COLLAB_GGML names its folder"
    shapes = ((NARROW, WIDE), (NARROW, WIDE), (WIDE, NARROW))
    stored = [torch.from_numpy(moderate(kind, *shape)) for shape in shapes]
    values = [dequantize(m.flatten(0, 1), kind).double().unflatten(0, (EXPERTS, -1)) for m in stored]
    torch.manual_seed(1)
    x, weights = torch.randn(TOKENS, WIDE), torch.rand(TOKENS, USED)
    ids = torch.stack([torch.randperm(EXPERTS)[:USED] for _ in range(TOKENS)])
    kernel = HostKernel(library, ExpertShape(EXPERTS, WIDE, NARROW, (kind,) * 3), stored)
    found = kernel.compute(x, weights, ids)
    chosen = ids.reshape(-1).numpy()
    places = sorted_places(chosen, chosen >= 0)
    by_pairs = kernel.add(torch.zeros(TOKENS, WIDE), x, weights, chosen, places)
    grouped = grouped_experts(x.double(), weights, ids, lambda e: tuple(m[e] for m in values))
    plain = exact(x, weights, ids, values, torch.Tensor.double)
    library_values = library.dequantize(stored[0].flatten(0, 1), kind).double().unflatten(0, (EXPERTS, -1))
    many = torch.randn(40 * EXPERTS, WIDE)
    of_one = torch.arange(len(many)).unsqueeze(1) % EXPERTS
    share = torch.rand(len(many), 1)
    return {
        "dequantized": apart(library_values, values[0]),
        "many": apart(
            kernel.compute(many, share, of_one),
            grouped_experts(many.double(), share, of_one, lambda e: tuple(m[e] for m in values)),
        ),
        "rounded": apart(found, exact(x, weights, ids, values, lambda v: rounded(v, kind))),
        "exact": apart(found, plain),
        "pairs": apart(by_pairs, found.double()),
        "grouped": apart(grouped, plain),
    }


found = {}
for kind in TYPES:
    raw = blocks(kind).reshape(8, -1)
    expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    ours = dequantize(torch.from_numpy(raw), kind).numpy()
    assert ours.shape == expected.shape and np.isfinite(expected).all(), kind
    assert np.abs(expected).max() > 0.01, kind
    found[kind] = float(np.abs(ours - expected).max() / np.abs(expected).max())
in_tiers = {
    f"{misses} {'ggml' if ggml else 'torch'} {'dynamic' if dynamic else 'static'}": tiers(misses, ggml, dynamic)
    for misses in MISSES
    for ggml in (False, True)
    for dynamic in (False, True)
}
print(json.dumps({"dequantize": found, "kernels": {kind: kernels(kind) for kind in TYPES}, "tiers": in_tiers}))
