"""Comparing two models by the 20 log-probabilities that Ollama gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from collab_ollama.compare.top_logprobs import TOP, compare, kld_at_least, merged, prefixes
from hypothesis import given
from hypothesis import strategies as st
from real_ollama import MODELS, Running, collab, mistake

from collab_plugin.errors import CollabError

TEXT = MODELS.parent / "texts" / "english.validation.txt"


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_never_more_than_the_true_divergence(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    p, q = (np.log(w / w.sum()) for w in np.exp(rng.normal(0, spread, (2, 60))))
    true = float(np.sum(np.exp(p) * (p - q)))
    heads = [{str(i): float(d[i]) for i in np.argsort(d)[-TOP:]} for d in (p, q)]
    found = kld_at_least(*heads)
    assert 0 <= found <= true + 1e-9


def test_same_distribution_has_no_divergence() -> None:
    p = {"a": math.log(0.5), "b": math.log(0.3)}
    result = compare([p, None], [p, p])
    assert (result.positions, result.skipped, result.same_top1) == (1, 1, 1.0)
    assert result.mean_kld_at_least == 0
    assert result.mean_abs_logprob == 0


def test_tokens_of_one_text_are_added_up() -> None:
    entries = [{"token": "x", "bytes": [120], "logprob": math.log(p)} for p in (0.25, 0.5)]
    assert merged(entries)["[120]"] == pytest.approx(math.log(0.75))


def test_prefixes_end_between_words() -> None:
    text = TEXT.read_text("utf-8")
    found = prefixes([text], 20)
    assert len(found) == 20
    assert all(prefix in text and not prefix[-1].isspace() for prefix in found)
    assert found == prefixes([text], 20)
    with pytest.raises(CollabError, match="`positions`"):
        prefixes(["two words"], 9)


@pytest.mark.slow
def test_compressed_model_against_its_original(server: Running, artifacts: dict[str, Path], tmp_path: Path) -> None:
    name = "tiny-qwen3moe"
    plan, original = tmp_path / "plan.json", tmp_path / "original.gguf"
    for command in (
        ("plan", MODELS / name, "--types", "F16", "--budget", "100MB", "-o", plan, "--threads", 1),
        ("compress", MODELS / name, "--plan", plan, "-o", original, "--threads", 1),
    ):
        done = collab(*command)
        assert done.returncode == 0, done.stderr
    place = ("--host", server.url, "--models", server.models, "--parameter", "num_thread=1")
    for model, artifact in (("whole", original), ("small", artifacts[name])):
        done = collab("ollama", "create", artifact, "--name", model, *place)
        assert done.returncode == 0, done.stderr
    options = ("--text", TEXT, "--positions", 24, "--host", server.url, "--json")
    results = {}
    for model in ("whole", "small"):
        done = collab("ollama", "evaluate", model, "--against", "whole", *options)
        assert done.returncode == 0, done.stderr
        results[model] = json.loads(done.stdout)
    assert results["whole"]["same_top1"] == 1
    # The cache of a prompt changes the last bits: 1.5e-6 was seen.
    assert results["whole"]["mean_kld_at_least"] < 1e-5
    assert results["small"]["positions"] + results["small"]["skipped"] == 24
    assert 1e-4 < results["small"]["mean_kld_at_least"] < 0.1
    assert results["small"]["same_top1"] > 0.7
    assert results["small"]["shared"] > 0.7


@pytest.mark.slow
def test_mistakes(server: Running, tmp_path: Path) -> None:
    place = ("--host", server.url)
    done = collab("ollama", "evaluate", "nowhere", "--against", "nowhere", "--text", TEXT, *place)
    assert "has no model nowhere:latest" in mistake(done)
    done = collab("ollama", "evaluate", "a", "--against", "b", "--text", tmp_path / "nowhere.txt", *place)
    assert "cannot read" in mistake(done)
