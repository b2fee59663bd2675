"""Whether a model fits a machine: bytes added up by hand, the context at the edge, the roof of the bandwidth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf import GGUFValueType

import collab_plugin as cp
from collab_plugin.cli.main import main
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.placement.artifact_shape import ArtifactShape, TensorSize, shape_of_checkpoint
from collab_plugin.placement.machine_fit import budget_for, fit
from collab_plugin.placement.machines import Machine, MachineMemory, known_machines, machine_named, read_bandwidth
from collab_plugin.placement.memory import memory_of


def one_tier(size: int, bandwidth: float = 1e9) -> Machine:
    return Machine("one", "one", (MachineMemory("memory", "host", size, 1.0, bandwidth),), "", False)


def hand_made() -> ArtifactShape:
    """10 bytes of attention, 6 of output, 4 of embedding, 80 of experts (8 of them, 2 used)."""
    sizes = {
        "token_embd.weight": 4,
        "blk.0.attn_q.weight": 10,
        "blk.0.ffn_up_exps.weight": 80,
        "output.weight": 6,
    }
    keys = {"embedding_length": 1, "attention.head_count": 1, "attention.key_length": 1, "attention.value_length": 1}
    metadata = {f"made.{name}": MetaValue(value, GGUFValueType.UINT32) for name, value in keys.items()}
    return ArtifactShape("made", "made", metadata, {n: TensorSize(s, s) for n, s in sizes.items()}, 8, 2, 100)


def test_a_token_reads_all_but_the_embedding_and_the_experts_it_does_not_use() -> None:
    shape = hand_made()
    assert shape.active_bytes == 10 + 6 + 80 * 2 // 8
    tied = dataclasses.replace(shape, tensors={n: t for n, t in shape.tensors.items() if n != "output.weight"})
    assert tied.active_bytes == 10 + 4 + 20


def test_the_roof_is_bandwidth_over_bytes() -> None:
    found = fit(hand_made(), one_tier(10**9, bandwidth=3600.0), cp.RunSetup(context=256, reserve=0))
    assert found.tokens_per_second[0] == pytest.approx(3600 / 36)
    # Two f16 values a token, 256 tokens.
    assert found.tokens_per_second[1] == pytest.approx(3600 / (36 + 4 * 256))


def test_experts_lie_where_there_is_room_and_are_read_alike() -> None:
    setup = cp.RunSetup(context=256, reserve=0)
    always = memory_of(hand_made(), setup, {}).total - 80
    fast = MachineMemory("gpu", "gpu", always + 20, 1.0, 1e6)
    machine = Machine("two", "two", (fast, MachineMemory("host", "host", 60, 1.0, 1e3)), "", False)
    found = fit(hand_made(), machine, setup)
    assert [(use.name, use.bytes, use.read) for use in found.tiers] == [("gpu", always + 20, 16 + 5), ("host", 60, 15)]
    assert found.tokens_per_second[0] == pytest.approx(1 / (21 / 1e6 + 15 / 1e3))
    assert found.spare == 0
    assert found.fits


def test_the_largest_context_fits_and_the_next_does_not(qwen3moe: Path) -> None:
    shape = shape_of_checkpoint(cp.open_checkpoint(qwen3moe))
    at_edge = memory_of(shape, cp.RunSetup(context=512, reserve=0), {}).total
    found = fit(shape, one_tier(at_edge), cp.RunSetup(context=256, reserve=0))
    assert found.largest_context == 512
    assert found.fits
    assert fit(shape, one_tier(at_edge - 1), cp.RunSetup(context=256, reserve=0)).largest_context == 256
    # No more than the model was trained for.
    assert fit(shape, one_tier(10**9), cp.RunSetup(context=256, reserve=0)).largest_context == 512


@pytest.mark.parametrize(("kv_type", "share"), [("f32", 2.0), ("q8_0", 34 / 64), ("q4_0", 18 / 64)])
def test_the_cache_takes_what_its_type_takes(qwen3moe: Path, kv_type: str, share: float) -> None:
    shape = shape_of_checkpoint(cp.open_checkpoint(qwen3moe))
    whole = memory_of(shape, cp.RunSetup(sequences=3), {}).runtime[0].bytes
    other = memory_of(shape, cp.RunSetup(sequences=3, kv_type=kv_type), {}).runtime[0].bytes  # type: ignore[arg-type]
    assert whole == 3 * 8192 * 2 * 2 * (64 + 64) * 2
    assert other == share * whole


def test_a_budget_leaves_room_for_the_rest(qwen3moe: Path) -> None:
    shape, setup = shape_of_checkpoint(cp.open_checkpoint(qwen3moe)), cp.RunSetup(context=512, reserve=1000)
    rest = memory_of(shape, setup, {}).total - shape.bytes
    assert budget_for(shape, 10**9, setup) == 10**9 - rest
    with pytest.raises(cp.CollabError, match=f"take {rest:,} bytes of the {rest:,} that there are; lower `context`"):
        budget_for(shape, rest, setup)


def test_known_machines_are_complete() -> None:
    assert {"strix-halo-128", "dgx-spark", "mac-studio-512", "gpu24-ram64"} <= set(known_machines())
    for machine in known_machines().values():
        speeds = [tier.bandwidth for tier in machine.tiers]
        assert speeds == sorted(speeds, reverse=True)
        assert all(0 < tier.usable <= 1 and tier.kind in ("gpu", "host", "unified") for tier in machine.tiers)
    with pytest.raises(cp.CollabError, match="`machine` 'toaster' is not known; known: strix-halo-128"):
        machine_named("toaster")


def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < read_bandwidth(1) < 1e12


def test_command(qwen3moe: Path) -> None:
    done = CliRunner().invoke(main, ["fit", str(qwen3moe), "--machine", "gpu24-ram64", "--context", "512"])
    assert done.exit_code == 0, done.output
    assert "With 512 tokens of context it fits" in done.output
    assert "bandwidth the maker's" in done.output
    small = CliRunner().invoke(main, ["fit", str(qwen3moe), "--memory", "1MiB", "--json"])
    result = json.loads(small.stdout)
    assert (result["fits"], result["largest_context"]) == (False, 0)
    twice = CliRunner().invoke(main, ["fit", str(qwen3moe), "--memory", "1GiB", "--machine", "dgx-spark"])
    assert twice.exit_code == 2
    assert twice.stderr == "error: --memory and --machine say the same thing twice: give one\n"
    wrong = CliRunner().invoke(main, ["fit", str(qwen3moe), "--memory", "much"])
    assert wrong.exit_code == 2
    assert wrong.stderr == "error: --memory 'much' is no size; write 128GB, 96GiB or a number of bytes\n"


def test_plan_for_a_memory_and_not_for_two_things(qwen3moe: Path, tmp_path: Path) -> None:
    command = ["plan", str(qwen3moe), "-o", str(tmp_path / "plan.json"), "--keep-types", "--memory", "2GiB"]
    done = CliRunner().invoke(main, [*command, "--context", "512"])
    assert done.exit_code == 0, done.output
    plan = cp.read_plan(tmp_path / "plan.json")
    shape = shape_of_checkpoint(cp.open_checkpoint(qwen3moe))
    assert plan.budget == budget_for(shape, 2**31, cp.RunSetup(context=512))
    assert any("1 x 512 tokens of f16 KV cache" in note for note in plan.notes)
    twice = CliRunner().invoke(main, [*command, "--budget", "1GB"])
    assert twice.exit_code == 2
    assert "--budget and --memory or --machine say the same thing twice" in twice.stderr
