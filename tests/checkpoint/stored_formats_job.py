"""Pack random weights with compressed-tensors and torch; what they read back is what is expected.

python stored_formats_job.py OUT.safetensors, in an environment with both. Of each case the file has the tensors of a
module CASE as a checkpoint stores them, and CASE.expected: float32[rows, columns].
"""

from __future__ import annotations

import sys

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

ROWS, COLUMNS = 48, 256
Tensors = dict[str, torch.Tensor]


def scheme(**weights: object) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def grouped(values: torch.Tensor, group: int, half: float, dtype: torch.dtype) -> torch.Tensor:
    return (values.reshape(ROWS, -1, group).abs().amax(-1) / half).to(dtype)


def integers(form: str, bits: int, group: int, dtype: torch.dtype, zeros: bool) -> Tensors:
    """Whole numbers with a scale for ``group`` values, one for a row when that is all."""
    how = {"strategy": "group", "group_size": group} if group < COLUMNS else {"strategy": "channel"}
    args = scheme(num_bits=bits, type="int", symmetric=not zeros, **how)
    values = torch.randn(ROWS, COLUMNS).to(dtype)
    scale = grouped(values.float(), group, 2 ** (bits - 1) - 1, dtype)
    points = (
        torch.randint(-3, 4, scale.shape, dtype=torch.int8) if zeros else torch.zeros(scale.shape, dtype=torch.int8)
    )
    return packed(form, args, {"weight": values, "weight_scale": scale, "weight_zero_point": points})


def floats(form: str, bits: int, group: int, **args: object) -> Tensors:
    values = torch.randn(ROWS, COLUMNS).to(torch.bfloat16)
    scale = grouped(values.float(), group, 448 if bits == 8 else 6, torch.bfloat16)
    parts = {"weight": values, "weight_scale": scale}
    if form == "nvfp4-pack-quantized":
        parts["weight_global_scale"] = torch.tensor([448.0 * 6 / 4])
        parts["weight_scale"] = (scale.float() * parts["weight_global_scale"]).to(torch.bfloat16)
    elif "scale_dtype" in args:
        parts["weight_scale"] = torch.exp2(torch.ceil(torch.log2(scale.float()))).to(torch.bfloat16)
    return packed(form, scheme(num_bits=bits, type="float", symmetric=True, **args), parts)


def packed(form: str, args: QuantizationScheme, parts: Tensors) -> Tensors:
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(dict(parts), args)
    back = compressor.decompress(dict(stored), args)["weight"].float()
    return {**{name: t.detach() for name, t in stored.items() if t is not None}, "expected": back}


def block_float8(scale_dtype: torch.dtype, name: str) -> Tensors:
    """FP8 with a scale for 32 x 128, as torch's own types read it."""
    codes = torch.randn(ROWS, COLUMNS).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2).add(0.5).mul(1e-2).to(scale_dtype)
    wide = scale.float().repeat_interleave(32, 0)[:ROWS].repeat_interleave(128, 1)
    return {"weight": codes, name: scale, "expected": (codes.float() * wide).bfloat16().float()}


def main(out: str) -> None:
    torch.manual_seed(1)
    bf16, f16 = torch.bfloat16, torch.float16
    cases: dict[str, Tensors] = {
        "int4-g32": integers("pack-quantized", 4, 32, bf16, False),
        "int4-g128-f16": integers("pack-quantized", 4, 128, f16, False),
        "int4-g32-zeros": integers("pack-quantized", 4, 32, bf16, True),
        "int4-channel": integers("pack-quantized", 4, COLUMNS, bf16, False),
        "int8-g128": integers("pack-quantized", 8, 128, bf16, False),
        "int8-channel": integers("int-quantized", 8, COLUMNS, bf16, False),
        "fp8-channel": floats("float-quantized", 8, COLUMNS, strategy="channel"),
        "mxfp4": floats("mxfp4-pack-quantized", 4, 32, strategy="group", group_size=32, scale_dtype=torch.uint8),
        "mxfp8": floats("mxfp8-quantized", 8, 32, strategy="group", group_size=32, scale_dtype=torch.uint8),
        "nvfp4": floats(
            "nvfp4-pack-quantized", 4, 16, strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
        ),
        "fp8-block": block_float8(torch.float32, "weight_scale_inv"),
        "fp8-block-e8m0": block_float8(torch.float8_e8m0fnu, "scale"),
    }
    codes = torch.randn(ROWS, COLUMNS).mul(100).to(torch.float8_e4m3fn)
    whole = {"weight": codes, "weight_scale": torch.tensor(0.0123), "input_scale": torch.tensor(0.5)}
    cases["fp8-tensor"] = whole | {"expected": (codes.float() * whole["weight_scale"]).bfloat16().float()}
    save_file({f"{c}.{n}": t.contiguous() for c, parts in cases.items() for n, t in parts.items()}, out)


main(sys.argv[1])
