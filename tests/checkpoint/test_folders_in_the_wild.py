"""Hugging Face folders as people have them: the right value, or one line that says what to do.

Where a kind is known from a public report, the test names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from small_models.hf_folder import Tensor, bf16, qwen, safetensors_bytes, write_folder

from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint, open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import untold

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4976698672\n"


def said(path: Path) -> str:
    """The one line that `inspect` says against ``path``."""
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", *qwen())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", *qwen(), shards=2)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def values_of(stored: Tensor) -> np.ndarray:
    return (np.frombuffer(stored.data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(stored.shape)


# -- files


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs(name: str, folder: Path) -> None:
    """A clone without git-lfs (deepseek-ai/DeepSeek-V3 issue 557, huggingface/transformers issue 27923)."""
    (folder / name).write_text(POINTER)
    line = said(folder)
    assert name in line
    assert "it is a Git LFS pointer, which stands for the file: run `git lfs pull` beside it" in line


def test_a_part_of_the_folder(folder: Path) -> None:
    """The file instead of its folder (ollama/ollama issues 3246 and 6273)."""
    assert f"give the folder, {folder}, with its config.json" in said(folder / "model.safetensors")


def test_pickles_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = f"{folder} holds no safetensors file (pytorch_model.bin: pickles are not read, save it with safetensors)"
    assert line in said(folder)


def test_an_adapter(folder: Path) -> None:
    """ggml-org/llama.cpp issue 6058."""
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "it is a LoRA adapter (adapter_config.json): merge it into its model first" in said(folder)


def test_weights_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "it has safetensors but no config.json: download that, too" in said(folder)


def test_a_second_copy_of_the_weights(folder: Path) -> None:
    """consolidated.safetensors of mistral-inference beside model.safetensors (ggml-org/llama.cpp issues 7486, 8807)."""
    copy = {"layers.0.attention.wq.weight": bf16(np.ones((4, 4), np.float32))}
    (folder / "consolidated.safetensors").write_bytes(safetensors_bytes(copy))
    checkpoint = open_safetensors(folder)
    assert checkpoint.notes == ("passed over consolidated.safetensors: mistral-inference's copy of the weights",)
    np.testing.assert_array_equal(checkpoint.read("output.weight"), values_of(qwen()[1][HEAD]))


def test_that_copy_alone_has_other_names(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    copy = {"layers.0.attention.wq.weight": bf16(np.ones((4, 4), np.float32))}
    (folder / "consolidated.safetensors").write_bytes(safetensors_bytes(copy))
    assert "the folder has no " in said(folder)


def test_a_read_only_folder(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(open_checkpoint(folder).tensors) > 10
    finally:
        folder.chmod(0o755)


# -- the index


def test_an_index_that_misses_a_tensor(sharded: Path) -> None:
    """Every tensor of the files that it names is read, as transformers does."""
    edited(sharded / INDEX, lambda index: index["weight_map"].pop(HEAD))
    np.testing.assert_array_equal(open_checkpoint(sharded).read("output.weight"), values_of(qwen()[1][HEAD]))


def test_an_index_that_names_a_tensor_twice(sharded: Path) -> None:
    """In two files, of which one holds it."""
    text = (sharded / INDEX).read_text()
    other = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} - {
        json.loads(text)["weight_map"][HEAD]
    }
    doubled = text.replace('"weight_map": {', f'"weight_map": {{"{HEAD}": "{other.pop()}", ')
    (sharded / INDEX).write_text(doubled)
    np.testing.assert_array_equal(open_checkpoint(sharded).read("output.weight"), values_of(qwen()[1][HEAD]))


def test_an_index_of_other_files(sharded: Path) -> None:
    """The original's index beside weights that were written anew (Blaizzy/mlx-vlm issue 624)."""
    text = (sharded / INDEX).read_text()
    (sharded / INDEX).write_text(text.replace("of-00002", "of-00010"))
    line = said(sharded)
    assert "names other files than are there (model-00001-of-00010.safetensors, model-00002-of-00010.safeten" in line
    assert "it is of another version of the weights; remove it, or download the right one" in line
    (sharded / INDEX).unlink()
    np.testing.assert_array_equal(open_checkpoint(sharded).read("output.weight"), values_of(qwen()[1][HEAD]))


@pytest.mark.parametrize("name", ["a" * 300, 2**31, {"a": "b" * 300}, "\0", "\ud800"])
def test_an_index_of_names_that_are_none(name: Any, sharded: Path) -> None:
    edited(sharded / INDEX, lambda index: index["weight_map"].update({HEAD: name}))
    assert "model.safetensors" in said(sharded) or "is not UTF-8" in said(sharded) or "shard missing" in said(sharded)


def test_merges_of_tokens_that_are_not_there(folder: Path) -> None:
    edited(
        folder / "tokenizer.json",
        lambda data: (
            data["model"]["vocab"].pop("th", None)
            or data["model"]["vocab"].pop(next(token for token in data["model"]["vocab"] if len(token) == 2))
        ),
    )
    with pytest.raises(CollabError, match=r"do not fit each other|cannot read"):
        open_safetensors(folder).check_conversion()


def test_a_file_that_the_index_does_not_name(sharded: Path) -> None:
    """A quantized model.safetensors beside the shards (Blaizzy/mlx-vlm pull request 1464)."""
    (sharded / "model.safetensors").write_bytes(safetensors_bytes({HEAD: bf16(np.ones((2, 2), np.float32))}))
    np.testing.assert_array_equal(open_checkpoint(sharded).read("output.weight"), values_of(qwen()[1][HEAD]))


# -- config.json


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_weights_that_other_tools_packed(method: str, tmp_path: Path) -> None:
    """unslothai/unsloth issues 67 and 1757, ggml-org/llama.cpp issue 7505."""
    config, tensors = qwen()
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    assert f"is quantized as {method}, which is not read here; give the original" in said(
        write_folder(tmp_path / "m", config, tensors)
    )


def test_numbers_that_json_has_not(folder: Path) -> None:
    """Infinity in a key that nobody reads here (ollama/ollama issue 13707), and where a number is needed."""
    edited(folder / "config.json", lambda config: config.update(time_step_limit=[0.0, float("inf")]))
    assert open_safetensors(folder).notes == (
        "config.json has keys that are not known here and were not read: time_step_limit",
    )
    edited(folder / "config.json", lambda config: config.update(rms_norm_eps=float("nan")))
    assert "has rms_norm_eps = 'nan', not a number" in said(folder)


def test_an_expert_count_under_no_known_key(folder: Path) -> None:
    edited(folder / "config.json", lambda config: config.update(experts=config.pop("num_experts")))
    assert "tells the number of experts under none of num_experts, num_local_experts" in said(folder)


def test_another_class_around_the_text_model(folder: Path) -> None:
    """Settings inside text_config, as models that see have them, under a class that is not known."""
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["SeeingMoeForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    assert "is a SeeingMoeForConditionalGeneration; Hugging Face folders of" in said(folder)


@pytest.mark.parametrize("equal", [True, False])
def test_an_output_matrix_beside_a_tied_embedding(equal: bool, tmp_path: Path) -> None:
    """transformers stores it at times (huggingface/transformers issue 48972) and never loads it."""
    config, tensors = qwen(tie_word_embeddings=True)
    if equal:
        tensors[HEAD] = tensors["model.embed_tokens.weight"]
    checkpoint = open_safetensors(write_folder(tmp_path / "m", config, tensors))
    assert "output.weight" not in checkpoint.tensors
    assert checkpoint.notes == ("lm_head.weight was not read: config.json ties the output matrix to the embedding",)


# -- tokenizers


def test_a_vocabulary_without_steps(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    line = said(folder)
    assert "has vocab.json but no tokenizer.json, which is what is read here: save the tokenizer anew" in line


def test_a_template_that_is_no_text(folder: Path) -> None:
    edited(folder / "tokenizer_config.json", lambda data: data.update(chat_template="a\ud83d"))
    assert "tokenizer.chat_template holds '\\ud83d', which is no character; correct the file that it is from" in said(
        folder
    )


def _token(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content} | flags


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """Four rows of the embedding are nobody's."""
    return write_folder(tmp_path / "padded", *qwen(vocab_size=3076))


def test_tokens_added_within_the_padding(padded: Path) -> None:
    """Embeddings have more rows than the vocabulary (unslothai/unsloth issue 2607): the next one is the new token's."""
    edited(padded / "tokenizer.json", lambda data: data["added_tokens"].append(_token(3072, "<new>")))
    checkpoint = open_safetensors(padded)
    tokens = checkpoint.metadata["tokenizer.ggml.tokens"].value
    assert len(tokens) == checkpoint.tensors["token_embd.weight"].shape[0] == 3076
    assert tokens[3071:] == ["<|im_end|>", "<new>", "[PAD3073]", "[PAD3074]", "[PAD3075]"]
    checkpoint.check_conversion()


def test_a_token_added_behind_a_gap(padded: Path) -> None:
    """The tokenizers library, and transformers with it, gives it the next number whatever the file says."""
    edited(padded / "tokenizer.json", lambda data: data["added_tokens"].append(_token(3075, "<new>")))
    with pytest.raises(CollabError, match=r"tokens of 'so<new>that', the GGUF would make 4 others"):
        open_safetensors(padded).check_conversion()


@pytest.mark.parametrize("value", [-3071, {"a": 1}, "x"])
def test_special_tokens_that_are_none(value: Any, folder: Path) -> None:
    """What gguf-py stumbles over is one line; what it passes over is no special token."""
    edited(folder / "config.json", lambda config: config.update(eos_token_id=value))
    (folder / "tokenizer_config.json").unlink()
    if value == -3071:
        assert "the special tokens of config.json or the tokenizer's files are damaged" in said(folder)
    else:
        assert "tokenizer.ggml.eos_token_id" not in open_safetensors(folder).metadata


def test_two_tokens_of_one_number(folder: Path) -> None:
    edited(folder / "tokenizer.json", lambda data: data["added_tokens"].append(_token(3070, "<new>")))
    assert "gives the id 3070 to two tokens, '<|im_start|>' and '<new>'" in said(folder)


def test_tokens_added_behind_the_embedding(folder: Path) -> None:
    """unslothai/unsloth issues 237 and 418."""
    edited(folder / "tokenizer.json", lambda data: data["added_tokens"].append(_token(3072, "<new>")))
    line = "has token id 3072, config.json a vocab_size of 3072: tokens were added and the embedding was not resized"
    assert line in said(folder)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_added_beside_tokenizer_json(where: str, folder: Path) -> None:
    """transformers would add them when it loads; nothing else does."""
    path = folder / where
    data = json.loads(path.read_text()) if path.is_file() else {}
    if where == "tokenizer_config.json":
        data["added_tokens_decoder"] = {"3072": _token(3072, "<new>")}
    else:
        data["<new>"] = 3072
    path.write_text(json.dumps(data))
    assert f"{where} adds the token '<new>' (3072), which tokenizer.json lacks" in said(folder)


def test_settings_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    """No generation_config.json, no tokenizer_config.json: nothing is invented."""
    (folder / "tokenizer_config.json").unlink()
    assert not (folder / "generation_config.json").exists()
    checkpoint: SafetensorsCheckpoint = open_safetensors(folder)
    assert "tokenizer.chat_template" not in checkpoint.metadata
    out = tmp_path / "out.gguf"
    compress(checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=untold)
    assert out.stat().st_size == copy_plan(checkpoint).bytes


# -- paths


@pytest.mark.parametrize("name", ["with spaces", "modèle-日本-🦙", "-dash", "a'b\"c", "%s{0}", "x" * 200])
def test_names_of_folders(name: str, folder: Path) -> None:
    moved = folder.rename(folder.with_name(name))
    result = CliRunner().invoke(main, ["inspect", str(moved), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["name"] == name


def test_links_to_folders_and_files(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "model.safetensors").rename(elsewhere / "blob")
    (folder / "model.safetensors").symlink_to(os.path.relpath(elsewhere / "blob", folder))
    (tmp_path / "link").symlink_to(folder)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "link").read("output.weight"), values_of(qwen()[1][HEAD]))


def test_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves `~` in quotes and behind `=` as it is."""
    monkeypatch.setenv("HOME", str(folder.parent))
    result = CliRunner().invoke(main, ["inspect", "~/m", "--json"])
    assert result.exit_code == 0, result.output
    with pytest.raises(CollabError, match=r"^~/m does not exist$"):
        open_checkpoint("~/m")


def test_an_output_on_another_disk(folder: Path) -> None:
    """What is unfinished lies beside the output, so that nothing is renamed from one disk to another."""
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no second file system")
    out = other / f"collab-test-{os.getpid()}.gguf"
    try:
        checkpoint = open_safetensors(folder)
        compress(checkpoint, copy_plan(checkpoint), None, out, kernels=None, threads=1, report=untold)
        assert out.stat().st_size == copy_plan(checkpoint).bytes
        assert [path.name for path in other.glob(f"{out.name}*")] == [out.name]
    finally:
        out.unlink(missing_ok=True)
