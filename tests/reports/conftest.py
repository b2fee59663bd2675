from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from small_models.made import Made
from small_models.random_moe import imagined_stats, write_deepseek2, write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.stats.stats_file import write_stats


@pytest.fixture(scope="session", params=["qwen3moe", "deepseek2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """16 experts, 12 of them kept, 5 bits a weight; statistics that never saw one expert."""
    folder = tmp_path_factory.mktemp(request.param)
    model = {"qwen3moe": write_qwen3moe, "deepseek2": write_deepseek2}[request.param](folder / "model.gguf")
    stats, path = folder / "stats.gguf", folder / "plan.json"
    write_stats(stats, imagined_stats(open_gguf(model), never=(5,)))
    options = [
        "--stats",
        stats,
        "--keep",
        "75%",
        "--budget",
        "5bpw",
        "--types",
        "IQ3_S,Q6_K",
        "--threads",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(main, ["plan", str(model), *map(str, options), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] > 0
    return Made(model, stats, path, read_plan(path))
