"""Defaults of config.json's keys are those of transformers' own config classes."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from small_models.torch_python import torch_python

from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.checkpoint.families.family import Conversion

CONVERSIONS = {family.name: family.conversion for family in FAMILIES if family.conversion}
# Keys of vLLM's and of the models' own code that transformers' class does not have: it computes just this.
_V3 = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
NOT_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "deepseek-v3": _V3,
    "deepseek-v2": {"scoring_func": "softmax", "moe_layer_freq": 1},
    "deepseek-v3.2": {**_V3, "rope_interleave": True, "num_nextn_predict_layers": 1},
    "kimi-k2.5": _V3,
    "glm4-moe-lite": {**_V3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    "deepseek-v4": {"num_hash_layers": 3},
    "minimax-m2": {"scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True},
}
# What transformers' class fills in from other keys.
FILLED_IN: dict[str, dict[str, Any]] = {"granite-moe": {"num_key_value_heads": None}}
PRINT = """
import json, sys
import transformers
def told(config):
    rope = getattr(config, "rope_parameters", None) or {}
    return config.to_dict() | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
print(json.dumps({name: told(getattr(transformers, name)()) for name in sys.argv[1:]}, default=str))
"""


@pytest.fixture(scope="module")
def of_transformers() -> dict[str, dict[str, Any]]:
    names = [conversion.config_class for conversion in CONVERSIONS.values()]
    done = subprocess.run(
        [torch_python("transformers"), "-c", PRINT, *names], capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERSIONS)
def test_defaults_are_those_of_transformers(name: str, of_transformers: dict[str, dict[str, Any]]) -> None:
    conversion, own = CONVERSIONS[name], NOT_TRANSFORMERS.get(name, {})
    theirs = of_transformers[conversion.config_class] | FILLED_IN.get(name, {})
    assert own.keys() & theirs.keys() == set()
    assert dict(conversion.defaults) == own | {key: theirs[key] for key in conversion.defaults if key not in own}


def keys_asked_for(conversion: Conversion) -> set[str]:
    return {key.config for key in conversion.keys if isinstance(key.config, str)} | set(conversion.fixed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERSIONS)
def test_keys_without_a_default_are_sizes_or_empty(name: str, of_transformers: dict[str, dict[str, Any]]) -> None:
    """What changes the computation without changing a shape may be left out of config.json, and so has a default."""
    conversion = CONVERSIONS[name]
    theirs = of_transformers[conversion.config_class]
    sizes = {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "n_routed_experts"),
        *("num_experts", "num_local_experts", "moe_num_experts"),
    }
    without = keys_asked_for(conversion) - conversion.defaults.keys() - sizes
    assert [key for key in sorted(without) if theirs.get(key) not in (None, [])] == []
