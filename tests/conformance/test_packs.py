"""Packs: recorded, read back, and refused when anything in them is not as it must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collab_conformance.measures import log_softmax
from collab_conformance.pack.make_pack import make_pack
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_document import Prompt, Recorder
from collab_conformance.pack.pack_file import pack_schema, read_pack, write_pack
from collab_conformance.pack.prompts import default_prompts, evenly, segment, text_prompts
from collab_conformance.pack.scale_directions import Scales
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from small_models.tiny_moe import tokens_of

from collab_plugin.errors import CollabError

RECORDER = Recorder("engine", "by hand", "cpu", {"numpy": np.__version__})
PROMPTS = (Prompt("one", (5,), (0,)), Prompt("some", (1, 2, 3, 2, 1), (0, 2, 4), 3))
VOCABULARY = 288  # of tests/small_models/tiny_moe.py


def by_hand(tokens: Sequence[int]) -> NDArray[np.float64]:
    """Logits that the tokens up to each position decide, most for the token after the last one."""
    ids, last = np.arange(VOCABULARY), np.cumsum(tokens)[:, None]
    return 4.0 * (ids == (last + 1) % VOCABULARY) + np.cos(ids * 0.1 + last)


@pytest.fixture(scope="session")
def pack_folder(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    make_pack(qwen3moe, PROMPTS, folder, by_hand, recorder=RECORDER)
    return folder


def test_a_pack_holds_what_was_recorded(pack_folder: Path, qwen3moe: Path) -> None:
    pack = read_pack(pack_folder)
    assert pack.document.artifact == describe(qwen3moe)
    assert pack.document.recorder == RECORDER
    assert not pack.document.routing
    some, logits = pack.recordings[1], by_hand(PROMPTS[1].tokens)
    assert (some.logits == logits[[0, 2, 4]].astype(np.float32)).all()
    assert some.top.ids.shape == (5, 20)
    assert (some.top.ids[:, 0] == logits.argmax(-1)).all()
    expected = np.take_along_axis(log_softmax(logits), some.top.ids.astype(np.int64), -1)
    assert some.top.values == pytest.approx(expected, abs=1e-6)
    assert some.routes is None


def test_greedy_text_is_fed_back(pack_folder: Path) -> None:
    greedy = read_pack(pack_folder).recordings[1].greedy
    assert greedy is not None
    # The sum of 1, 2, 3, 2, 1 is 9, so 10 follows; then the sum doubles and one is added.
    assert greedy.ids[:, 0].tolist() == [10, 20, 40]
    assert read_pack(pack_folder).recordings[0].greedy is None


def test_describe(qwen3moe: Path) -> None:
    found = describe(qwen3moe)
    assert found.sha256 == sha256(qwen3moe.read_bytes()).hexdigest()
    assert (found.bytes, found.vocabulary) == (qwen3moe.stat().st_size, VOCABULARY)
    assert (found.moe_layers, found.expert_count, found.experts_used) == ((0, 1), 4, 2)
    assert found.plan_fingerprint is None
    assert found.types["blk.0.ffn_down_exps.weight"] == "F32"


def test_writing_again_gives_the_same_bytes(pack_folder: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "copy", read_pack(pack_folder))
    for name in ("pack.json", "pack.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (pack_folder / name).read_bytes()


def test_pack_follows_its_schema(pack_folder: Path) -> None:
    Draft202012Validator(pack_schema()).validate(json.loads((pack_folder / "pack.json").read_text()))


Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def scaled_folder(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with scale directions, which lie column by column in memory as picked columns do."""
    rng = np.random.default_rng(5)
    made = {name: rng.standard_normal((4, 6)).astype(np.float16) for name in ("a.weight", "b.weight")}
    logits = np.asfortranarray(rng.standard_normal((4, 6)).astype(np.float32))
    scales = Scales(1, np.arange(0, 12, 2, dtype=np.int32), logits, made)
    folder = tmp_path_factory.mktemp("packs") / "scaled"
    write_pack(folder, replace(read_pack(pack_folder), scales=scales))
    return folder


def test_scale_directions_are_read_as_they_were_written(scaled_folder: Path, pack_folder: Path, tmp_path: Path) -> None:
    pack = read_pack(scaled_folder)
    assert pack.scales is not None and pack.scales.prompt == 1
    assert pack.scales.columns.tolist() == [0, 2, 4, 6, 8, 10]
    rng = np.random.default_rng(5)
    for name in ("a.weight", "b.weight"):
        assert (pack.scales.directions[name] == rng.standard_normal((4, 6)).astype(np.float16)).all()
    assert (pack.scales.logits == rng.standard_normal((4, 6)).astype(np.float32)).all()
    assert read_pack(pack_folder).scales is None
    write_pack(tmp_path / "copy", pack)
    for name in ("pack.json", "scales.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (scaled_folder / name).read_bytes()
    Draft202012Validator(pack_schema()).validate(json.loads((scaled_folder / "pack.json").read_text()))


def test_scale_directions_that_no_document_names_are_not_read(pack_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pack_folder, tmp_path / "pack")
    (tmp_path / "pack" / "scales.safetensors").write_bytes(b"x")
    assert read_pack(tmp_path / "pack").scales is None


SCALES: list[tuple[Change, str]] = [
    (lambda a: a.pop("columns"), "it has no 'columns'"),
    (lambda a: a.update(prompt=np.array([2], np.int32)), "it is of no prompt"),
    (lambda a: a.update(prompt=np.array([0], np.int32)), "logits of 4 positions, the prompt has 1"),
    (lambda a: a.update(prompt=np.array([-1], np.int32)), "it is of no prompt"),
    (lambda a: a["columns"].__setitem__(0, VOCABULARY), "columns outside the vocabulary"),
    (lambda a: a.update({"other": np.zeros(3, np.float32)}), "or other arrays"),
    (lambda a: (a.pop("direction.a.weight"), a.pop("direction.b.weight")), "no scale directions"),
    (lambda a: a.update({"direction.a.weight": np.zeros((4, 5), np.float16)}), "of another shape or type"),
    (lambda a: a["logits"].__setitem__((0, 0), np.nan), "not finite"),
]


@pytest.mark.parametrize(("change", "words"), SCALES)
def test_scale_directions_that_are_wrong_are_refused(
    change: Change, words: str, scaled_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(scaled_folder, folder)
    arrays = load_file(folder / "scales.safetensors")
    change(arrays)
    save_file(arrays, folder / "scales.safetensors")
    assert "its sha256 differs" in _refusal(folder)
    _rehash(folder)
    assert words in _refusal(folder)


BROKEN: list[tuple[Change, str]] = [
    (lambda d: d.update(version=2), "pack version 2"),
    (lambda d: d.update(version=True), "pack version True"),
    (lambda d: d.update(format="x"), "not a pack file of collab-plugin"),
    (lambda d: d.update(more=1), "unknown member 'more'"),
    (lambda d: d.pop("recorder"), "no member 'recorder'"),
    (lambda d: d.update(prompts=[]), "$.prompts has 0 prompts"),
    (lambda d: d["artifact"].update(name="../x.gguf"), "$.artifact.name is not a plain file name"),
    (lambda d: d["artifact"].update(sha256="z" * 64), "$.artifact.sha256 is no sha256"),
    (lambda d: d["artifact"].update(vocabulary=2**40), "$.artifact.vocabulary is not in"),
    (lambda d: d["artifact"].update(experts_used=9), "$.artifact.experts_used is more"),
    (lambda d: d["artifact"]["types"].update(x="Q99"), "unknown type 'Q99'"),
    (lambda d: d["prompts"][1].update(name="one"), "repeats a name"),
    (lambda d: d["prompts"][1].update(name="/etc/passwd"), "$.prompts[1].name is not of a-z"),
    (lambda d: d["prompts"][1]["tokens"].append(VOCABULARY), "$.prompts[1].tokens has an id outside"),
    (lambda d: d["prompts"][1]["tokens"].append(-1), "$.prompts[1].tokens has an id outside"),
    (lambda d: d["prompts"][1].update(positions=[2, 0]), "$.prompts[1].positions does not ascend"),
    (lambda d: d["prompts"][1].update(positions=[0, 5]), "$.prompts[1].positions has one outside"),
    (lambda d: d["prompts"][1].update(greedy_steps=10**9), "$.prompts[1].greedy_steps is not in"),
    (lambda d: d["prompts"][1].update(greedy_steps=2), "1.greedy.ids is int32(3, 5), not int32(2, 5)"),
    (lambda d: d["prompts"][1]["tokens"].append(0), "1.top.ids is int32(5, 20), not int32(6, 20)"),
    (lambda d: d.update(routing=True), "lacks array '0.routing.ids'"),
    (lambda d: d.update(tensors_sha256="0" * 64), "its sha256 differs"),
    (lambda d: d.update(scales_sha256="0"), "$.scales_sha256 is no sha256"),
    (lambda d: d.update(scales_sha256="0" * 64), "scales.safetensors: No such file"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_a_document_that_is_wrong_is_refused(change: Change, words: str, pack_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(pack_folder, folder)
    document = json.loads((folder / "pack.json").read_text())
    change(document)
    (folder / "pack.json").write_text(json.dumps(document))
    assert words in _refusal(folder)


ARRAYS: list[tuple[Change, str]] = [
    (lambda a: a.pop("0.logits"), "lacks array '0.logits'"),
    (lambda a: a.update({"9.logits": np.zeros(1, np.float32)}), "unknown array '9.logits'"),
    (lambda a: a.update({"0.logits": a["0.logits"].astype(np.float64)}), "0.logits is float64(1, 288), not float32"),
    (lambda a: a["0.logits"].__setitem__((0, 3), np.nan), "0.logits holds values that are not finite"),
    (lambda a: a["1.top.ids"].__setitem__((0, 0), VOCABULARY), "1.top.ids has an id outside 0..287"),
    (lambda a: a["1.top.ids"].__setitem__((0, 0), a["1.top.ids"][0, 1]), "1.top.ids repeats an id"),
    (lambda a: a["1.top.values"].__setitem__((0, 0), -9.0), "1.top.values are no falling log-probabilities"),
    (lambda a: a["1.greedy.values"].__setitem__((0, 0), 1.0), "1.greedy.values are no falling log-probabilities"),
]


@pytest.mark.parametrize(("change", "words"), ARRAYS)
def test_arrays_that_are_wrong_are_refused(change: Change, words: str, pack_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(pack_folder, folder)
    arrays = load_file(folder / "pack.safetensors")
    change(arrays)
    save_file(arrays, folder / "pack.safetensors")
    _rehash(folder)
    assert words in _refusal(folder)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"{}", bytes(100)])
def test_tensors_that_are_no_safetensors_are_refused(data: bytes, pack_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(pack_folder, folder)
    (folder / "pack.safetensors").write_bytes(data)
    assert "its sha256 differs" in _refusal(folder)
    _rehash(folder)
    assert "is no safetensors file" in _refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"format": "collab-plugin pack"'])
def test_documents_that_are_no_pack_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(text)
    assert "pack.json" in _refusal(tmp_path)


def test_a_folder_without_a_pack(tmp_path: Path) -> None:
    assert _refusal(tmp_path).startswith(f"cannot read the pack {tmp_path}/pack.json: No such file")


def _refusal(folder: Path) -> str:
    with pytest.raises(CollabError) as caught:
        read_pack(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _rehash(folder: Path) -> None:
    document = json.loads((folder / "pack.json").read_text())
    for member, name in (("tensors_sha256", "pack.safetensors"), ("scales_sha256", "scales.safetensors")):
        if document[member]:
            document[member] = sha256((folder / name).read_bytes()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(document))


def test_logits_that_are_not_finite_are_not_recorded(qwen3moe: Path, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="not finite"):
        make_pack(qwen3moe, PROMPTS, tmp_path / "pack", lambda t: by_hand(t) * np.inf, recorder=RECORDER)
    assert not (tmp_path / "pack").exists()


def test_ids_that_the_vocabulary_lacks_are_not_recorded(qwen3moe: Path, tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="prompt 'far' has an id that"):
        make_pack(qwen3moe, [Prompt("far", (VOCABULARY,), (0,))], tmp_path / "pack", by_hand, recorder=RECORDER)


# -- prompts


def test_default_prompts(qwen3moe: Path) -> None:
    prompts = default_prompts(qwen3moe)
    assert [len(p.tokens) for p in prompts] == [1, 7, 64, 200, 520]
    assert [len(p.positions) for p in prompts] == [1, 7, 8, 40, 8]
    assert [p.greedy_steps for p in prompts] == [0, 0, 16, 0, 0]
    assert all(p.positions[-1] == len(p.tokens) - 1 for p in prompts)
    assert prompts == default_prompts(qwen3moe)
    assert [*prompts[0].tokens, *prompts[1].tokens] == tokens_of("The light")[:8]


def test_prompts_of_a_text(qwen3moe: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the")
    (prompt, *_rest) = text_prompts(qwen3moe, tmp_path / "a.txt")
    assert prompt.tokens == (256,)
    with pytest.raises(CollabError, match="has no token of"):
        text_prompts(qwen3moe, Path("/dev/null"))
    with pytest.raises(CollabError, match="cannot read"):
        text_prompts(qwen3moe, tmp_path / "none.txt")


WORDS = {"a": 0, "b": 1, "ab": 2, "abc": 3, "\u2581": 4, "\u0120": 5}


def test_the_longest_token_wins() -> None:
    assert segment("abab abc?b", WORDS, "llama") == [2, 2, 4, 3, 1]
    assert segment("ab b", WORDS, "gpt2") == [2, 5, 1]


@given(st.lists(st.sampled_from(["a", "b", "abc", " "])).map("".join))
def test_segments_join_to_the_text(text: str) -> None:
    names = {number: name.replace("\u2581", " ") for name, number in WORDS.items()}
    assert "".join(names[i] for i in segment(text, WORDS, "llama")) == text


@given(st.integers(1, 600).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_positions_are_spread_evenly(pair: tuple[int, int]) -> None:
    length, count = pair
    found = evenly(length, count)
    assert len(set(found)) == count
    assert (found == sorted(found), found[-1]) == (True, length - 1)
    gaps = np.diff([-1, *found])
    assert gaps.max() - gaps.min() <= 1
