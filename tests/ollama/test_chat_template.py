"""Which template a model gets: the file's, Ollama's own version of it, or a plain one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collab_ollama.model.template_check import why_not_rendered
from real_ollama import MODELS, Ollama, Running, collab, running
from small_models.gguf_copies import write_with_template

from collab_plugin.errors import CollabError

SIMPLE = (
    "{%- for m in messages %}<{{ m.role }}>{{ m.content }}{%- endfor %}{%- if add_generation_prompt %}<a>{%- endif %}"
)


@pytest.mark.parametrize(
    "template",
    [
        SIMPLE,
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1) }}",
        "{% generation %}x{% endgeneration %}",
        "{% for a in b %}{% if a %}{% break %}{% endif %}{% continue %}{% endfor %}",
        "{{ raise_exception('no') }}{{ messages | tojson }}",
    ],
)
def test_llama_cpp_knows_these(template: str) -> None:
    assert why_not_rendered(template) is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content ", "line 1: unexpected end of template"),
        ("\n{% if x %}", "line 2"),
        ("{% include 'x' %}", "no Include statement"),
        ("{% raw %}x{% endraw %}", "no raw statement"),
    ],
)
def test_llama_cpp_does_not_know_these(template: str, words: str) -> None:
    assert words in str(why_not_rendered(template))


@pytest.mark.parametrize("model", ["tiny-qwen3moe", "tiny-deepseek-v3"])
def test_of_the_trained_models(model: str) -> None:
    config = json.loads((MODELS / model / "tokenizer_config.json").read_text())
    assert why_not_rendered(config["chat_template"]) is None


def render(server: Running, name: str) -> str:
    """What Ollama hands to the model for one question."""
    body = {"model": name, "messages": [{"role": "user", "content": "th"}], "stream": False, "_debug_render_only": True}
    reply = server.client._json("POST", "/api/chat", body)
    return str(reply["_debug_info"]["rendered_template"])


def create(server: Running, path: Path, name: str) -> list[str]:
    place = ("--host", server.url, "--models", server.models)
    done = collab("ollama", "create", path, "--name", name, "--parameter", "num_thread=1", *place, "--json")
    assert done.returncode == 0, done.stderr
    notes: list[str] = json.loads(done.stdout)["notes"]
    return notes


@pytest.mark.slow
def test_the_files_own(qwen3moe: Path, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    write_with_template(qwen3moe, path, SIMPLE)
    create(server, path, "own")
    shown = server.client.show("own")
    assert shown is not None
    assert shown.template == SIMPLE
    assert render(server, "own") == "<user>th<a>"


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["{% for m in messages %}{{ m.content ", "{% raw %}x{% endraw %}"])
def test_one_that_cannot_be_rendered(broken: str, qwen3moe: Path, ollama: Ollama, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    write_with_template(qwen3moe, path, broken)
    request = {"prompt": "th", "options": {"num_predict": 2, "temperature": 0}}
    # A server of its own: Ollama's own create leaves the file that it wrote anew.
    with running(ollama, tmp_path) as server:
        assert "llama.cpp cannot render the file's chat template" in create(server, path, "broken")[0]
        assert render(server, "broken") == "th"
        assert server.client.generate({"model": "broken", **request})["eval_count"] == 2
        # With the file's own it does not even start.
        (tmp_path / "Modelfile").write_text(f"FROM {path}\n")
        done = server.run("create", "own-broken", "-f", str(tmp_path / "Modelfile"))
        assert done.returncode == 0, done.stderr
        with pytest.raises(CollabError, match="llama-server process has terminated"):
            server.client.generate({"model": "own-broken", **request})


@pytest.mark.slow
def test_one_that_ollama_knows(artifacts: dict[str, Path], ollama: Ollama, server: Running, tmp_path: Path) -> None:
    notes = {name: create(server, artifacts[name], f"{name}-template") for name in artifacts}
    assert any("OLLAMA_GO_TEMPLATE=0" in note for note in notes["tiny-qwen3moe"])
    assert notes["tiny-deepseek-v3"] == []
    name = "tiny-qwen3moe"
    with running(ollama, tmp_path, {"OLLAMA_GO_TEMPLATE": "0"}) as other:
        assert create(other, artifacts[name], name) == []
        assert render(other, name) == "<|im_start|>user\nth<|im_end|>\n<|im_start|>assistant\n"
