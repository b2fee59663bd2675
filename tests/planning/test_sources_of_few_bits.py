"""Sources that were trained in few bits: copied without error, or quantized to fewer bits, never to more.

FP8 has no type of a GGUF that holds it: what loses nothing is BF16.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as T
from small_models.converted import as_gguf, llama_cpp_logits, nmse
from small_models.few_bits import FORMATS, few_bits
from small_models.gguf_copies import write_copy
from small_models.hand_made_plans import pruned, typed_plan
from small_models.random_moe import BLOCKS, EXPERTS, WIDTH, write_qwen3moe

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import bits_per_weight
from collab_plugin.planning.allocators.knapsack import KNAPSACK
from collab_plugin.planning.criteria.builtin_criteria import CRITERIA
from collab_plugin.planning.error_energy import error_energy
from collab_plugin.planning.planning_input import PlanningInput
from collab_plugin.planning.request import PlanRequest
from collab_plugin.planning.type_choices import type_choices
from collab_plugin.planning.type_limits import Limits
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting

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


# The type that holds what is stored, and by how much its values may be off what codes and scales mean.
LOSSLESS = {
    "mxfp4": ("MXFP4", 0), "int4": ("Q4_0", 0), "int8": ("Q8_0", 0), "fp8": ("BF16", 0),
    "nvfp4": ("NVFP4", 2.0**-23), "nvfp4-modelopt": ("NVFP4", 0),
}  # fmt: skip


def meant(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A tensor's values as an engine multiplies with them: times the scale of each expert, where it has one."""
    values, scale = checkpoint.read(name).astype(np.float64), name.replace(".weight", ".scale")
    return values * checkpoint.read(scale)[:, None, None] if scale in checkpoint.tensors else values


@pytest.mark.parametrize("form", FORMATS)
def test_the_lossless_copy_is_taken_where_there_is_room(form: str, tmp_path: Path) -> None:
    """At its own bits, at zero error; whole and pruned files have the values that codes and scales mean."""
    folder, expected = few_bits(tmp_path / "m", form)
    kind, off = LOSSLESS[form]
    plan = tmp_path / "plan.json"
    types = planned(folder, plan, "--budget", "1GB", "--keep", "100%")
    assert {types[name] for name in expected} == {kind}
    assert {read_plan(plan).tensors[name].error for name in expected} == {0.0}
    checkpoint, kept = open_checkpoint(folder), [3, 1]
    for experts, document in ((range(4), read_plan(plan)), (kept, pruned(checkpoint, read_plan(plan), kept))):
        out = tmp_path / f"{len(experts)}.gguf"
        compress(checkpoint, document, None, out, kernels=None, threads=1, report=untold)
        assert out.stat().st_size == document.bytes
        made = open_gguf(out)
        for name, values in expected.items():
            wanted = values[list(experts)]
            assert (np.abs(meant(made, name) - wanted) <= off * np.abs(wanted)).all(), name


@pytest.mark.parametrize("form", FORMATS)
def test_no_type_of_more_bits_than_the_lossless_one(form: str, tmp_path: Path) -> None:
    folder, expected = few_bits(tmp_path / "m", form)
    checkpoint = open_checkpoint(folder)
    request = PlanRequest(budget=10**9, criterion=CRITERIA[0], allocator=KNAPSACK)
    choices = type_choices(PlanningInput(checkpoint, topology_of(checkpoint), request), Limits.of(None, {}, {}))
    kind, _ = LOSSLESS[form]
    for name in expected:
        assert choices[name][-1] == kind
        assert max([bits_per_weight(other) for other in choices[name][:-1]], default=0) < bits_per_weight(kind)


@pytest.mark.native
@pytest.mark.parametrize("form", FORMATS)
def test_fewer_bits_of_a_folder(form: str, kernels: Kernels, tmp_path: Path) -> None:
    """A scale beside an expert is right for whatever type its blocks have."""
    folder, expected = few_bits(tmp_path / "m", form)
    checkpoint, out = open_checkpoint(folder), tmp_path / "out.gguf"
    plan = typed_plan(checkpoint, lambda info: "Q4_K" if info.name in expected else "F16")
    compress(checkpoint, plan, None, out, kernels=kernels, threads=1, report=untold)
    for name, values in expected.items():
        error = np.linalg.norm(meant(open_gguf(out), name) - values) / np.linalg.norm(values)
        assert 0 < error < 0.13, name


@pytest.mark.parametrize("form", FORMATS)
def test_a_pruned_folder_stays_as_it_is_stored(form: str, tmp_path: Path) -> None:
    folder, expected = few_bits(tmp_path / "m", form)
    checkpoint, out, kept = open_checkpoint(folder), tmp_path / "out", [3, 1]
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    compress_folder(checkpoint, plan, out, precision="original", threads=1, report=untold)
    made = open_checkpoint(out)
    assert list(made.tensors) == list(checkpoint.tensors)
    for name in expected:
        np.testing.assert_array_equal(meant(made, name), meant(checkpoint, name)[kept], err_msg=name)


def test_a_folder_at_the_bits_of_a_plan_from_nvfp4(tmp_path: Path) -> None:
    """Whole numbers of four bits, made of the values and not of the blocks."""
    folder, expected = few_bits(tmp_path / "m", "nvfp4")
    checkpoint, out = open_checkpoint(folder), tmp_path / "out"
    compress_folder(checkpoint, copy_plan(checkpoint), out, precision="plan", threads=1, report=untold)
    made = open_checkpoint(out)
    for name, values in expected.items():
        assert made.tensors[name].type == T.Q4_0
        assert np.linalg.norm(made.read(name) - values) < 0.2 * np.linalg.norm(values), name


def test_scales_count_in_the_energy_of_errors(tmp_path: Path) -> None:
    """An error of an expert at NVFP4 is as large as that of its values, which lie in the blocks thousands of times as
    large."""
    folder, expected = few_bits(tmp_path / "m", "nvfp4")
    checkpoint, name = open_checkpoint(folder), "blk.0.ffn_down_exps.weight"
    entry = ImatrixEntry(np.ones((4, expected[name].shape[-1]), np.float32), np.full(4, 9, np.float32))
    routing = LayerRouting(100, np.full(4, 50), np.full(4, 25.0))
    energy = error_energy(
        checkpoint, checkpoint.tensors[name], ImportanceMatrix({name: entry}, 0), routing, topology_of(checkpoint)
    )
    weight = 0.5 * 0.5**2  # each of four experts is chosen for half of the tokens, and has half of the router's weight
    assert energy == pytest.approx(weight / 9 * np.square(expected[name]).sum(), rel=0.1)


def test_nvfp4_where_llama_cpp_heeds_no_scales(tmp_path: Path) -> None:
    """deepseek2's graph does not multiply with scales of experts, so values are rounded to BF16, as vLLM's are."""
    folder, expected = few_bits(tmp_path / "m", "nvfp4", "deepseek")
    checkpoint = open_checkpoint(folder)
    assert not any(name.endswith(".scale") for name in checkpoint.tensors)
    for name, values in expected.items():
        assert checkpoint.tensors[name].type == T.BF16
        assert (np.abs(checkpoint.read(name) - values) <= 2.0**-8 * np.abs(values)).all()


@pytest.mark.parametrize("code", [0x7F, 0xFF, 0xC0])
def test_scales_of_nvfp4_that_are_none(code: int, tmp_path: Path) -> None:
    folder, _ = few_bits(tmp_path / "m", "nvfp4")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    name = "model.layers.0.mlp.experts.2.up_proj.weight_scale"
    data[8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]] = code
    path.write_bytes(data)
    with pytest.raises(CollabError, match=f"{name} holds scales that are negative or no number"):
        open_checkpoint(folder).read("blk.0.ffn_up_exps.weight", expert=2)


@pytest.mark.native
def test_llama_cpp_runs_nvfp4_as_it_runs_the_values(tmp_path: Path) -> None:
    """The same logits as of a GGUF in F32, but for activations, which it rounds to eight bits for NVFP4."""
    folder, expected = few_bits(tmp_path / "m", "nvfp4")
    checkpoint = open_checkpoint(folder)
    blocks = as_gguf(checkpoint, tmp_path / "blocks.gguf", None)
    plain = {name: (values.astype(np.float32), T.F32) for name, values in expected.items()}
    ones = {name.replace(".weight", ".scale"): (np.ones(4, np.float32), T.F32) for name in expected}
    wide = write_copy(blocks, tmp_path / "wide.gguf", tensors=plain | ones)
    found = llama_cpp_logits(wide, blocks)
    assert found[0] is not None and found[1] is not None
    assert nmse(found[0], found[1]) < 5e-3
