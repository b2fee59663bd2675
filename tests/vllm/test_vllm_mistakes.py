"""What a user can get wrong: one line before memory is taken."""

from __future__ import annotations

import json

import pytest
from real_vllm import HERE, MODELS, ROOT, Vllm
from trained_plans import pruning_plan

pytestmark = pytest.mark.slow

OTHER = ROOT / "benchmarks" / "models" / "tiny-qwen3moe-seed1"
SAID = {
    "unknown option": ("'keep'", "known: plan, artifact, stats, hot, strict"),
    "no options": ("needs a plan", "--model-loader-extra-config"),
    "missing file": ("cannot read the plan", "nowhere.json"),
    "edited plan": ("was changed after it was made",),
    "no path": ("not the path of a file",),
    "no flag": ("neither true nor false",),
    "no count": ("not a number of experts",),
    "another family's plan": ("for another model", "tiny-deepseek-v3"),
    "another seed": ("for another model", "router weights differ", '"strict": false'),
    "dense model": ("LlamaForCausalLM", "cannot prune"),
    "experts over ranks": ("24 experts", "5 expert-parallel ranks"),
    "expert parallel on a processor": ("know no expert parallelism",),
    "wrong rotation": ("+rotary_embedding", "custom_ops"),
}


@pytest.fixture(scope="module")
def said(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mistakes")
    pruning_plan(MODELS / "tiny-qwen3moe", folder / "qwen.json", keep=24, used=3)
    pruning_plan(MODELS / "tiny-deepseek-v3", folder / "deepseek.json", keep=24, used=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_MLA_DISABLE", "1")
        done = vllm.run(HERE / "mistakes_job.py", folder, MODELS, OTHER)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(x.removeprefix("RESULT ")) for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    return {result["case"]: result["said"] for result in results}


@pytest.mark.parametrize("case", SAID)
def test_one_line_says_what_is_wrong(said: dict[str, str], case: str) -> None:
    assert said[case].startswith("CollabError: ")
    assert "\n" not in said[case]
    for part in SAID[case]:
        assert part in said[case]


def test_configuration_is_pruned_before_the_engine_starts(said: dict[str, str]) -> None:
    assert said["fits"] == said["another seed, not strict"] == "24 experts, 3 used, 24 cached"


def test_registering_twice_changes_nothing(said: dict[str, str]) -> None:
    assert said["registered twice"] == "True"
