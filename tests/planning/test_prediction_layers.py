"""Layers that predict further tokens: kept whole where nothing is pruned, dropped where something is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFValueType
from small_models.llama_cpp_calls import logits
from small_models.tiny_moe import write_deepseek2

import collab_plugin as cp
from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.prediction_layers import prediction_layers, trunk
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer, a layer of 4 experts, and one for prediction, of 4 experts too."""
    return write_deepseek2(tmp_path_factory.mktemp("predicting") / "model.gguf", predicting=1)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as it is without the last layer."""
    return write_deepseek2(tmp_path_factory.mktemp("trunk") / "model.gguf")


@pytest.fixture(scope="module")
def stats(model: Path, text: Path) -> cp.Stats:
    return cp.calibrate(model, texts=[text], ctx=64, threads=1)


def test_they_are_no_layers_with_experts(model: Path, without: Path) -> None:
    topology = topology_of(open_gguf(model))
    assert (topology.block_count, topology.moe_layers, topology.prediction_layers) == (3, (1,), (2,))
    shown = CliRunner().invoke(main, ["inspect", str(model)])
    assert "3 layers, 1 of them with 4 experts" in shown.output
    assert "prediction layer blk.2 beside, for speculative decoding" in shown.output
    assert json.loads(CliRunner().invoke(main, ["inspect", str(without), "--json"]).output)["prediction_layers"] == []


@pytest.mark.native
def test_statistics_of_either_file_serve_both(model: Path, without: Path, stats: cp.Stats) -> None:
    assert set(stats.routing) == {1}
    assert stats.model_id == model_id(open_gguf(model)) == model_id(open_gguf(without))


@pytest.mark.native
@pytest.mark.parametrize("keep", ["75%", "3"])
def test_pruning_drops_them(keep: str, model: Path, without: Path, stats: cp.Stats, tmp_path: Path) -> None:
    """The file is the one that is made of the model without that layer, and llama.cpp runs it."""
    made = []
    for source, name in ((model, "predicting"), (without, "trunk")):
        plan = cp.plan(source, stats=stats, keep=keep, keep_types=True, allow_few_tokens=True)
        cp.compress(source, plan, tmp_path / f"{name}.gguf", threads=1)
        made.append((plan, open_gguf(tmp_path / f"{name}.gguf")))
    (plan, cut), (_, expected) = made
    assert [note.split(":")[0] for note in plan.notes] == ["DROPPED"]
    assert plan.notes[0].startswith("DROPPED: prediction layer blk.2, 4,859,408 bytes for speculative")
    assert plan.bytes == cut.path.stat().st_size
    assert cut.metadata["deepseek2.block_count"].value == 2
    assert cut.metadata["deepseek2.nextn_predict_layers"].value == 0
    assert cut.metadata["deepseek2.expert_count"].value == 3
    assert list(cut.tensors) == list(expected.tensors)
    for tensor in expected.tensors:
        assert cut.read_raw(tensor).tobytes() == expected.read_raw(tensor).tobytes()
    np.testing.assert_array_equal(logits(cut.path), logits(expected.path))


@pytest.mark.native
def test_without_pruning_they_stay(model: Path, without: Path, stats: cp.Stats, tmp_path: Path) -> None:
    plan = cp.plan(model, stats=stats, keep="100%", keep_types=True)
    assert plan.notes == (
        "KEPT: prediction layer blk.2, for speculative decoding; no engine shows what matters in them",
    )
    cp.compress(model, plan, tmp_path / "out.gguf", threads=1)
    whole = open_gguf(tmp_path / "out.gguf")
    assert set(whole.tensors) == set(open_gguf(model).tensors)
    assert prediction_layers(whole) == (2,)
    importance = cp.report(plan, stats=stats).importance
    assert importance is not None
    assert importance.layers == (1,)
    np.testing.assert_allclose(logits(whole.path), logits(without), atol=1e-4)


@pytest.mark.native
def test_quantized_without_importance(model: Path, stats: cp.Stats, tmp_path: Path) -> None:
    plan = cp.plan(model, stats=stats, keep="100%", budget="4bpw", types="IQ2_XXS,Q4_K", threads=1)
    told = next(note for note in plan.notes if note.startswith("NO IMPORTANCE"))
    assert "blk.2." in told
    assert {t.type for n, t in plan.tensors.items() if n.startswith("blk.2.") and "_exps" in n} <= {"Q2_K", "Q4_K"}
    cp.compress(model, plan, tmp_path / "out.gguf", stats=stats, threads=1)
    assert np.isfinite(logits(tmp_path / "out.gguf")).all()


@pytest.mark.native
def test_auto_drops_them_where_pruning_is_weighed(model: Path, stats: cp.Stats) -> None:
    options = {"budget": "6bpw", "types": "Q4_K", "allow_few_tokens": True, "threads": 1}
    weighed = cp.plan(model, stats=stats, **options)  # type: ignore[arg-type]  # by name
    assert not any(name.startswith("blk.2.") for name in weighed.tensors)
    blind = cp.plan(model, **options)  # type: ignore[arg-type]  # by name
    assert any(name.startswith("blk.2.") for name in blind.tensors)


@pytest.mark.native
def test_a_plan_of_another_model_is_refused_still(model: Path, stats: cp.Stats, tmp_path: Path) -> None:
    plan = cp.plan(model, stats=stats, keep="3", keep_types=True, allow_few_tokens=True)
    other = write_deepseek2(tmp_path / "other.gguf", predicting=1, seed=1)
    with pytest.raises(CollabError, match="the plan was made for another checkpoint than"):
        cp.compress(other, plan, tmp_path / "out.gguf")


def with_key(model: Path, key: str, value: MetaValue) -> Checkpoint:
    checkpoint = open_gguf(model)
    checkpoint.metadata = {**checkpoint.metadata, key: value}
    return checkpoint


@pytest.mark.parametrize("count", [3, 7])
def test_as_many_as_layers(count: int, model: Path) -> None:
    odd = with_key(model, "deepseek2.nextn_predict_layers", MetaValue(count, GGUFValueType.UINT32))
    with pytest.raises(CollabError, match=f"claims {count} prediction layers among 3 layers"):
        topology_of(odd)


def test_keys_with_a_value_a_layer_are_cut(model: Path) -> None:
    key = "deepseek2.attention.sliding_window_pattern"
    cut = trunk(with_key(model, key, MetaValue([1, 0, 1], GGUFValueType.ARRAY, GGUFValueType.UINT32)))
    assert cut.metadata[key].value == [1, 0]
    assert trunk(cut) is cut
