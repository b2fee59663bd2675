"""Placements of a small model: what lies where, shares, speeds by hand, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from small_models.tiny_moe import some_stats

import collab_plugin as cp
from collab_plugin.api.place import tier_of
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.placement.expert_tensors import TypedBytes, expert_tensors, other_reads, read_matrices
from collab_plugin.placement.place_tensors import place_tensors, worth_the_same
from collab_plugin.placement.placement import Tier
from collab_plugin.placement.tier_rooms import TierRoom, TierSpeed, total_seconds
from collab_plugin.stats.stats_file import write_stats

SETUP = cp.RunSetup(context=256, reserve=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurement of this machine decides a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def stats(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("place") / "stats.gguf"
    checkpoint, random = open_gguf(qwen3moe), np.random.default_rng(0)
    topology = cp.topology_of(checkpoint)
    counts = {layer: random.integers(1, 1000, topology.expert_count) for layer in topology.moe_layers}
    routing = {layer: cp.LayerRouting(1000, count) for layer, count in counts.items()}
    write_stats(path, replace(some_stats(checkpoint), routing=routing))
    return path


def sizes(model: Path) -> tuple[int, int]:
    """What must lie in the first tier, and the bytes of all experts."""
    placed = cp.place(model, tiers=["gpu=1TB"], setup=SETUP)
    experts = sum(tensor.bytes for tensor in expert_tensors(open_gguf(model), 1))
    return placed.memory.total - experts, experts


def tiers(model: Path, share: float) -> list[str]:
    always, experts = sizes(model)
    return [f"gpu={always + int(share * experts)}@100GB", f"ram={experts}@10GB"]


def test_matrices_that_are_timed_are_all_that_a_token_is_multiplied_with(qwen3moe: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    used = cp.topology_of(checkpoint).experts_used
    matrices = read_matrices(checkpoint, used)
    one_row = sum(info.nbytes for info in checkpoint.tensors.values() if len(info.shape) == 1)
    read = sum(part.bytes for part in other_reads(checkpoint.tensors.values())) - one_row
    assert sum(m.bytes for m in matrices) == read + sum(tensor.read for tensor in expert_tensors(checkpoint, used))
    assert len({(m.type, m.columns, m.rows, m.used) for m in matrices}) == len(matrices)
    for info in checkpoint.tensors.values():
        if info.role == cp.Role.EXPERT:
            assert any((m.columns, m.rows, m.used) == (info.shape[2], info.shape[1], used) for m in matrices)


def test_half_the_experts(qwen3moe: Path, stats: Path) -> None:
    placed = cp.place(qwen3moe, tiers=tiers(qwen3moe, 0.5), stats=stats, setup=SETUP, policy="most-selected")
    experts = placed.placement.experts
    assert experts is not None
    routing = cp.read_stats(stats).routing
    total = dict.fromkeys(("gpu", "ram"), 0)
    for layer, here in experts.layers.items():
        count = routing[layer].count
        assert here.reads["gpu"] == pytest.approx(count[list(here.tiers["gpu"])].sum() / count.sum())
        assert [count[e] for e in here.tiers["gpu"]] == sorted(count[list(here.tiers["gpu"])], reverse=True)
        for tier, ids in here.tiers.items():
            total[tier] += len(ids)
    assert total["gpu"] == total["ram"]
    coldest = min(count for layer, here in experts.layers.items() for count in
                  routing[layer].count[list(here.tiers["gpu"])] / routing[layer].count.sum())  # fmt: skip
    hottest = max(count for layer, here in experts.layers.items() for count in
                  routing[layer].count[list(here.tiers["ram"])] / routing[layer].count.sum())  # fmt: skip
    assert coldest >= hottest, "over all layers"
    assert sum(experts.reads.values()) == pytest.approx(1)
    assert experts.reads["gpu"] > 0.5
    whole = placed.placement.tensors
    assert whole.fit
    assert whole.reads["gpu"] == pytest.approx(0.5)
    assert placed.contents[0].tensor_bytes <= sizes(qwen3moe)[1] // 2


def test_speed_is_bytes_by_bandwidth(qwen3moe: Path, stats: Path) -> None:
    placed = cp.place(qwen3moe, tiers=tiers(qwen3moe, 0.5), stats=stats, setup=SETUP, policy="most-selected")
    checkpoint = open_gguf(qwen3moe)
    used = cp.topology_of(checkpoint).experts_used
    read = sum(tensor.read for tensor in expert_tensors(checkpoint, used))
    others = sum(part.bytes for part in other_reads(checkpoint.tensors.values()))
    experts = placed.placement.experts
    assert experts is not None and experts.speed is not None
    seconds = (others + read * experts.reads["gpu"]) / 100e9 + read * experts.reads["ram"] / 10e9
    assert experts.speed.roof == experts.speed.expected == pytest.approx(1 / seconds)
    assert experts.speed.error is None


def test_a_trace_compares_policies_and_the_fastest_is_taken(qwen3moe: Path, stats: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    topology = cp.topology_of(checkpoint)
    # Long runs of the same few experts: a cache serves them, whatever the statistics say.
    chosen = np.stack([
        np.stack([np.arange(topology.experts_used) + 2 * (token // 100) for _ in topology.moe_layers])
        for token in range(200)
    ]).astype(np.int16) % topology.expert_count  # fmt: skip
    trace = cp.RoutingTrace(chosen, topology.moe_layers, topology.expert_count)
    placed = cp.place(qwen3moe, tiers=tiers(qwen3moe, 0.5), stats=stats, trace=trace, setup=SETUP)
    experts = placed.placement.experts
    assert experts is not None and experts.policy.dynamic
    rows = {outlook.row.policy: outlook for outlook in placed.policies}
    assert rows[experts.policy.name].row.hits == experts.reads["gpu"] > 0.9
    assert rows["optimum"].row.hits == max(o.row.hits or 0 for o in placed.policies)
    assert max(o.tokens_per_second or 0 for n, o in rows.items() if n != "optimum") == (
        rows[experts.policy.name].tokens_per_second
    )
    curves = cp.hit_rates(qwen3moe, trace, stats=stats)
    assert all(curve.hits[-1] is not None and curve.hits[-1] > 0.9 for curve in curves)
    with pytest.raises(cp.CollabError, match="the trace has 1 layers"):
        cp.place(qwen3moe, tiers=["gpu=1TB"], trace=cp.RoutingTrace(chosen[:, :1], (0,), 4), setup=SETUP)
    other = cp.RoutingTrace(chosen, topology.moe_layers, topology.expert_count, model_id="sha256:other")
    with pytest.raises(cp.CollabError, match="of another model"):
        cp.place(qwen3moe, tiers=["gpu=1TB"], trace=other, setup=SETUP)


def rooms(slow: dict[str, float], room: int) -> list[TierRoom]:
    fast = TierSpeed(100e9, {}, 100e9)
    host = TierSpeed(10e9, slow, 10e9)
    return [TierRoom(Tier("gpu", "gpu", 1), fast, room), TierRoom(Tier("ram", "host", 1), host, None)]


def test_the_type_that_gains_most_a_byte_is_first(qwen3moe: Path) -> None:
    tensors = [
        replace(t, type="IQ2_XXS" if "down" in t.name else "Q8_0") for t in expert_tensors(open_gguf(qwen3moe), 2)
    ]
    small = sum(t.bytes for t in tensors if t.type == "IQ2_XXS")
    slow_down, slow_up = rooms({"IQ2_XXS": 1e9, "Q8_0": 10e9}, small), rooms({"IQ2_XXS": 10e9, "Q8_0": 1e9}, small)
    placed = place_tensors(tensors, slow_down)
    assert {name for name, tier in placed.items() if tier == "gpu"} == {t.name for t in tensors if "down" in t.name}
    assert not worth_the_same(tensors, slow_down)
    assert not any("down" in name for name, tier in place_tensors(tensors, slow_up).items() if tier == "gpu")
    assert worth_the_same(tensors, rooms({}, small))


def test_seconds() -> None:
    speed, unknown = TierSpeed(10.0, {"Q8_0": 5.0}, None), TierSpeed(None, {}, None)
    parts = [(speed, [TypedBytes("Q8_0", 10), TypedBytes("F32", 10)])]
    assert (total_seconds(parts, roof=False), total_seconds(parts, roof=True)) == (3.0, 2.0)
    assert total_seconds([(unknown, [TypedBytes("F32", 1)])], roof=True) is None
    assert total_seconds([(unknown, [TypedBytes("F32", 0)])], roof=True) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu=24GB", Tier("gpu", "gpu", 24 * 10**9)),
        ("gpu1=24GiB@1008GB/s", Tier("gpu1", "gpu", 24 * 2**30, 1008e9)),
        ("disk", Tier("disk", "disk", None)),
        ("unified=128GB", Tier("unified", "unified", 128 * 10**9)),
    ],
)
def test_tiers_as_people_write_them(text: str, expected: Tier) -> None:
    assert tier_of(text) == expected


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        ([], "`tiers` is empty"),
        (["tape=1GB"], "'tape=1GB' is no memory"),
        (["ram"], "has no size"),
        (["ram=lots"], "is no size"),
        (["disk", "ram=1GB"], "begins with disk"),
        (["gpu=1MB"], "take "),
    ],
)
def test_what_is_refused(tiers: list[str], words: str, qwen3moe: Path) -> None:
    with pytest.raises(cp.CollabError, match=words):
        cp.place(qwen3moe, tiers=tiers, setup=SETUP)


def test_tiers_that_are_too_small(qwen3moe: Path) -> None:
    always, experts = sizes(qwen3moe)
    with pytest.raises(cp.CollabError, match="the tiers hold 1,000 bytes less than the model"):
        cp.place(qwen3moe, tiers=[f"gpu={always + 1000}", f"ram={experts - 2000}"], setup=SETUP)
    with pytest.raises(cp.CollabError, match="moves experts, and needs room"):
        cp.place(qwen3moe, tiers=[f"gpu={always}", "disk"], setup=SETUP, policy="lru")
    with pytest.raises(cp.CollabError, match="unknown placement policy 'best'"):
        cp.place(qwen3moe, tiers=["gpu=1TB"], setup=SETUP, policy="best")


@pytest.mark.parametrize(
    ("policy", "parameters", "words"),
    [
        ("lfu-decay", {"fade": 0.9}, "'lfu-decay' has no parameter 'fade'; known: decay"),
        ("lru", {"decay": 0.9}, "'lru' has no parameter 'decay'; known: it has none"),
        ("lfu-decay", {"decay": 1.0}, "decay=1 of placement policy 'lfu-decay': give a number above 0 and below 1"),
        ("lfu-steady", {"rate": float("nan")}, "rate=nan of placement policy 'lfu-steady': give a number above 0"),
        (None, {"decay": 0.9}, "are a policy's: name the placement policy too"),
        ("best", {"decay": 0.9}, "unknown placement policy 'best'"),
    ],
)
def test_parameters_that_are_refused(
    policy: str | None, parameters: dict[str, float], words: str, qwen3moe: Path
) -> None:
    with pytest.raises(cp.CollabError, match=words):
        cp.place(qwen3moe, tiers=["gpu=1TB"], setup=SETUP, policy=policy, parameters=parameters)


def test_a_policy_is_compared_with_the_parameters_that_it_was_given(qwen3moe: Path) -> None:
    """Some experts are used more than others: the longest memory foretells best, which weights find out at a rate."""
    random = np.random.default_rng(0)
    topology = cp.topology_of(open_gguf(qwen3moe))
    layers, experts = topology.moe_layers, topology.expert_count
    often = 1 / np.arange(1, experts + 1)

    def drawn() -> NDArray[np.int64]:
        return np.sort(random.choice(experts, topology.experts_used, replace=False, p=often / often.sum()))

    chosen = np.array([[drawn() for _ in layers] for _ in range(600)], np.int16)
    trace = cp.RoutingTrace(chosen, layers, experts)
    hits = []
    for rate in (0.01, 0.99):
        told: dict[str, Any] = {"policy": "lfu-steady", "parameters": {"rate": rate}}
        placed = cp.place(qwen3moe, tiers=tiers(qwen3moe, 0.6), setup=SETUP, trace=trace, **told)
        assert placed.placement.experts is not None
        assert placed.placement.experts.policy == cp.PolicyUse("lfu-steady", {"trust": 0.9, "rate": rate}, True)
        hits += [outlook.row.hits for outlook in placed.policies if outlook.row.policy == "lfu-steady"]
    assert hits[0] != hits[1]


def test_notes(qwen3moe: Path) -> None:
    placed = cp.place(qwen3moe, tiers=["unified=1TB"], setup=SETUP).placement
    assert any("moves no byte" in note for note in placed.notes)
    assert any("no statistics" in note for note in placed.notes)
    assert any("the bandwidth of unified is not known" in note for note in placed.notes)
    assert placed.tensors.speed is None


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.native
def test_the_command_and_a_run_with_its_placement(qwen3moe: Path, stats: Path, tmp_path: Path) -> None:
    out, (always, experts) = tmp_path / "p.json", sizes(qwen3moe)
    options = ("--stats", stats, "--reserve", 0, "--context", 256, "--threads", 1, "--measure")
    result = run("place", qwen3moe, "--tier", f"ram={always + experts}", *options, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    placement = cp.read_placement(out)
    assert placement.tiers[0].measured and placement.stats is not None
    assert told["contents"][0]["tensor_bytes"] == experts
    speed = placement.tensors.speed
    assert speed is not None and 0 < speed.expected <= speed.roof
    assert any("whole tensors" in said for said in told["honours"]["llamacpp"])
    plain = run("run", qwen3moe, "-p", "hello", "-n", 20, "--threads", 1, "--json")
    with_it = run("run", qwen3moe, "-p", "hello", "-n", 20, "--threads", 1, "--json", "--placement", out)
    assert json.loads(with_it.stdout)["text"] == json.loads(plain.stdout)["text"], with_it.output
    again = run("place", qwen3moe, "--tier", f"ram={always + experts}", *options[:-1], "-o", out)
    assert "earlier forecasts here were off by" in again.stdout, again.output


@pytest.mark.native
def test_a_placement_of_another_model(qwen3moe: Path, deepseek2: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    assert run("place", deepseek2, "--tier", "ram=1TB", "-o", out).exit_code == 0
    result = run("run", qwen3moe, "-p", "hello", "--placement", out)
    assert result.exit_code == 2
    assert "the placement is for another model" in result.output
