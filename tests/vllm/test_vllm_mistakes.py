"""What a user can get wrong: one line before memory is taken."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

SAID = {
    "unknown option": ("'keep'", "known: plan, artifact, stats, hot, policy, strict"),
    "no options": ("needs a plan", "--model-loader-extra-config"),
    "missing file": ("cannot read the plan", "nowhere.json"),
    "edited plan": ("was changed after it was made",),
    "no path": ("not the path of a file",),
    "no flag": ("neither true nor false",),
    "no count": ("not a number of experts",),
    "unknown policy": ("unknown placement policy 'coldest'", "known: front-loading, lfru, lfu-decay"),
    "policy alone": ('option "policy" chooses the hot experts', 'give "hot"'),
    "two choosers": ('"placement" and "hot" both choose',),
    "no placement": ("nowhere.json",),
    "misses alone": ('"misses" and "interval" are for experts in host memory', 'give "placement" or "hot" too'),
    "unknown misses": ("'never'", "known: auto, host, copy"),
    "no interval": ("not a number of steps",),
    "truncated stats": ("stats.gguf",),
    "too many hot": ('option "hot" is 25', "24 experts"),
    "artifact without a plan": ('give "plan" too',),
    "no artifact": ("nowhere.gguf does not exist", "collab-plugin compress"),
    "two extensions": ("extends vLLM's workers", "mine.Worker"),
    "another family's plan": ("for another model", "tiny-deepseek-v3"),
    "another seed": ("for another model", "router weights differ", '"strict": false'),
    "own prediction layers": ("does not read a model's own prediction layers", "--speculative-config"),
    "dense model": ("LlamaForCausalLM", "cannot prune"),
    "artifact of a varied plan": ("20 to 28 (mean 24) experts a layer", "no GGUF"),
    "too many hot for one layer": ('option "hot" is 21', "20 experts"),
    "one layer's experts over ranks": ("20 experts", "8 expert-parallel ranks"),
    "experts over ranks": ("24 experts", "5 expert-parallel ranks"),
    "expert parallel on a processor": ("know no expert parallelism",),
    "wrong rotation": ("+rotary_embedding", "custom_ops"),
}


@pytest.fixture(scope="module")
def said(shared_output: list[str]) -> dict[str, str]:
    results = [json.loads(x.removeprefix("MISTAKE ")) for x in shared_output if x.startswith("MISTAKE ")]
    return {result["case"]: result["said"] for result in results}


@pytest.mark.parametrize("case", SAID)
def test_one_line_says_what_is_wrong(said: dict[str, str], case: str) -> None:
    assert said[case].startswith("CollabError: ")
    assert "\n" not in said[case]
    for part in SAID[case]:
        assert part in said[case]


def test_configuration_is_pruned_before_the_engine_starts(said: dict[str, str]) -> None:
    assert said["fits"] == said["another seed, not strict"] == "24 experts, 3 used, 24 cached"
    assert said["varied"] == "28 experts, 3 used, 28 cached"


def test_registering_twice_changes_nothing(said: dict[str, str]) -> None:
    assert said["registered twice"] == "True"
