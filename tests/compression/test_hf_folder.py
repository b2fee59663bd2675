"""A pruned Hugging Face folder holds the values of the GGUF of the same plan, complete or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from small_models.hand_made_plans import pruned, typed_plan
from small_models.hf_folder import MODELS, deepseek, qwen, write_folder

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.hf_folder import FolderPrecision, compress_folder
from collab_plugin.compression.hf_precision import precisions
from collab_plugin.compression.hf_tensors import outputs, works
from collab_plugin.errors import CollabError
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import read_plan, write_plan

KEPT = (30, 2, 3, 11, 9, 8, 16, 17)  # two of each of DeepSeek's four groups when sorted by 8
BALANCED = (2, 3, 8, 11, 16, 17, 25, 30)


def _quiet(done: float, total: float | None = None) -> None: ...


def _write(checkpoint: Checkpoint, plan: Plan, out: Path, precision: str = "original", **options: int) -> Path:
    options.setdefault("threads", 2)
    compress_folder(checkpoint, plan, out, precision=precision, report=_quiet, **options)  # type: ignore[arg-type]
    return out


def _sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(("model", "kept"), [("tiny-qwen3moe", KEPT), ("tiny-deepseek-v3", BALANCED)])
def test_values_are_those_of_the_gguf(model: str, kept: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / model)
    plan = pruned(checkpoint, copy_plan(checkpoint), kept)
    before = _sums(MODELS / model)
    folder = _write(checkpoint, plan, tmp_path / "pruned")
    compress(checkpoint, plan, None, tmp_path / "out.gguf", kernels=None, threads=1, report=_quiet)
    ours, gguf = open_safetensors(folder), open_gguf(tmp_path / "out.gguf")
    assert set(ours.tensors) == set(gguf.tensors)
    for name, info in ours.tensors.items():
        assert info.type == gguf.tensors[name].type
        np.testing.assert_array_equal(ours.read(name), gguf.read(name))
    assert {p.name for p in folder.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert _sums(MODELS / model) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "pruned"]


def test_config_follows_the_plan(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-deepseek-v3")
    plan = pruned(checkpoint, copy_plan(checkpoint), KEPT)
    groups: dict[str, int | None] = {"deepseek2.expert_group_count": None, "deepseek2.expert_group_used_count": None}
    plan = dataclasses.replace(plan, metadata={**plan.metadata, "deepseek2.expert_used_count": 3, **groups})
    folder = _write(checkpoint, plan, tmp_path / "pruned")
    config = json.loads((folder / "config.json").read_text())
    original = json.loads((MODELS / "tiny-deepseek-v3" / "config.json").read_text())
    new = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1}
    assert config == original | new
    assert open_safetensors(folder).metadata["deepseek2.expert_count"].value == 8


@pytest.mark.parametrize("names", [("num_local_experts",), ("num_experts", "num_local_experts")])
def test_the_expert_count_under_the_name_of_transformers_5(names: tuple[str, ...], tmp_path: Path) -> None:
    source, original = tmp_path / "tiny-qwen3moe", MODELS / "tiny-qwen3moe"
    source.mkdir()
    for path in original.iterdir():
        (source / path.name).symlink_to(path)
    config = json.loads((original / "config.json").read_text())
    count = config.pop("num_experts")
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps(config | dict.fromkeys(names, count)))
    checkpoint = open_safetensors(source)
    assert checkpoint.metadata == open_safetensors(original).metadata
    folder = _write(checkpoint, pruned(checkpoint, copy_plan(checkpoint), KEPT), tmp_path / "pruned")
    assert json.loads((folder / "config.json").read_text()) == config | {"num_experts_per_tok": 4} | dict.fromkeys(
        names, 8
    )


def test_text_that_utf_8_has_not(tmp_path: Path) -> None:
    """Half of a pair of surrogates, as broken tools escape it: config.json has it still."""
    source = write_folder(tmp_path / "m", *qwen(odd="a\ud800"))
    checkpoint = open_safetensors(source)
    folder = _write(checkpoint, copy_plan(checkpoint), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text("utf-8"))["odd"] == "a\ud800"


def test_bytes_do_not_depend_on_threads_and_are_in_shards(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), KEPT)
    outs = [
        _write(checkpoint, plan, tmp_path / f"{threads}", "plan", threads=threads, shard_bytes=1_000_000)
        for threads in (1, 3)
    ]
    assert _sums(outs[0]) == _sums(outs[1])
    index = json.loads((outs[0] / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in outs[0].glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    for name, file in index["weight_map"].items():
        assert name.encode() in (outs[0] / file).read_bytes()[:200_000]


def test_shards_read_as_one_file(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    plan = pruned(checkpoint, copy_plan(checkpoint), KEPT)
    one = open_safetensors(_write(checkpoint, plan, tmp_path / "one"))
    many = open_safetensors(_write(checkpoint, plan, tmp_path / "many", shard_bytes=500_000))
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_mtp_layer_is_dropped(tmp_path: Path) -> None:
    config, tensors = deepseek(num_nextn_predict_layers=1, num_hidden_layers=2)
    extra = {n.replace("layers.1.", "layers.2."): t for n, t in tensors.items() if ".layers.1." in n}
    extra["model.layers.2.eh_proj.weight"] = tensors["model.layers.1.self_attn.o_proj.weight"]
    source = write_folder(tmp_path / "source", config, tensors | extra, shards=2)
    checkpoint = open_safetensors(source)
    folder = _write(checkpoint, pruned(checkpoint, copy_plan(checkpoint), (0, 3)), tmp_path / "pruned")
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert b"layers.2." not in (folder / "model.safetensors").read_bytes()


def test_mistakes_are_one_line_and_leave_nothing(qwen3moe: Path, tmp_path: Path) -> None:
    source = shutil.copytree(MODELS / "tiny-qwen3moe", tmp_path / "source")
    checkpoint = open_safetensors(source)
    plan = copy_plan(checkpoint)
    (tmp_path / "there").mkdir()
    other = copy_plan(open_safetensors(MODELS / "tiny-deepseek-v3"))
    gguf = open_gguf(qwen3moe)
    for check, which, out, words in (
        (checkpoint, plan, tmp_path / "there", "exists; name a folder"),
        (checkpoint, plan, tmp_path / "no" / "out", "make the folder first"),
        (checkpoint, plan, source / "pruned", "never written to"),
        (checkpoint, other, tmp_path / "out", "another checkpoint"),
        (gguf, copy_plan(gguf), tmp_path / "out", "is a GGUF file"),
    ):
        with pytest.raises(CollabError, match=words) as error:
            _write(check, which, out)
        assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "there"]


def test_damaged_value_stops_and_names_nothing(tmp_path: Path) -> None:
    config, tensors = deepseek()
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    damaged = tensors[name].data[:-2] + b"\x80\x7f"  # bfloat16 infinity
    tensors[name] = type(tensors[name])("BF16", tensors[name].shape, damaged)
    checkpoint = open_safetensors(write_folder(tmp_path / "source", config, tensors))
    with pytest.raises(CollabError, match=r"experts\.3\.up_proj"):
        _write(checkpoint, copy_plan(checkpoint), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.journal", "out.partial", "source"]
    # An expert that is pruned is not read.
    _write(checkpoint, pruned(checkpoint, copy_plan(checkpoint), (0, 2)), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_what_another_run_left_is_begun_anew(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    plan = pruned(checkpoint, copy_plan(checkpoint), KEPT)
    whole = _sums(_write(checkpoint, plan, tmp_path / "whole"))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model-00009-of-00009.safetensors").write_bytes(b"\0" * 100)
    assert _sums(_write(checkpoint, plan, tmp_path / "out")) == whole


@pytest.mark.parametrize("precision", ["plan", "original"])
@pytest.mark.parametrize("model", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_an_interrupted_run_goes_on(model: str, precision: FolderPrecision, tmp_path: Path) -> None:
    """After a stop, a flipped bit in what was done, and a strange file."""
    checkpoint, calls = open_safetensors(MODELS / model), 0
    plan = pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), BALANCED)
    whole = _sums(_write(checkpoint, plan, tmp_path / "whole", precision))

    def stop(done: float, total: float | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise KeyboardInterrupt

    out, part = tmp_path / "out", tmp_path / "out.partial" / "model.safetensors"
    with pytest.raises(KeyboardInterrupt):
        compress_folder(checkpoint, plan, out, precision=precision, threads=1, report=stop)
    assert not out.exists()
    (tmp_path / "out.partial" / "strange.json").write_text("{}")
    data = bytearray(part.read_bytes())
    data[int.from_bytes(data[:8], "little") + 8 + 5] ^= 1  # of the first tensor
    data[20] ^= 1  # of the header
    part.write_bytes(data)
    done = compress_folder(checkpoint, plan, out, precision=precision, threads=2, report=_quiet)
    assert 30 < done.resumed_tiles < 42 < done.tiles
    assert _sums(out) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("precision", ["plan", "original"])
@pytest.mark.parametrize("made", [deepseek, qwen, "tiny-deepseek-v3"])
def test_what_is_written_is_known_before(made: Any, precision: str, tmp_path: Path) -> None:
    """By tensor: the bytes of `spans` are those of `pieces`, whole and once."""
    folder = MODELS / made if isinstance(made, str) else write_folder(tmp_path / "source", *made())
    checkpoint = open_safetensors(folder)
    plan = pruned(
        checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), BALANCED if isinstance(made, str) else (0, 2)
    )
    todo = list(outputs(checkpoint, plan, precisions(checkpoint, plan) if precision == "plan" else None))
    sizes = {tensor.name: tensor.nbytes for output in todo for tensor in output.tensors()}
    seen = dict.fromkeys(sizes, 0)
    for work in works(todo):
        spans = {(name, at): size for name, at, size in work.spans()}
        found: dict[tuple[str, int], int] = {}
        for name, at, values in work.pieces():
            start = next((key for key, size in found.items() if key[0] == name and key[1] + size == at), (name, at))
            found[start] = found.get(start, 0) + values.nbytes
        assert found == spans
        for (name, _), size in spans.items():
            seen[name] += size
    assert seen == sizes


def test_allocations_do_not_grow_with_the_model(tmp_path: Path) -> None:
    """Python's allocations at their peak, for 4 and for 24 experts a layer: they follow the largest tensor's tiles."""
    peaks = []
    for experts in (4, 24):
        config, tensors = qwen(num_experts=experts, vocab_size=3072)
        checkpoint = open_safetensors(write_folder(tmp_path / f"{experts}", config, tensors))
        plan = typed_plan(checkpoint, lambda info: "Q4_K" if info.role == Role.EXPERT else "BF16")
        tracemalloc.start()
        _write(checkpoint, plan, tmp_path / f"{experts}-out", "plan", threads=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_expert = 3 * 192 * 160 * 4
    assert peaks[1] < peaks[0] + 2 * one_expert


def test_command(tmp_path: Path) -> None:
    checkpoint = open_safetensors(MODELS / "tiny-qwen3moe")
    write_plan(tmp_path / "plan.json", pruned(checkpoint, typed_plan(checkpoint, lambda info: "Q4_K"), KEPT))
    start = ["compress", str(MODELS / "tiny-qwen3moe"), "--plan", str(tmp_path / "plan.json"), "-o"]
    folder = [*start, str(tmp_path / "out"), "--format", "safetensors"]
    run = CliRunner().invoke
    done = run(main, [*folder, "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_plan(tmp_path / "out" / "collab_plan.json") == read_plan(tmp_path / "plan.json")
    for arguments, words in (
        (folder, "exists; name a folder that does not"),
        ([*folder, "--stats", "s.gguf"], "--stats is for GGUF files"),
        ([*start, str(tmp_path / "x.gguf"), "--precision", "original"], "--precision is for --format safetensors"),
    ):
        refused = run(main, arguments)
        assert refused.exit_code == 2
        assert words in refused.stderr
