"""Modelfiles: what Ollama's own parser reads is what was meant, or it is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from collab_ollama.model.modelfile import Modelfile, render
from collab_ollama.model.modelfile_grammar import plain, quoted
from collab_ollama.model.parameters import check_parameters, parameter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_ollama import native

from collab_plugin.errors import CollabError

Commands = list[tuple[str, str]]
Parse = Callable[[str], Commands]


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    """Ollama's parser, from a Modelfile's text to its commands."""
    program = native() / "bin" / "parse-modelfile"
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(text: str) -> Commands:
            child.stdin.write(json.dumps(text) + "\n")
            child.stdin.flush()
            reply = json.loads(child.stdout.readline())
            assert not reply["Error"], reply["Error"]
            return [(command["Name"], command["Args"]) for command in reply["Commands"]]

        yield ask
        child.stdin.close()


@pytest.fixture(scope="module")
def gguf(qwen3moe: Path) -> Path:
    return qwen3moe


def expected(modelfile: Modelfile) -> Commands:
    commands = [("model", str(path.resolve())) for path in modelfile.files]
    for name, value in modelfile.parameters.items():
        for one in value if isinstance(value, tuple) else (value,):
            commands.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
    commands += [("template", modelfile.template)] if modelfile.template is not None else []
    commands += [("system", modelfile.system)] if modelfile.system is not None else []
    return [*commands, *(("license", text) for text in modelfile.licenses)]


# Biased towards what the grammar is touchy about.
texts = st.lists(
    st.one_of(
        st.sampled_from(['"', '""', '"""', "\n", "\r", "\r\n", "\t", " ", "\\", "#", "FROM x", "'"]),
        st.text(max_size=4),
    )
).map("".join)
values = st.one_of(st.integers(-(2**31), 2**31), st.floats(-1e6, 1e6, allow_nan=False))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    system=st.none() | texts,
    template=st.none() | texts,
    licenses=st.lists(texts, max_size=2),
    stop=st.lists(texts, max_size=2),
    temperature=st.floats(0, 10),
    top_k=st.integers(-(2**31), 2**31),
    mmap=st.booleans(),
)
def test_ollama_reads_what_was_meant(
    parse: Parse,
    gguf: Path,
    system: str | None,
    template: str | None,
    licenses: list[str],
    stop: list[str],
    temperature: float,
    top_k: int,
    mmap: bool,
) -> None:
    modelfile = Modelfile(
        files=(gguf,),
        parameters={"stop": tuple(s for s in stop if s), "temperature": temperature, "top_k": top_k, "use_mmap": mmap},
        template=template,
        system=system,
        licenses=tuple(licenses),
    )
    try:
        text = render(modelfile)
    except CollabError:
        return  # that refusals are right is tested below
    assert parse(text) == expected(modelfile)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=texts)
def test_only_what_ollama_misreads_is_refused(parse: Parse, gguf: Path, value: str) -> None:
    try:
        quoted(value, "the text")
    except CollabError:
        unchecked = f'FROM {gguf}\nSYSTEM """{value}"""\n'
        try:
            misread = parse(unchecked) != [("model", str(gguf)), ("system", value)]
        except AssertionError:
            misread = True
        # Characters newer than this Python's tables are refused although Go may know them.
        assert misread or any(character > "\u2fff" for character in value)


@pytest.mark.parametrize(
    "value",
    ["", "one line", 'a """ inside', '"', '""', "\n\n", 'ends with "', "\ttabs\t", "<｜end▁of▁sentence｜>", "\r\n"],
)
def test_these_can_be_said(parse: Parse, gguf: Path, value: str) -> None:
    modelfile = Modelfile(files=(gguf,), system=value)
    assert parse(render(modelfile)) == [("model", str(gguf)), ("system", value)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('code:\n"""\nmore', 'a line that ends in """'),
        ('x"""  \nmore', 'a line that ends in """'),
        ("a\u00a0b", "U+00A0"),
        ("zero\u200bwidth", "U+200B"),
        ("bell\a", "U+0007"),
    ],
)
def test_these_cannot_be_said(value: str, words: str) -> None:
    with pytest.raises(CollabError, match=r"^the text has .*collab-plugin ollama create") as caught:
        quoted(value, "the text")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [" x", "x ", "", '"x"', "a\nb", "a\u00a0b"])
def test_path_that_cannot_be_said(value: str) -> None:
    with pytest.raises(CollabError):
        plain(value, "the path")


def test_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="does not exist"):
        render(Modelfile(files=(tmp_path / "nowhere.gguf",)))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("num_cpu_moe", "3", "no parameter 'num_cpu_moe'"),
        ("use_mlock", "true", "ignores the parameter use_mlock"),
        ("top_k", "many", "not a whole number"),
        ("top_k", "1.5", "not a whole number"),
        ("temperature", "nan", "out of range"),
        ("temperature", "warm", "not a number"),
        ("use_mmap", "yes", "not true or false"),
        ("num_ctx", "0", "at least one token"),
        ("repeat_penalty", "-1", "repeat_penalty is -1.0, not above 0 (1 is none)"),
        ("top_p", "2", "top_p is 2.0, not between 0 and 1"),
        ("seed", str(2**70), "out of range"),
    ],
)
def test_parameters_that_ollama_would_not_take(name: str, text: str, words: str) -> None:
    with pytest.raises(CollabError) as caught:
        parameter(name, text)
    assert words in str(caught.value)


@pytest.mark.parametrize("parameters", [{"stop": "x"}, {"stop": ("",)}, {"use_mmap": 1}, {"top_p": True}, {"speed": 3}])
def test_parameters_of_the_wrong_kind(parameters: dict[str, object]) -> None:
    with pytest.raises(CollabError):
        check_parameters(parameters)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("requires", "fine"), [("0.30.0", True), ("v0.30", True), ("1", True), ("new", False), ("1.x", False)]
)
def test_requires_is_a_version(gguf: Path, requires: str, fine: bool) -> None:
    if fine:
        assert f"REQUIRES {requires}\n" in render(Modelfile(files=(gguf,), requires=requires))
    else:
        with pytest.raises(CollabError, match="no version"):
            render(Modelfile(files=(gguf,), requires=requires))
