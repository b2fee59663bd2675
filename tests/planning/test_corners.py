"""Corners where plans and stats once went wrong: odd numbers, missing statistics, order, types only copied."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, quants
from small_models.gguf_copies import write_copy
from small_models.model_bench import Bench, load
from small_models.odd_stats import with_key
from test_planner import FAST, _bytes
from test_pruning import topology

from collab_plugin.errors import CollabError
from collab_plugin.planning.pruning import parse_keep
from collab_plugin.plans.plan_diff import PlanDiff, diff_plans
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan, write_plan
from collab_plugin.stats.stats_file import read_stats


@pytest.mark.parametrize("t", ["inf%", "1.e999", "-inf%"])
def test_inf(t: str) -> None:
    with pytest.raises(CollabError):
        parse_keep(t, topology(), "none")


def test_ceiling(softmax: Bench) -> None:
    p = softmax.plan(_bytes(softmax, 20), ceilings={"expert": "Q4_K"}, types=FAST)
    assert {t.type for n, t in p.tensors.items() if "_exps" in n} == {"Q4_K"}


def test_empty_kept(softmax: Bench, tmp_path: Path) -> None:
    p = softmax.plan(None, keep_types=True)
    p = dataclasses.replace(p, pruning=dataclasses.replace(p.pruning, expert_count=0, kept={0: ()}))
    write_plan(tmp_path / "p.json", p)
    with pytest.raises(CollabError):
        read_plan(tmp_path / "p.json")


def test_missing_layer(softmax: Bench) -> None:
    s = dataclasses.replace(
        softmax.source, stats=dataclasses.replace(softmax.source.stats, routing={0: softmax.source.stats.routing[0]})
    )
    with pytest.raises(CollabError):
        softmax.plan(None, source=s, keep_types=True, keep="12", allow_few_tokens=True)


def test_order_importance_missing_layer(softmax: Bench) -> None:
    s = dataclasses.replace(softmax.source, stats=dataclasses.replace(softmax.source.stats, routing={}))
    with pytest.raises(CollabError):
        softmax.plan(None, source=s, keep_types=True, order="importance")


def test_diff_sees_order(softmax: Bench) -> None:
    a, b = (softmax.plan(None, keep_types=True, keep="12", order=o) for o in ("original", "importance"))
    assert plan_fingerprint(a) != plan_fingerprint(b)
    assert diff_plans(a, b) != PlanDiff({}, {}, {}, {})


@pytest.mark.parametrize("member", ["model_id", "original", "text_sketch"])
def test_fingerprint_covers_what_goes_into_the_file(softmax: Bench, member: str) -> None:
    p = softmax.plan(None, keep_types=True)
    q = {
        "model_id": lambda: dataclasses.replace(p, source=dataclasses.replace(p.source, model_id="sha256:" + "1" * 64)),
        "original": lambda: dataclasses.replace(p, activation=dataclasses.replace(p.activation, original=9)),
        "text_sketch": lambda: dataclasses.replace(
            p, calibration=dataclasses.replace(p.calibration, text_sketch="AAAAAAAAAAA=")
        ),
    }[member]()
    assert plan_fingerprint(p) != plan_fingerprint(q)


def test_odd_stored(softmax: Bench, tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q4_1
    source = softmax.checkpoint
    experts = {n: (quants.quantize(source.read(n), kind), kind) for n in source.tensors if "_exps" in n}
    write_copy(softmax.path, tmp_path / "m.gguf", tensors=experts)
    b = load(tmp_path / "m.gguf", softmax.stats_path, softmax.kernels)
    p = b.plan(None, keep_types=True)
    write_plan(tmp_path / "p.json", p)
    read_plan(tmp_path / "p.json")
    p = b.plan(_bytes(b, 6), types=FAST)
    assert {t.type for n, t in p.tensors.items() if "_exps" in n} == {"Q4_1"}
    write_plan(tmp_path / "p.json", p)
    read_plan(tmp_path / "p.json")


@pytest.mark.slow  # measures all types
def test_more_bytes_never_cost_more(softmax: Bench) -> None:
    costs = [softmax.plan(_bytes(softmax, bpw)).predicted_kld for bpw in (2.0, 2.1, 2.5)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("imatrix.chunk_size", -512, GGUFValueType.INT32),
        ("collab.stats.tokens", -1, GGUFValueType.INT64),
        ("collab.stats.layer_tokens.1", "many", GGUFValueType.STRING),
        ("collab.stats.layer_tokens.1", ["many"], GGUFValueType.ARRAY),
        ("collab.stats.ngrams", ["not", "numbers"], GGUFValueType.ARRAY),
    ],
)
def test_stats_keys(key: str, value: object, kind: GGUFValueType, tmp_path: Path) -> None:
    with pytest.raises(CollabError):
        read_stats(with_key(tmp_path / "stats.gguf", key, value, kind))


def test_small_evaluation_text_inside_long_calibration_text() -> None:
    """All of the evaluation text was calibrated on, yet the reported share must stay above evaluate's threshold."""
    from collab_plugin.cli.evaluate import OVERLAP_WARNING
    from collab_plugin.stats.text_overlap import overlap, sketch

    text = np.random.default_rng(1).integers(0, 32000, 2_000_000)
    assert overlap(sketch(text), text[:10_000]) > OVERLAP_WARNING
