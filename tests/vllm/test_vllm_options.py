"""Experts at an artifact's types, cold experts in host memory, counters: the real vLLM against transformers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from hand_placements import save_placement
from real_vllm import HERE, MODELS, Vllm
from small_models.hand_made_plans import pruned, typed_plan

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.compression.gguf_file import compress
from collab_plugin.compression.hf_folder import compress_folder
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.tensor_names import Role
from collab_plugin.placement.placement import PolicyUse
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan, requirements_of
from collab_plugin.plans.plan_file import read_plan, write_plan

pytestmark = pytest.mark.slow

KEPT = {"tiny-qwen3moe": (1, 5, 7, 30, 8, 9, 20, 21), "tiny-deepseek-v3": (2, 3, 8, 11, 16, 17, 25, 30)}
# Mild, so that a draft model of all experts says the same now and then.
VARIED = {0: tuple(range(31, 11, -1)), 1: tuple(range(24)), 2: tuple(range(2, 30))}
LAYERS = {"tiny-qwen3moe": 3, "tiny-deepseek-v3": 3}
SCALE = {"tiny-qwen3moe": 1.0, "tiny-deepseek-v3": 2.0}
# Name, model, plan, eager or compiled, and which options. ggml computes where the name says so, else PyTorch alone.
CASES = (
    ("two ranks", "tiny-qwen3moe", "tiny-qwen3moe", True, ("artifact", "stats", "hot")),
    ("compiled", "tiny-qwen3moe", "tiny-qwen3moe", False, ("artifact", "stats")),
    ("ggml", "tiny-qwen3moe", "tiny-qwen3moe", True, ("artifact",)),
    ("placed, ggml", "tiny-qwen3moe", "tiny-qwen3moe", True, ("artifact", "placement", "misses", "interval")),
    ("varied", "tiny-qwen3moe", "varied", False, ("stats",)),
    ("tiers", "tiny-qwen3moe", "varied", True, ("hot", "policy")),
    ("everything", "tiny-deepseek-v3", "tiny-deepseek-v3", True, ("artifact", "stats", "hot")),
)
HOT, START = 3, (2, 5, 7)
DRAFTED = "tiny-qwen3moe"


def _types(info: TensorInfo) -> str:
    """Another type for each projection and layer; columns of "down" can be parted in two."""
    if info.role != Role.EXPERT:
        return "BF16"
    part = info.name.split("ffn_")[1].split("_")[0]
    by_layer = {
        "gate": ("Q4_K", "IQ3_S", "Q6_K", "IQ4_XS"),
        "up": ("Q5_K", "Q2_K", "Q3_K", "Q4_K"),
        "down": ("IQ4_NL", "Q4_0", "Q8_0", "Q5_0"),
    }
    return by_layer[part][info.layer or 0]


def _varied(checkpoint: Checkpoint) -> Plan:
    """Another number of experts in each layer; their types are those of the checkpoint, as vLLM reads them."""
    plan = pruned(checkpoint, copy_plan(checkpoint), VARIED[1])
    pruning = dataclasses.replace(plan.pruning, kept=VARIED)
    return dataclasses.replace(plan, pruning=pruning, requires=requirements_of(pruning), metadata={})


def _quiet(done: float, total: float | None = None) -> None: ...


@pytest.fixture(scope="module")
def results(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases in one process."""
    folder = tmp_path_factory.mktemp("options")
    for model, kept in KEPT.items():
        checkpoint = open_safetensors(MODELS / model)
        plan = pruned(checkpoint, typed_plan(checkpoint, _types), kept)
        write_plan(folder / f"{model}.json", plan)
        kernels = GgmlKernels()
        compress(checkpoint, plan, None, folder / f"{model}.gguf", kernels=kernels, threads=2, report=_quiet)
        compress_folder(checkpoint, plan, folder / model, precision="original", threads=2, report=_quiet)
    (folder / "draft").symlink_to(MODELS / DRAFTED, target_is_directory=True)  # the whole model speaks for the pruned
    layers = dict.fromkeys(range(3), len(KEPT["tiny-qwen3moe"]))
    policy = PolicyUse("lfu-decay", {}, True)
    placed = read_plan(folder / "tiny-qwen3moe.json")
    save_placement(folder / "placement.json", placed, layers, START, policy)
    write_plan(folder / "varied.json", _varied(open_safetensors(MODELS / "tiny-qwen3moe")))
    cases = []
    for name, model, plan_name, eager, wanted in CASES:
        values = {
            "artifact": str(folder / f"{model}.gguf"), "stats": True, "hot": HOT, "policy": "spread",
            "placement": str(folder / "placement.json"), "misses": "copy", "interval": 2,
        }  # fmt: skip
        options = {"plan": str(folder / f"{plan_name}.json")} | {key: values[key] for key in wanted}
        cases.append(
            {
                "name": name,
                "model": str(MODELS / model),
                "pruned": str(folder / plan_name),
                "options": options,
                "eager": eager,
                "ggml": "ggml" in name,
            }
            | ({"draft": str(folder / "draft")} if name == "tiers" else {})
            | ({"ranks": 2} if name == "two ranks" else {})
        )
    (folder / "cases.json").write_text(json.dumps(cases))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_MLA_DISABLE", "1")
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for apply_model, in this very process
        done = vllm.run(HERE / "options_job.py", folder)
    lines = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(CASES), done.stderr[-3000:]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", [name for name, *_ in CASES])
def test_log_probabilities_are_those_of_the_dequantized_weights(case: str, results: dict[str, dict[str, Any]]) -> None:
    found = results[case]
    assert "error" not in found, found["error"]
    print(case, "max |difference|:", found["difference"], "quantization changed:", found["from_plain"])
    # ggml rounds activations to 8 bits; test_ggml_computes_experts_exactly... says how exactly it does.
    assert found["difference"] < (0.2 if "ggml" in case else 1e-3)
    assert (found["from_plain"] > 0.01) == (case not in ("varied", "tiers")), "quantization changed nothing"


@pytest.mark.parametrize("case", ["two ranks", "compiled", "varied", "everything"])
def test_every_token_is_counted_once_and_warm_up_is_not(case: str, results: dict[str, dict[str, Any]]) -> None:
    found = results[case]
    model = next(m for name, m, *_ in CASES if name == case)
    kept = VARIED if case == "varied" else dict.fromkeys(range(4), KEPT[model])
    assert len(found["routing"]) == LAYERS[model]
    for layer, sums in found["routing"].items():
        assert sums["tokens"] == found["tokens"]
        assert sum(sums["count"]) == 4 * found["tokens"]
        assert len(sums["count"]) == len(kept[int(layer)])
        assert sum(sums["weight_sum"]) == pytest.approx(SCALE[model] * found["tokens"], rel=1e-5)


def test_only_hot_experts_are_parameters(results: dict[str, dict[str, Any]]) -> None:
    one = 3 * 256 * 256 * 4
    assert results["tiers"]["expert_bytes"] == HOT * LAYERS["tiny-qwen3moe"] * one
    halves = results["two ranks"]["expert_bytes"]
    assert 0 < halves < HOT * LAYERS["tiny-qwen3moe"] * one / 2 / 4, "a rank has half of each"
    assert 0 < results["everything"]["expert_bytes"] < HOT * LAYERS["tiny-deepseek-v3"] * one / 4


def test_the_placement_policy_chooses_the_hot_experts(results: dict[str, dict[str, Any]]) -> None:
    """That of tests/plugins/plugin_wheel, and the built-in one without statistics."""
    assert results["tiers"]["hot"] == [[0, 6, 13], [0, 8, 16], [0, 9, 18]], "of 20, 24 and 28 experts"
    assert results["everything"]["hot"] == [[0, 1, 2]] * LAYERS["tiny-deepseek-v3"]


def test_experts_change_places_while_the_engine_runs(results: dict[str, dict[str, Any]]) -> None:
    found = results["placed, ggml"]
    assert found["hot"] != [list(START)] * 3, "nothing moved"
    assert [len(layer) for layer in found["hot"]] == [HOT] * 3
    # Sums are in another order then, so that here and there an activation is rounded to the next of its 255 values.
    assert found["again"] < 0.1, "the same prompts after moves, within what ggml's rounding does"
    counted = {name.removeprefix("vllm:collab_expert_"): value for name, value in found["metrics"].items()}
    runs = 2  # the prompts once more
    choices = 3 * 4 * found["tokens"] * runs
    assert counted["hits"] + counted["misses_host"] + counted["misses_copied"] >= choices
    assert counted["hits"] > 0 and counted["misses_copied"] > 0 and counted["moves"] > 0
    one = found["expert_bytes"] / 3 / HOT
    assert counted["bytes_moved"] > counted["moves"] * one / 3


def test_a_draft_model_is_not_pruned_and_changes_no_token(results: dict[str, dict[str, Any]]) -> None:
    """The job compares the tokens; that the whole model's were taken shows that it kept its experts."""
    assert results["tiers"]["accepted"] > 0


@pytest.fixture(scope="module")
def blocks(vllm: Vllm) -> dict[str, Any]:
    """What dequantize_job.py finds."""
    done = vllm.run(HERE / "dequantize_job.py")
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_offered_type_is_dequantized_to_the_bit(blocks: dict[str, Any]) -> None:
    assert set(blocks["dequantize"]) == set(TYPES)
    assert max(blocks["dequantize"].values()) == 0.0, blocks


@pytest.mark.parametrize("kind", TYPES)
def test_ggml_computes_experts_exactly_but_for_activations_in_eight_bits(kind: str, blocks: dict[str, Any]) -> None:
    found = blocks["kernels"][kind]
    # Of Q5_1 ggml keeps the sums of activations, in float16.
    assert found["rounded"] < (1e-3 if kind == "Q5_1" else 1e-5)
    assert found["exact"] < 0.03, "two roundings by at most 1/254 of the largest value in a block"
    assert found["many"] < 0.03, "rounded, or dequantized where that is faster"
    assert found["dequantized"] < 1e-7
    assert found["pairs"] < 1e-6, "pairs sorted by expert give the same as whole tokens"
    assert found["grouped"] < 1e-6, "the reference is what PyTorch computes"
