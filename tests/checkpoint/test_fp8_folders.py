"""Hugging Face folders in FP8 with a scale for each block of rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as T
from small_models.hf_folder import (
    EXPERT,
    Tensor,
    bf16,
    deepseek,
    f32,
    write_folder,
)
from small_models.refused_folder import refused

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def e4m3(code: int) -> float:
    """One float8 by the letter of the format (OCP 8-bit floating point, E4M3)."""
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def _fp8(
    tensors: dict[str, Tensor], rng: np.random.Generator, block: tuple[int, int] = (128, 128)
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """The linear layers at FP8, as DeepSeek ships them, and their exact values in float64."""
    codes_without_nan = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    table = np.array([e4m3(c) for c in range(256)])
    exact, found = {}, dict(tensors)
    for name, t in tensors.items():
        if not name.endswith("_proj.weight") and "kv_a_proj" not in name:
            continue
        rows, columns = t.shape
        codes = rng.choice(codes_without_nan, t.shape)
        scale = rng.uniform(1e-4, 3e-3, (-(-rows // block[0]), -(-columns // block[1]))).astype(np.float32)
        found[name] = Tensor("F8_E4M3", t.shape, codes.tobytes())
        found[f"{name}_scale_inv"] = f32(scale)
        grid = np.kron(scale.astype(np.float64), np.ones(block))[:rows, :columns]
        exact[name] = table[codes] * grid
    return found, exact


@pytest.fixture(scope="session")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    found, exact = _fp8(tensors, np.random.default_rng(5))
    return write_folder(tmp_path_factory.mktemp("fp8") / "model", config, found, shards=2), exact


def _is_nearest_bf16(got: np.ndarray, exact: np.ndarray) -> None:
    assert not (np.ascontiguousarray(got).view(np.uint32) & 0xFFFF).any()
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
    # Half a spacing, and what float32 rounds in the product before.
    assert (np.abs(got - exact) <= spacing * (0.5 + 1e-4)).all()


def test_fp8_is_scaled_by_blocks(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, exact = fp8
    checkpoint = open_checkpoint(folder)
    experts = checkpoint.tensors["blk.1.ffn_gate_exps.weight"]
    assert experts.type == T.BF16
    assert experts.nbytes == 2 * experts.n_elements
    for part in ("gate", "up", "down"):
        for expert in range(4):
            got = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=expert)
            _is_nearest_bf16(got, exact[f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"])
            tail = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=expert, rows=slice(125, 131))
            np.testing.assert_array_equal(tail, got[125:131])
    _is_nearest_bf16(checkpoint.read("blk.0.attn_q_a.weight"), exact["model.layers.0.self_attn.q_a_proj.weight"])
    kv = exact["model.layers.1.self_attn.kv_b_proj.weight"].reshape(2, 16 + 24, 32)
    _is_nearest_bf16(checkpoint.read("blk.1.attn_k_b.weight"), kv[:, :16].transpose(0, 2, 1))
    _is_nearest_bf16(checkpoint.read("blk.1.attn_v_b.weight"), kv[:, 16:])


@pytest.mark.parametrize("block", [(96, 96), (160, 160), (64, 32), (1, 128)])
def test_blocks_of_other_sizes(block: tuple[int, int], tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    found, exact = _fp8(tensors, np.random.default_rng(5), block)
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, found))
    for part in ("gate", "up", "down"):
        got = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=3)
        _is_nearest_bf16(got, exact[f"model.layers.1.mlp.experts.3.{part}_proj.weight"])
        tail = checkpoint.read(f"blk.1.ffn_{part}_exps.weight", expert=3, rows=slice(90, 131))
        np.testing.assert_array_equal(tail, got[90:131])


@pytest.mark.parametrize("size", [96, [128], [128, 0], ["128", "128"], [128.0, 128.0]])
def test_block_size_of_nonsense(size: object, tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": size}
    assert "weight_block_size" in refused(write_folder(tmp_path / "m", config, tensors))


def test_blocks_that_are_not_those_of_config_json(tmp_path: Path) -> None:
    config, tensors = deepseek()
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    found, _ = _fp8(tensors, np.random.default_rng(5))
    assert "a scale for each block of 32 by 32" in refused(write_folder(tmp_path / "m", config, found))


def test_raw_bytes_are_the_values(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    checkpoint = open_checkpoint(fp8[0])
    for name, info in checkpoint.tensors.items():
        raw = checkpoint.read_raw(name)
        assert raw.nbytes == info.nbytes, name
        if info.type == T.BF16:
            words = np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16
            np.testing.assert_array_equal(words.view(np.float32), checkpoint.read(name))


@pytest.mark.native
def test_fp8_folder_becomes_a_gguf_that_runs(fp8: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(fp8[0])
    out = tmp_path / "out.gguf"
    compress(
        checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=lambda done, total=None: None
    )
    same = open_gguf(out)
    assert sorted(same.tensors) == sorted(checkpoint.tensors)
    assert model_id(same) == model_id(checkpoint)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(same.read(name), checkpoint.read(name))
    result = CliRunner().invoke(
        main, ["run", str(out), "-p", "Once upon a time", "-n", "2", "--ctx", "64", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output


def test_fp8_not_a_number(tmp_path: Path) -> None:
    config, tensors = deepseek()
    found, _ = _fp8(tensors, np.random.default_rng(5))
    broken = bytearray(found[EXPERT].data)
    broken[7] = 0x7F
    found[EXPERT] = Tensor("F8_E4M3", found[EXPERT].shape, bytes(broken))
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, found))
    with pytest.raises(CollabError, match=r"blk\.1\.ffn_gate_exps\.weight, expert 2 holds 1 values that are NaN"):
        checkpoint.read("blk.1.ffn_gate_exps.weight", expert=2)


Change = Callable[[dict[str, Tensor]], None]


def _without_scale(t: dict[str, Tensor]) -> None:
    del t[f"{EXPERT}_scale_inv"]


def _with_small_scale(t: dict[str, Tensor]) -> None:
    t[f"{EXPERT}_scale_inv"] = f32(np.ones((1, 1), np.float32))


def _other_scale_dtype(t: dict[str, Tensor]) -> None:
    t[f"{EXPERT}_scale_inv"] = Tensor("I32", (2, 2), bytes(16))


def _scale_without_fp8(t: dict[str, Tensor]) -> None:
    t[EXPERT] = bf16(np.zeros(t[EXPERT].shape, np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_scale, "FP8 weights need weight_scale_inv"),
        (_with_small_scale, r"has shape \(1, 1\), \(2, 2\) is needed"),
        (_other_scale_dtype, "weight_scale_inv"),
        (_scale_without_fp8, "and only they"),
    ],
)
def test_scales_that_do_not_fit(change: Change, says: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    found, _ = _fp8(tensors, np.random.default_rng(5))
    change(found)
    with pytest.raises(CollabError, match=says):
        open_safetensors(write_folder(tmp_path / "m", config, found))
