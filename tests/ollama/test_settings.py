"""What a model gets by default, and what the options change; where the server is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collab_ollama.model import default_settings as settings
from collab_ollama.model.default_settings import default_parameters, read_generation_config
from collab_ollama.model.gguf_for_ollama import open_artifact
from collab_ollama.model.model_name import parse_name
from collab_ollama.model.token_text import token_text
from collab_ollama.server.device_memory import available_memory
from collab_ollama.server.host import is_loopback, server_url
from gguf import GGUFValueType
from real_ollama import collab, mistake

from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def test_context_is_ours_and_never_more_than_the_models(qwen3moe: Path) -> None:
    artifact = open_artifact(qwen3moe)
    assert artifact.context_length == 512
    assert default_parameters(artifact, None, None, {}).parameters["num_ctx"] == 512
    assert default_parameters(artifact, 64, None, {}).parameters["num_ctx"] == 64
    with pytest.raises(CollabError, match="more than the model's 512"):
        default_parameters(artifact, 513, None, {})


def test_mapped_when_larger_than_free_memory(qwen3moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = open_artifact(qwen3moe)
    assert available_memory() > artifact.bytes
    assert "use_mmap" not in default_parameters(artifact, None, None, {}).parameters
    assert default_parameters(artifact, None, False, {}).parameters["use_mmap"] is False
    monkeypatch.setattr(settings, "available_memory", lambda: artifact.bytes - 1)
    assert default_parameters(artifact, None, None, {}).parameters["use_mmap"] is True


def test_sampling_of_generation_config(qwen3moe: Path, tmp_path: Path) -> None:
    artifact = open_artifact(qwen3moe)
    config: dict[str, object] = {
        "temperature": 0.6,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "do_sample": True,
        "eos_token_id": [257, 256],
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    found = default_parameters(artifact, None, None, read_generation_config(tmp_path)).parameters
    assert found == {
        "num_ctx": 512,
        "temperature": 0.6,
        "top_p": 0.95,
        "repeat_penalty": 1.1,
        "stop": ("<|end|>", "th"),
    }


def test_sampling_that_the_gguf_states(qwen3moe: Path) -> None:
    artifact = open_artifact(qwen3moe)
    stored = MetaValue(0.6000000238418579, GGUFValueType.FLOAT32)
    artifact.checkpoint.metadata = {**artifact.checkpoint.metadata, "general.sampling.temp": stored}
    assert default_parameters(artifact, None, None, {}).parameters["temperature"] == 0.6
    assert default_parameters(artifact, None, None, {"temperature": 0.7}).parameters["temperature"] == 0.7
    assert default_parameters(artifact, None, None, {"do_sample": False}).parameters["temperature"] == 0


def test_a_whole_number_may_be_written_as_a_fraction(qwen3moe: Path) -> None:
    found = default_parameters(open_artifact(qwen3moe), None, None, {"top_k": 50.0})
    assert found.parameters["top_k"] == 50
    assert isinstance(found.parameters["top_k"], int)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("repetition_penalty", -1, "repeat_penalty is -1, not above 0 (1 is none)"),
        ("repetition_penalty", 0.0, "repeat_penalty is 0.0, not above 0 (1 is none)"),
        ("top_k", 50.5, "top_k is 50.5, not a whole number"),
        ("top_p", 1.5, "top_p is 1.5, not between 0 and 1"),
        ("temperature", -0.1, "temperature is -0.1, not at least 0"),
        ("temperature", "hot", "temperature is 'hot', not a number"),
        ("min_p", True, "min_p is True, not a number"),
    ],
)
def test_sampling_that_means_nothing_is_left_out(key: str, value: object, why: str, qwen3moe: Path) -> None:
    found = default_parameters(open_artifact(qwen3moe), None, None, {key: value})
    assert set(found.parameters) == {"num_ctx", "stop"}
    assert found.notes == (f"the generation config's {key} is left out: {why}",)


def test_what_is_left_out_is_told(qwen3moe: Path, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": -1}')
    done = collab("export", "ollama", qwen3moe, "--name", "m", "--generation-config", tmp_path, "-o", tmp_path / "out")
    assert (
        "note: the generation config's repetition_penalty is left out: repeat_penalty is -1, not above 0" in done.stdout
    )


def test_a_newline_as_stop_token_is_a_newline(qwen3moe: Path) -> None:
    """The vocabulary stores it as U+010A, which no text ever has."""
    artifact = open_artifact(qwen3moe)
    tokens = artifact.checkpoint.metadata["tokenizer.ggml.tokens"].value
    newline, space = tokens.index("\u010a"), tokens.index("\u0120")
    part = tokens.index("\u00c3")  # the first of two bytes of a letter
    found = default_parameters(artifact, None, None, {"eos_token_id": [newline, 257, space, part, 9999]})
    assert found.parameters["stop"] == ("\n", "<|end|>", " ")
    assert found.notes == tuple(
        f"token {i}, which ends a text, is no stop: the GGUF has no text for it" for i in (part, 9999)
    )


@pytest.mark.parametrize(
    ("stored", "kind", "text"),
    [("<0x0A>", 6, "\n"), ("<0xC3>", 6, None), ("\u2581end\u2581", 1, " end "), ("</s>", 3, "</s>")],
)
def test_tokens_of_sentencepiece(stored: str, kind: int, text: str | None) -> None:
    array = GGUFValueType.ARRAY
    metadata = {
        "tokenizer.ggml.model": MetaValue("llama", GGUFValueType.STRING),
        "tokenizer.ggml.tokens": MetaValue([stored], array, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": MetaValue([kind], array, GGUFValueType.INT32),
    }
    assert token_text(metadata, 0) == text


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_broken_generation_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(CollabError, match=r"generation_config\.json is no"):
        read_generation_config(path)


def test_template_only_without_a_chat_template(qwen3moe: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    assert open_artifact(qwen3moe).chat_template is None
    done = collab("export", "ollama", qwen3moe, "--name", "x", "-o", build)
    assert done.returncode == 0, done.stderr
    assert 'TEMPLATE """{{ .System }}{{ .Prompt }}"""' in (build / "Modelfile").read_text()
    own = tmp_path / "template"
    own.write_text("<{{ .Prompt }}>\n")
    options = ("--template", own, "--parameter", "stop=a", "--parameter", "stop=b", "--parameter", "top_k=5")
    done = collab("export", "ollama", qwen3moe, "--name", "x", "-o", build, *options, "--json")
    assert done.returncode == 0, done.stderr
    text = (build / "Modelfile").read_text()
    assert 'TEMPLATE """<{{ .Prompt }}>\n"""' in text
    assert 'PARAMETER stop """a"""\nPARAMETER stop """b"""\n' in text
    assert "PARAMETER top_k 5\n" in text
    assert json.loads(done.stdout)["create"] == ["ollama", "create", "x:latest", "-f", str(build / "Modelfile")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--parameter", "speed=3"), "no parameter 'speed'"),
        (("--parameter", "speed"), "write NAME=VALUE"),
        (("--template", "nowhere"), "cannot read nowhere"),
        (("--system", 'x\n"""\ny'), "the system prompt has a line that ends in"),
        (("--requires", "newest"), "no version"),
        (("--generation-config", "nowhere"), "cannot read nowhere"),
    ],
)
def test_mistakes_of_export(options: tuple[str, ...], words: str, qwen3moe: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    assert words in mistake(collab("export", "ollama", qwen3moe, "--name", "x", "-o", build, *options))
    assert not build.exists()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost", "http://localhost:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org", "https://example.org:443"),
        ("[::1]:9", "http://[::1]:9"),
        ("10.1.2.3", "http://10.1.2.3:11434"),
    ],
)
def test_where_the_server_is(given: str, url: str) -> None:
    assert server_url(given) == url
    assert is_loopback(url) == any(part in url for part in ("localhost", "127.0.0.1", "[::1]"))


@pytest.mark.parametrize("given", ["ftp://x", "x:y", "http://x:99999"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(CollabError, match="no address of a server"):
        server_url(given)


@pytest.mark.parametrize(
    ("text", "shown", "path"),
    [
        ("a", "a:latest", "registry.ollama.ai/library/a/latest"),
        ("me/a:1", "me/a:1", "registry.ollama.ai/me/a/1"),
        ("localhost:5000/me/a", "localhost:5000/me/a:latest", "localhost:5000/me/a/latest"),
    ],
)
def test_names(text: str, shown: str, path: str) -> None:
    assert str(parse_name(text)) == shown
    assert str(parse_name(text).path) == path
    assert parse_name(shown) == parse_name(text)
