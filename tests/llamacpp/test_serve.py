"""The served model: its log-probabilities are the engine's, whatever was asked before, and it ends with us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from engine_calls import ENGINE, evaluate, generate, plain_logits
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Engine
from collab_plugin.engines.results import Served
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint

TESTS = Path(__file__).parents[1]
TRAINED = ["tiny-qwen3moe", "tiny-deepseek-v3"]  # the second has a BOS
PAIRS = (
    ("In the beginning God created", " the heaven and the earth."),
    ("def __init__(self, name", "):\n        self.name = name\n"),
    ("Die Größe der Datei", " beträgt 5 Byte"),
    ("import os\nimport", " sys"),
)


@pytest.fixture(scope="module", params=TRAINED)
def trained(request: pytest.FixtureRequest) -> Path:
    return as_gguf(open_checkpoint(TESTS / "models" / request.param), 1)


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[Served]:
    with ENGINE.serve(trained, ctx=None, threads=1) as served:
        yield served


def post(served: Served, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    answer = requests.post(served.url + path, json=body, headers=_header(served), timeout=60)
    return {"status": answer.status_code, **answer.json()}


def _header(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.token}"}


def logprobs(served: Served, prompt: str | list[int]) -> list[float | None]:
    choice = post(served, prompt=prompt, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    found: list[float | None] = choice["logprobs"]["token_logprobs"]
    return found


def ids(served: Served, text: str) -> list[int]:
    found: list[int] = post(served, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    return found


def test_loglikelihoods_of_local_completions_are_the_engine_s(trained: Path, served: Served, tmp_path: Path) -> None:
    """lm-evaluation-harness' own client against numpy on the logits of plain llama_cpp."""
    client = LocalCompletionsAPI(
        model="served",
        base_url=f"{served.url}/v1/completions",
        tokenizer_backend="remote",
        auth_token=served.token,
        header=_header(served),
        max_length=served.ctx,
    )
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    told = client.loglikelihood(asked)
    bos = open_gguf(trained).metadata.get("tokenizer.ggml.add_bos_token")
    front = [int(open_gguf(trained).metadata["tokenizer.ggml.bos_token_id"].value)] if bos and bos.value else []
    assert bool(front) == ("deepseek" in open_gguf(trained).architecture)
    for n, ((before, after), (total, greedy)) in enumerate(zip(PAIRS, told, strict=True)):
        whole, context = front + ids(served, before + after), front + ids(served, before)
        logits = plain_logits(trained, [whole], tmp_path / f"{n}.npy")[0].astype(np.float64)
        log_p = (
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )
        at = range(len(context), len(whole))
        assert total == pytest.approx(sum(log_p[i - 1, whole[i]] for i in at), abs=1e-4)
        assert greedy == all(log_p[i - 1].argmax() == whole[i] for i in at)


@pytest.mark.slow
def test_a_long_prompt_has_evaluate_s_perplexity(trained: Path, served: Served) -> None:
    """Three blocks in one prompt, scored elsewhere in one piece."""
    text = TESTS / "texts" / "python.validation.txt"
    ctx = 1500
    whole = ids(served, text.read_text("utf-8"))
    with_bos = post(served, "/tokenize", prompt="a")["tokens"]
    front = with_bos[:1] if len(with_bos) > len(ids(served, "a")) else []
    scores = logprobs(served, [*front, *whole][:ctx])
    tail = [x for x in scores[ctx // 2 + 1 :] if x is not None]
    ours = evaluate(trained, trained, text, ctx=ctx, chunks=1)
    assert len(tail) == ours.tokens
    assert np.exp(-np.mean(tail)) == pytest.approx(ours.ppl, rel=1e-4)


@pytest.mark.slow
def test_what_was_asked_before_changes_nothing(trained: Path, served: Served) -> None:
    whole = ids(served, (TESTS / "texts" / "english.validation.txt").read_text("utf-8"))
    long = whole[:1200]
    prompts = [
        long,
        long[:1100] + whole[3000:3100],  # shares two blocks
        long[:512],
        long[:512] + whole[4000:4010],
        long[:100],
        [*long[:99], 700],  # differs in its last token
        [*long[:99], 800],
    ]
    warm = [logprobs(served, prompt) for prompt in prompts]
    post(served, prompt=long[:700], max_tokens=3)
    again = [logprobs(served, prompt) for prompt in reversed(prompts)][::-1]
    with ENGINE.serve(trained, ctx=None, threads=1) as fresh:
        cold = []
        for prompt in prompts:
            logprobs(fresh, whole[-40:])  # nothing in common
            cold.append(logprobs(fresh, prompt))
    for one, two, three, prompt in zip(warm, again, cold, prompts, strict=True):
        assert len(one) == len(prompt)
        shown = [np.array(x[1:], float) for x in (one, two, three)]
        assert np.array_equal(shown[0], shown[2])
        assert np.array_equal(shown[1], shown[2])


def test_generation_is_the_engine_s(trained: Path, served: Served) -> None:
    prompt = "And it came to pass in the"
    made, _ = generate(trained, prompt, tokens=20)
    told = post(served, prompt=prompt, max_tokens=20)["choices"][0]
    assert told["text"] == made.text
    word = made.text.split()[2]
    cut = post(served, prompt=prompt, max_tokens=20, stop=[word, "never there"])["choices"][0]
    assert cut == {"index": 0, "text": made.text[: made.text.index(word)], "finish_reason": "stop", "logprobs": None}
    warm = post(served, prompt=prompt, max_tokens=20, temperature=1.5, seed=7)["choices"][0]["text"]
    assert warm == post(served, prompt=prompt, max_tokens=20, temperature=1.5, seed=7)["choices"][0]["text"]
    assert warm != made.text


def test_token_texts_and_the_likeliest(served: Served) -> None:
    tokens = ids(served, "Größe")
    choice = post(served, prompt=[tokens, tokens[:2]], echo=True, logprobs=1, max_tokens=1)["choices"]
    assert [c["index"] for c in choice] == [0, 1]
    told = choice[0]["logprobs"]
    assert len(told["tokens"]) == len(tokens) + 1
    for name, x, top in zip(told["tokens"][1:], told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert top[name] == x <= max(top.values())
    assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())
    assert choice[0]["text"].startswith("Größe")


def test_requests_that_are_refused(served: Served) -> None:
    assert requests.get(served.url + "/tokenizer_info", timeout=9).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert requests.post(served.url + "/v1/completions", json={}, headers=wrong, timeout=9).status_code == 401
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prompt": [10**6]}, "token ids must be"),
        ({"prompt": {}}, "prompt must be"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": "a", "logit_bias": {}}, "logit_bias not supported"),
        ({"prompt": "a", "top_p": 0.5, "temperature": 1}, "top_p not supported"),
        ({"prompt": "a", "max_tokens": 10**6}, "exceed the context"),
        ({"prompt": "a", "max_tokens": "3"}, "must be integers"),
        ({"prompt": "a", "stop": [3]}, "stop must be"),
        ({"prompt": "a", "echo": True, "logprobs": 5}, "logprobs 1"),
        ({"prompt": "a", "logprobs": 1}, "without echo"),
    )
    for body, says in cases:
        answer = post(served, **body)
        assert answer["status"] == 400, body
        assert says in answer["error"], body
    raw = requests.post(served.url + "/tokenize", data=b"{", headers=_header(served), timeout=9)
    assert (raw.status_code, raw.json()) == (400, {"error": "the request is not JSON"})
    assert post(served, prompt="a", top_p=0.5)["status"] == 200, "greedy: top_p changes nothing"


def _pids(parent: int) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")


@on_linux
def test_a_server_that_dies_is_the_error(qwen3moe: Path) -> None:
    before = _pids(os.getpid())
    with (
        pytest.raises(CollabError, match="ended by SIGKILL while it tried to serve"),
        ENGINE.serve(qwen3moe, ctx=64, threads=1) as served,
    ):
        for pid in _pids(os.getpid()) - before:
            os.kill(pid, signal.SIGKILL)
        post(served, prompt="a")
    assert _pids(os.getpid()) <= before


@on_linux
def test_no_server_outlives_the_with_statement(qwen3moe: Path) -> None:
    before = _pids(os.getpid())
    with pytest.raises(KeyboardInterrupt), ENGINE.serve(qwen3moe, ctx=64, threads=1) as served:
        assert post(served, prompt="a", max_tokens=1)["status"] == 200
        raise KeyboardInterrupt
    assert _pids(os.getpid()) <= before
    with pytest.raises(requests.ConnectionError):
        post(served, prompt="a")


_KILLED = """
import os, signal, sys
from pathlib import Path
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
with LlamaCppEngine().serve(Path(sys.argv[1]), ctx=64, threads=1) as served:
    print(served.url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_server_outlives_a_killed_parent(qwen3moe: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(qwen3moe)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    url = done.stdout.strip()
    for _ in range(100):
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            return
        time.sleep(0.1)
    pytest.fail(f"{url} still answers")


def test_models_that_cannot_be_served(qwen3moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Path, int, float, str]] = [
        (qwen3moe, 64, 0.001, "was not loaded and served within 0 seconds"),
        (tmp_path / "none.gguf", 64, 60, "none.gguf does not exist"),
    ]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(qwen3moe.read_bytes()[:-100_000])
    cases.append((broken, 64, 60, "broken.gguf"))
    for model, ctx, limit, says in cases:
        with pytest.raises(CollabError, match=says), ENGINE.serve(model, ctx=ctx, threads=1, start_limit=limit):
            pytest.fail("served")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(CollabError, match=r"pip install 'collab-plugin\[llamacpp,tasks\]'"):
        ENGINE.serve(qwen3moe, ctx=64, threads=1).__enter__()


def test_an_engine_without_a_server_says_so(qwen3moe: Path) -> None:
    with pytest.raises(CollabError, match="engine 'llamacpp' cannot serve a model"):
        Engine.serve(ENGINE, qwen3moe, ctx=64, threads=1)


def test_logits_that_are_no_numbers_are_told(qwen3moe: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(qwen3moe.read_bytes())
    from collab_plugin.checkpoint.gguf import open_shard

    offset = open_shard(model)[0].tensors["output.weight"].offset
    with model.open("r+b") as file:
        file.seek(offset)
        file.write(np.full(256, np.inf, np.float32).tobytes())
    with ENGINE.serve(model, ctx=64, threads=1) as served:
        answer = post(served, prompt="abc", echo=True, logprobs=1, max_tokens=1)
    assert answer["status"] == 400
    assert "not finite" in json.dumps(answer)
