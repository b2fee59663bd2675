"""8 and 4 bits as compressed-tensors stores them; the package itself reads them in tests/vllm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from small_models.hand_made_plans import pruned, typed_plan
from small_models.hf_folder import MODELS, Tensor, deepseek, f32, write_folder

from collab_plugin.checkpoint.checkpoint import TensorInfo
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.compression.hf_pack_quantized import quantize
from collab_plugin.compression.hf_precision import Precision, precisions
from collab_plugin.formats.byte_file import LocalFile
from collab_plugin.formats.safetensors_header import read_header
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.copy_plan import copy_plan


def _quiet(done: float, total: float | None = None) -> None: ...


def _values(packed: NDArray[Any], scales: NDArray[np.float32], bits: int, columns: int) -> NDArray[np.float32]:
    """Read back one value at a time, as the format's description says."""
    rows, groups = scales.shape
    out = np.empty((rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            word = int(packed[row, column * bits // 32]) & 0xFFFFFFFF
            code = (word >> (column * bits % 32)) & ((1 << bits) - 1)
            out[row, column] = (code - (1 << (bits - 1))) * scales[row, column * groups // columns]
    return out


@pytest.mark.parametrize(("bits", "group", "limit"), [(8, 128, 0.007), (8, 32, 0.006), (4, 32, 0.09), (4, 128, 0.12)])
def test_values_come_back(bits: int, group: int, limit: float) -> None:
    values = np.random.default_rng(1).standard_normal((6, 384)).astype(np.float32)
    values[2] = 0
    packed, scales = quantize(values, bits, group, "F32")
    back = _values(packed, scales.astype(np.float32), bits, 384)
    assert not back[2].any()
    assert np.linalg.norm(back - values) / np.linalg.norm(values) < limit
    step = np.repeat(scales.astype(np.float32), group, axis=1)
    assert (np.abs(back - values) <= step * (0.501 if bits == 8 else 2)).all()


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        quantize(np.zeros((2, 100), np.float32), 4, 32, "BF16")


def _types(info: TensorInfo) -> str:
    """Three layers: 8 bits, 4 fine, 4 coarse; the embedding is quantized in a GGUF only."""
    if info.role == Role.EXPERT:
        return ("Q6_K", "Q5_K", "IQ2_S")[info.layer or 0]
    return "Q8_0" if info.role == Role.ATTENTION and info.layer == 0 else "BF16"


def test_blocks_follow_the_plan() -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    found = precisions(checkpoint, typed_plan(checkpoint, _types))
    assert found == {
        "model.layers.0.mlp.experts": Precision(8, 128),
        "model.layers.1.mlp.experts": Precision(4, 32),
        "model.layers.2.mlp.experts": Precision(4, 128),
        "model.layers.0.self_attn": Precision(8, 128),
        "model.layers.1.self_attn": None,
        "model.layers.2.self_attn": None,
    }


def test_folder_holds_what_its_config_says(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    plan = pruned(checkpoint, typed_plan(checkpoint, _types), (1, 5, 7, 30))
    out = tmp_path / "out"
    done = compress_folder(checkpoint, plan, out, precision="plan", threads=2, report=_quiet)
    assert done.bytes == sum(p.stat().st_size for p in out.glob("*.safetensors"))
    stored = {n: s for p in out.glob("*.safetensors") for n, s in read_header(LocalFile(p)).items()}
    expert = "model.layers.2.mlp.experts.3.down_proj.weight"
    assert [stored[f"{expert}_{part}"].shape for part in ("packed", "scale")] == [(256, 32), (256, 2)]
    assert stored[f"{expert}_shape"].data.view("<i8").tolist() == [256, 256]
    source = checkpoint.read("blk.2.ffn_down_exps.weight", expert=30)
    packed = stored[f"{expert}_packed"].data.view("<i4").reshape(256, 32)
    scales = (stored[f"{expert}_scale"].data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(256, 2)
    back = _values(packed[:8], scales[:8], 4, 256)
    assert np.linalg.norm(back - source[:8]) / np.linalg.norm(source[:8]) < 0.13
    for name in ("lm_head.weight", "model.layers.2.mlp.gate.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert stored[name].dtype == "BF16"
    again = open_safetensors(out)
    assert again.tensors["blk.2.ffn_down_exps.weight"].type == GGMLQuantizationType.Q4_0
    np.testing.assert_array_equal(again.read("blk.2.ffn_down_exps.weight", expert=3, rows=slice(0, 8)), back)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert [g["weights"]["num_bits"] for g in config["config_groups"].values()] == [4, 4, 8]


def test_fp8_becomes_bf16_where_it_is_not_quantized(tmp_path: Path) -> None:
    config, tensors = deepseek(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    shape = tensors[name].shape
    codes = np.random.default_rng(2).integers(0, 0x7F, shape, dtype=np.uint8)
    tensors[name] = Tensor("F8_E4M3", shape, codes.tobytes())
    tensors[f"{name}_scale_inv"] = f32(np.full((-(-shape[0] // 128), -(-shape[1] // 128)), 0.01, np.float32))
    checkpoint = open_safetensors(write_folder(tmp_path / "source", config, tensors))
    plan = copy_plan(checkpoint)
    compress_folder(checkpoint, plan, tmp_path / "plan", precision="plan", threads=1, report=_quiet)
    compress_folder(checkpoint, plan, tmp_path / "original", precision="original", threads=1, report=_quiet)
    widened, kept = open_safetensors(tmp_path / "plan"), open_safetensors(tmp_path / "original")
    assert widened.stored("blk.1.ffn_up_exps.weight")[2].parts[0].dtype == "BF16"
    assert kept.stored("blk.1.ffn_up_exps.weight")[2].parts[0].dtype == "F8_E4M3"
    assert widened.tensors["blk.1.ffn_up_exps.weight"].type == GGMLQuantizationType.BF16
    for folder in (widened, kept):
        for tensor in checkpoint.tensors:
            np.testing.assert_array_equal(folder.read(tensor), checkpoint.read(tensor))
    assert "quantization_config" not in json.loads((tmp_path / "plan" / "config.json").read_text())
    assert "quantization_config" in json.loads((tmp_path / "original" / "config.json").read_text())
