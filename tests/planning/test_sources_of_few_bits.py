"""A source that was trained in four bits: copied without error, or quantized to fewer bits, never to more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as T
from small_models.gguf_copies import write_copy
from small_models.random_moe import BLOCKS, EXPERTS, WIDTH, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.plans.plan_file import read_plan

NAMES = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(BLOCKS) for part in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts in MXFP4: 17 bytes for 32 values, the first of them the exponent of their scale."""
    folder, rng = tmp_path_factory.mktemp("mxfp4"), np.random.default_rng(1)
    blocks = rng.integers(0, 256, (len(NAMES), EXPERTS, WIDTH, WIDTH // 32, 17), np.uint8)
    blocks[..., 0] = rng.integers(118, 122, blocks.shape[:-1], np.uint8)
    stored = {name: (b.reshape(EXPERTS, WIDTH, -1), T.MXFP4) for name, b in zip(NAMES, blocks, strict=True)}
    return write_copy(write_qwen3moe(folder / "plain.gguf"), folder / "mxfp4.gguf", tensors=stored)


def planned(path: Path, out: Path, *options: str) -> dict[str, str]:
    done = CliRunner().invoke(main, ["plan", str(path), *options, "-o", str(out)])
    assert done.exit_code == 0, done.output
    return {name: tensor.type for name, tensor in read_plan(out).tensors.items()}


def test_a_large_budget_copies_what_was_trained(mxfp4: Path, tmp_path: Path) -> None:
    types = planned(mxfp4, tmp_path / "plan.json", "--budget", str(mxfp4.stat().st_size + 10**6), "--keep", "100%")
    assert {types[name] for name in NAMES} == {"MXFP4"}


@pytest.mark.native
def test_a_small_budget_takes_fewer_bits(mxfp4: Path, tmp_path: Path) -> None:
    budget = str(int(mxfp4.stat().st_size * 0.8))
    types = planned(mxfp4, tmp_path / "plan.json", "--budget", budget, "--keep", "100%")
    bits = {bits_per_weight(types[name]) for name in NAMES}
    assert max(bits) <= bits_per_weight("MXFP4")
    assert min(bits) < bits_per_weight("MXFP4")
    out = tmp_path / "out.gguf"
    done = CliRunner().invoke(main, ["compress", str(mxfp4), "--plan", str(tmp_path / "plan.json"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    source, made = open_gguf(mxfp4), open_gguf(out)
    for name in NAMES:
        expected = source.read(name)
        error = np.linalg.norm(made.read(name) - expected) / np.linalg.norm(expected)
        assert error == 0 if types[name] == "MXFP4" else 0 < error < 0.5, (name, types[name])
