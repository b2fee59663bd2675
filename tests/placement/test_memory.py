"""KV cache and compute buffer against DeepSeek-V3's known figure and against llama.cpp itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFValueType
from small_models.big_plan import BUDGET, big_metadata, big_plan, some_kept

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.placement.artifact_shape import shape_of_plan
from collab_plugin.placement.memory import Memory, MemoryPart, memory_of
from collab_plugin.placement.run_setup import RunSetup
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.reports.sizes import bits_map

LLAMA = """
import ctypes, sys, llama_cpp
@llama_cpp.llama_log_callback
def log(level, text, data):
    sys.stdout.buffer.write(text)
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
options = llama_cpp.llama_model_default_params()
options.n_gpu_layers = 0
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), options)
options = llama_cpp.llama_context_default_params()
options.n_ctx, options.n_threads = int(sys.argv[2]), 1
assert llama_cpp.llama_init_from_model(model, options)
"""


@pytest.fixture(scope="module")
def big() -> Plan:
    return big_plan(some_kept())


def memory(plan: Plan, metadata: dict[str, MetaValue] | None, context: int = 8192) -> Memory:
    parts = {bits.part: bits.bytes for bits in bits_map(plan).by_role}
    return memory_of(shape_of_plan(plan, metadata), RunSetup(context=context), parts)


def cache_of(found: Memory) -> MemoryPart:
    return found.runtime[0]


@pytest.mark.parametrize("metadata", [big_metadata(), None], ids=["metadata", "plan alone"])
def test_cache_of_deepseek_v3(big: Plan, metadata: dict[str, MetaValue] | None) -> None:
    """docs/sources.md, V3 sizes: 70,272 bytes a token, 549 MiB at 8k."""
    found = memory(big, metadata)
    assert found.kv_bytes_per_token == 70_272
    assert cache_of(found).bytes == 70_272 * 8192
    assert round(70_272 * 8192 / 2**20) == 549
    assert cache_of(found).certainty == "exact"
    assert found.complete == (metadata is not None)


def test_weights_add_up_to_the_file(big: Plan) -> None:
    found = memory(big, big_metadata())
    assert sum(part.bytes or 0 for part in found.weights) == big.bytes > BUDGET
    assert found.total == big.bytes + sum(part.bytes or 0 for part in found.runtime)


def test_context_is_rounded_up_to_256(big: Plan) -> None:
    assert cache_of(memory(big, None, 1000)).bytes == 70_272 * 1024


def keys(architecture: str, **values: object) -> dict[str, MetaValue]:
    kinds = {list: GGUFValueType.ARRAY}
    return {
        f"{architecture}.{name.replace('__', '.')}": MetaValue(value, kinds.get(type(value), GGUFValueType.UINT32))
        for name, value in values.items()
    }


def test_ordinary_attention(qwen3moe: Path) -> None:
    """2 layers, 2 KV heads of 64 for keys and as much for values."""
    checkpoint = open_gguf(qwen3moe)
    plan = copy_plan(checkpoint)
    for metadata in (dict(checkpoint.metadata), None):
        assert memory(plan, metadata).kv_bytes_per_token == 2 * 2 * (64 + 64) * 2
    layered = {**checkpoint.metadata, **keys("qwen3moe", attention__head_count_kv=[2, 1])}
    assert memory(plan, layered).kv_bytes_per_token == (2 + 1) * (64 + 64) * 2
    sliding = {**checkpoint.metadata, **keys("qwen3moe", attention__sliding_window=128)}
    assert cache_of(memory(plan, sliding)).certainty == "upper bound"


def test_head_sizes_default_to_the_width_over_the_heads(qwen3moe: Path) -> None:
    plan = copy_plan(open_gguf(qwen3moe))
    metadata = keys("qwen3moe", embedding_length=256, attention__head_count=4)
    assert memory(plan, metadata).kv_bytes_per_token == 2 * 4 * (64 + 64) * 2


def test_keys_that_are_no_numbers_are_a_mistake(qwen3moe: Path) -> None:
    plan = copy_plan(open_gguf(qwen3moe))
    with pytest.raises(CollabError, match=r"head_count is 'many'"):
        memory(plan, keys("qwen3moe", attention__head_count="many"))


def test_what_sizes_do_not_tell_is_left_out(big: Plan) -> None:
    """The older form of MLA caches keys and values of all heads, whatever attn_kv_a_mqa's size."""
    import dataclasses

    older = dataclasses.replace(big, tensors={**big.tensors, "blk.0.attn_kv_b.weight": big.tensors["output.weight"]})
    found = memory(older, None)
    assert cache_of(found).bytes is None
    assert "give the model" in cache_of(found).how
    assert not found.complete


@pytest.mark.native
@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2"])
@pytest.mark.parametrize("context", [512, 3000])
def test_llama_cpp_allocates_as_much(architecture: str, context: int, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(architecture)
    command = [sys.executable, "-c", LLAMA, str(path), str(context)]
    log = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    cache, compute = (
        float(re.findall(rf"CPU {what} buffer size = *([\d.]+) MiB", log)[-1]) for what in ("KV", "compute")
    )
    checkpoint = open_gguf(path)
    found = memory(copy_plan(checkpoint), dict(checkpoint.metadata), context)
    assert (cache_of(found).bytes or 0) / 2**20 == pytest.approx(cache, abs=0.005)
    estimate = (found.runtime[1].bytes or 0) / 2**20
    assert estimate == pytest.approx(compute, rel=0.35), f"{estimate:.2f} MiB, llama.cpp allocates {compute:.2f}"
