"""The trained models, pruned by a plan, through the real `vllm serve --load-format collab`."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from numpy.typing import NDArray
from real_vllm import HERE, MODELS, ROOT, Server, Vllm
from trained_plans import pruning_plan

from collab_plugin.compression.gguf_file import compress
from collab_plugin.engines.engine import Windows
from collab_plugin.engines.packed_logits import unpack_logits
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold
from collab_plugin.stats.stats_file import read_stats, unmeasured

pytestmark = pytest.mark.slow

CTX, WINDOWS, VOCABULARY = 128, 2, 3072
TEXT = ROOT / "tests" / "texts" / "english.validation.txt"


@dataclass(frozen=True)
class Case:
    """``environment``: what the model needs on processors; ``options``: of vllm serve; ``loader``: of the load
    format."""

    model: str
    environment: dict[str, str]
    options: tuple[str, ...]
    loader: dict[str, Any]


CASES = (
    Case("tiny-qwen3moe", {}, (), {}),  # compiled, as vLLM starts by default
    # In one process less, which saves the time that its imports take. Experts move while it serves.
    Case(
        "tiny-deepseek-v3",
        {"VLLM_MLA_DISABLE": "1"},
        ("--enforce-eager", "--distributed-executor-backend", "uni"),
        {"hot": 8, "policy": "lfu-decay", "misses": "copy", "interval": 4},
    ),
)


@dataclass(frozen=True)
class Served:
    """log p of the next token, f32[windows, CTX - 1, V]: of vLLM, of transformers, of transformers unpruned.

    ``stats``: what the server counted over the windows, and the same as a file.
    ``llamacpp`` f32[windows, CTX / 2 - 1, V] starts at position CTX / 2. ``log``: what the server said.
    """

    windows: NDArray[np.int64]
    vllm: NDArray[np.float32]
    transformers: NDArray[np.float32]
    whole: NDArray[np.float32]
    llamacpp: NDArray[np.float32]
    together: list[str]
    alone: list[str]
    prefix_hits: float
    experts: dict[str, float]
    log: str
    stored: int
    stats: dict[str, Any]
    stats_file: Path
    plan: Plan


@pytest.fixture(scope="module")
def folders(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By model: plan.json, windows.npy, llama.npy of llama.cpp and torch.npy of transformers."""
    found, asked = {}, []
    for case in CASES:
        model, folder = MODELS / case.model, tmp_path_factory.mktemp(case.model)
        plan = pruning_plan(model, folder / "plan.json", keep=24, used=3)
        compress(
            open_checkpoint(model), plan, None, folder / "pruned.gguf",
            kernels=GgmlKernels(), threads=2, report=lambda done, total=0: None,
        )  # fmt: skip
        LlamaCppEngine().reference(
            folder / "pruned.gguf", Windows((TEXT,), CTX, WINDOWS), out=folder / "llama.npy", threads=2, progress=untold
        )
        np.save(folder / "windows.npy", np.load(folder / "llama.windows.npy").astype(np.int64))
        asked += [model, *(folder / name for name in ("plan.json", "windows.npy", "torch.npy"))]
        found[case.model] = folder
    done = vllm.run(HERE / "pruned_reference.py", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.model)
def served(request: pytest.FixtureRequest, vllm: Vllm, folders: dict[str, Path]) -> Served:
    """One server a model, and everything that is asked of it."""
    case: Case = request.param
    model, folder = MODELS / case.model, folders[case.model]
    windows = np.load(folder / "windows.npy")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"VLLM_PLUGINS": "collab"} | case.environment).items():
            patch.setenv(name, value)
        options = {"plan": str(folder / "plan.json"), "stats": True} | case.loader
        with vllm.serving(model, options, *case.options) as server:
            found = np.stack([dense(server.prompt_logprobs(window.tolist(), VOCABULARY)) for window in windows])
            stats = json.loads(get(server, "/collab/stats"))
            (folder / "stats.gguf").write_bytes(get(server, "/collab/stats.gguf"))
            prompts = [[*windows[0, :64].tolist(), *windows[1, 8 * i : 8 * i + 8].tolist()] for i in range(6)]
            alone = [continuation(server, prompt) for prompt in prompts]
            with ThreadPoolExecutor(len(prompts)) as pool:
                together = list(pool.map(lambda prompt: continuation(server, prompt), prompts))
            hits = metrics(server, "prefix_cache_hits_total")
            experts = {
                name: metrics(server, f"collab_expert_{name}_total") for name in ("hits", "moves", "bytes_moved")
            }
    pruned, whole = np.load(folder / "torch.npy")
    stored = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return Served(
        windows,
        found,
        pruned,
        whole,
        np.stack([unpack_logits(rows) for rows in np.load(folder / "llama.npy")]),
        together,
        alone,
        hits,
        experts if case.loader else {},
        server.log.read_text(),
        stored,
        stats,
        folder / "stats.gguf",
        read_plan(folder / "plan.json"),
    )


def dense(positions: list[dict[int, float]]) -> NDArray[np.float32]:
    rows = np.full((len(positions), VOCABULARY), np.nan, np.float32)
    for row, found in zip(rows, positions, strict=True):
        row[list(found)] = list(found.values())
    assert np.isfinite(rows).all()
    return rows


def get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
        return bytes(answer.read())


def continuation(server: Server, prompt: list[int]) -> str:
    return str(server.complete(prompt, max_tokens=8)["choices"][0]["text"])


def metrics(server: Server, name: str) -> float:
    text = get(server, "/metrics").decode()
    return sum(float(n) for n in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.M))


def at_prompt(served: Served, log_p: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.take_along_axis(log_p, served.windows[:, 1:, None].astype(np.int64), -1)[..., 0]


def test_prompt_log_probabilities_are_those_of_transformers(served: Served) -> None:
    ours, expected = at_prompt(served, served.vllm), at_prompt(served, served.transformers)
    print("max |difference| of prompt log-probabilities:", np.abs(ours - expected).max())
    assert np.abs(ours - expected).max() < 1e-3
    assert np.abs(at_prompt(served, served.whole) - expected).max() > 0.1, "pruning changed nothing"


def test_distribution_is_llamacpps(served: Served) -> None:
    logits = served.llamacpp.astype(np.float64)
    theirs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ours = served.vllm[:, CTX // 2 :].astype(np.float64)
    assert ours.shape == theirs.shape
    kld = (np.exp(theirs) * (theirs - ours)).sum(-1)
    print("mean KLD to llama.cpp:", kld.mean())
    assert abs(kld.mean()) < 1e-5


def test_requests_at_once_get_what_they_get_alone(served: Served) -> None:
    assert served.together == served.alone
    assert len(set(served.alone)) > 1


def test_prompts_that_begin_alike_share_the_cache(served: Served) -> None:
    assert served.prefix_hits >= 64


def test_experts_that_moved_are_in_vllms_own_metrics(served: Served) -> None:
    if not served.experts:
        pytest.skip("all experts are on the device")
    assert min(served.experts.values()) > 0
    one = served.experts["bytes_moved"] / served.experts["moves"]
    assert one == 3 * 256 * 256 * 4, "every move is one expert of float32"


def test_log_tells_what_was_read(served: Served) -> None:
    lines = [line for line in served.log.splitlines() if "collab: read" in line]
    assert len(lines) == 1, "one process loads, once"
    read, stored, skipped = (float(n) for n in re.findall(r"([\d.]+) MB", lines[0]))
    assert stored == pytest.approx(served.stored / 1e6, abs=0.011)
    assert skipped > 0.15 * stored
    assert read + skipped == pytest.approx(stored, abs=0.011)
    assert "24 experts a layer, 3 a token" in lines[0]


def test_live_traffic_is_counted_under_the_originals_numbers(served: Served) -> None:
    """Each token of the two windows once, none of the warm-up; pruned experts were never seen."""
    tokens = WINDOWS * CTX
    assert served.stats["tokens"] == tokens
    assert served.stats["model_id"] == served.plan.source.model_id
    assert set(served.stats["layers"]) == {str(layer) for layer in served.plan.pruning.kept}
    for layer, sums in served.stats["layers"].items():
        kept = set(served.plan.pruning.kept[int(layer)])
        assert len(sums["count"]) == 32
        assert sum(sums["count"]) == 3 * tokens
        assert {expert for expert, count in enumerate(sums["count"]) if count} <= kept
        scale = sum(sums["weight_sum"]) / tokens
        assert scale == pytest.approx(2.0 if "deepseek" in served.plan.source.name else 1.0, rel=1e-5)


def test_live_traffic_as_a_stats_file(served: Served) -> None:
    stats = read_stats(served.stats_file)
    assert (stats.tokens, stats.model_id) == (served.stats["tokens"], served.stats["model_id"])
    assert unmeasured(stats) == ("reap_sum", "imatrix")
    for layer, one in stats.routing.items():
        assert one.count.tolist() == served.stats["layers"][str(layer)]["count"]
        assert one.weight_sum == pytest.approx(served.stats["layers"][str(layer)]["weight_sum"], rel=1e-9)


def test_one_line_and_no_server_for_another_models_plan(vllm: Vllm, tmp_path: Path) -> None:
    pruning_plan(MODELS / "tiny-deepseek-v3", tmp_path / "plan.json", keep=24, used=3)
    command = vllm.serve_command(MODELS / "tiny-qwen3moe", {"plan": str(tmp_path / "plan.json")})
    done = vllm.run(*command)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert "another model" in said[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert "Initializing a V1 LLM engine" not in done.stdout
