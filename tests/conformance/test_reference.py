"""The reference against transformers on the original checkpoints, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collab_conformance.measures import nmse
from collab_conformance.reference.hyperparameters import read_hyperparameters
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray
from small_models.converted import as_gguf
from small_models.f32_models import as_f32, with_config
from small_models.few_bits import few_bits
from small_models.gguf_copies import write_copy, write_split
from small_models.torch_python import MODELS, ROOT, compute

from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint

F64 = NDArray[np.float64]
TOKENS = [*range(40, 3000, 37), 11, 11, 12, 900, 3]
DEEPSEEK, QWEN = MODELS / "tiny-deepseek-v3", MODELS / "tiny-qwen3moe"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
GROUP_KEYS = {"groups": "group_count", "groups_used": "group_used_count"}
VARIANTS: dict[str, tuple[Path, dict[str, Any]]] = {
    "qwen3moe": (QWEN, {}),
    "qwen3moe-yarn": (QWEN, {"rope_scaling": YARN, "rope_parameters": YARN}),
    "qwen3moe-linear": (QWEN, {"rope_scaling": LINEAR, "rope_parameters": LINEAR}),
    "deepseek": (DEEPSEEK, {}),
    "deepseek-yarn": (DEEPSEEK, {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7, "beta_fast": 16}}),
    "deepseek-one-group": (DEEPSEEK, {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model, changes = VARIANTS[request.param]
    work = tmp_path_factory.mktemp(request.param)
    folder = with_config(model, work / "model", changes)
    gguf = as_f32(folder, work / "model.gguf")
    found = compute(gguf, TOKENS, work / "out.npz", folder)
    reader = GGUFReader(gguf)
    biases = [t.data for t in reader.tensors if t.name.endswith("exp_probs_b.bias")]
    if biases:
        keys = {name: reader.get_field(f"deepseek2.expert_{key}") for name, key in GROUP_KEYS.items()}
        found |= {name: np.array(field.contents() if field else 1) for name, field in keys.items()}
        found["bias"] = np.stack(biases)
    return found


@pytest.mark.slow
def test_logits_are_those_of_transformers(both: dict[str, Any]) -> None:
    assert both["logits"].shape == (len(TOKENS), 3072)
    assert nmse(both["original"], both["logits"]) <= 1e-6


@pytest.mark.slow
def test_routing_is_that_of_transformers(both: dict[str, Any]) -> None:
    for layer in range(len(both["layers"])):
        ids, weights = both[f"{layer}.ids"], both[f"{layer}.weights"]
        original = both[f"original.{layer}.ids"]
        # transformers chooses in float32, so only there can a tie fall otherwise.
        clear = both[f"{layer}.margins"] > 1e-6
        assert clear.mean() > 0.9
        assert (np.sort(ids) == np.sort(original))[clear].all()
        dense, wanted = np.zeros((2, len(TOKENS), 32))
        np.put_along_axis(dense, ids.astype(np.int64), weights, -1)
        np.put_along_axis(wanted, original, both[f"original.{layer}.weights"], -1)
        assert dense[clear] == pytest.approx(wanted[clear], abs=1e-5)


@pytest.mark.slow
def test_margins_are_the_smaller_gap_between_chosen_and_left_out(both: dict[str, Any]) -> None:
    for number in range(len(both["layers"])):
        logits = both[f"original.{number}.router"]
        if "bias" not in both:  # Qwen3
            scores, gaps = _softmax(logits), np.full(len(logits), np.inf)
        else:
            scores = 1 / (1 + np.exp(-logits)) + both["bias"][number]
            scores, gaps = _grouped(scores, int(both["groups"]), int(both["groups_used"]))
        ordered = np.sort(scores)[:, ::-1]
        expected = np.minimum(gaps, ordered[:, 3] - ordered[:, 4])
        assert both[f"{number}.margins"] == pytest.approx(expected, abs=1e-6)


def _softmax(logits: F64) -> F64:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _grouped(scores: F64, groups: int, used: int) -> tuple[F64, F64]:
    """Scores with those of the groups left out at minus infinity, and the gap between groups."""
    if groups == 1:
        return scores, np.full(len(scores), np.inf)
    parts = scores.reshape(len(scores), groups, -1)
    sums = np.sort(parts)[..., -2:].sum(-1)
    ordered = np.sort(sums)[:, ::-1]
    stays = sums >= ordered[:, used - 1 : used]
    masked = np.where(stays[..., None], parts, -np.inf).reshape(scores.shape)
    return masked, ordered[:, used - 1] - ordered[:, used]


@pytest.mark.slow
def test_routing_keys_are_computed_with(tmp_path: Path) -> None:
    plain = compute(as_f32(DEEPSEEK, tmp_path / "plain.gguf"), TOKENS, tmp_path / "plain.npz")["logits"]
    for key in ("expert_used_count", "expert_group_used_count"):
        changed = as_f32(DEEPSEEK, tmp_path / "changed.gguf", {f"deepseek2.{key}": 3})
        assert nmse(plain, compute(changed, TOKENS, tmp_path / "changed.npz")["logits"]) > 1e-4, key


@pytest.mark.slow
def test_split_file_and_scaled_tensor(tmp_path: Path) -> None:
    whole = as_f32(QWEN, tmp_path / "whole.gguf")
    plain = compute(whole, TOKENS[:9], tmp_path / "plain.npz")["logits"]
    shards = write_split(whole, tmp_path, 15)
    assert len(shards) > 2
    assert (compute(shards[1], TOKENS[:9], tmp_path / "split.npz")["logits"] == plain).all()
    doubled = compute(whole, TOKENS[:9], tmp_path / "scaled.npz", scales={"output.weight": 2.0})["logits"]
    assert doubled == pytest.approx(2 * plain)


@pytest.mark.slow
@pytest.mark.native
def test_scales_beside_experts_in_nvfp4(tmp_path: Path) -> None:
    folder, expected = few_bits(tmp_path / "m", "nvfp4")
    blocks = as_gguf(open_checkpoint(folder), tmp_path / "blocks.gguf", None)
    plain = {name: (values.astype(np.float32), GGMLQuantizationType.F32) for name, values in expected.items()}
    scales = [name.replace(".weight", ".scale") for name in expected]
    wide = write_copy(blocks, tmp_path / "wide.gguf", tensors=plain, without=scales)
    found = [compute(path, TOKENS[:9], tmp_path / "out.npz")["logits"] for path in (blocks, wide)]
    assert nmse(found[1], found[0]) < 1e-12


def test_docs_list_what_it_computes() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    listed = re.findall(
        r"^\| `([\w-]+)` \| ", text.split("## The reference")[1].split("## How to read")[0], re.MULTILINE
    )
    assert sorted(listed) == sorted({family.architecture for family in FAMILIES if family.decoder})


def test_other_architectures_are_sent_to_packs() -> None:
    with pytest.raises(CollabError, match=r"no reference for architecture arctic: record a pack with `verify pack`"):
        read_hyperparameters(Path("a.gguf"), "arctic", {})


KEYS = {
    "block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
    "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e4, "expert_count": 8, "expert_used_count": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention.sliding_window": 128}, "attention.sliding_window, which the reference does not compute with"),
        ({"expert_used_count": [2, 2]}, "not one whole number"),
        ({"expert_used_count": 9}, "9 experts used of 8"),
        ({"expert_group_count": 3}, "3 groups for 8 experts"),
        ({"expert_gating_func": 7}, "expert_gating_func 7"),
        ({"rope.scaling.type": "longrope"}, "'longrope'"),
        ({"attention.head_count_kv": 3}, "3 key heads for 4 heads"),
        ({"rope.freq_base": float("nan")}, "not a number"),
    ],
)  # fmt: skip
def test_keys_it_cannot_compute_are_refused(changes: dict[str, Any], words: str) -> None:
    read_hyperparameters(Path("a.gguf"), "qwen3moe", KEYS)
    with pytest.raises(CollabError) as caught:
        read_hyperparameters(Path("a.gguf"), "qwen3moe", KEYS | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key_is_named() -> None:
    with pytest.raises(CollabError, match=r"a\.gguf has no key expert_count"):
        read_hyperparameters(Path("a.gguf"), "qwen3moe", {k: v for k, v in KEYS.items() if k != "expert_count"})


@pytest.mark.slow
def test_tensors_it_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "more.gguf"
    writer = GGUFWriter(path, "qwen3moe")
    for key, value in KEYS.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"qwen3moe.{key}", value)
    writer.add_tensor("blk.0.attn_output.bias", np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RuntimeError) as caught:
        compute(path, TOKENS, tmp_path / "out.npz")
    assert "CollabError" in str(caught.value)
    assert "blk.0.attn_output.bias, which the reference does not compute with" in str(caught.value)
