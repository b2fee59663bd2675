"""The trained folders: every GGUF tensor is the safetensors' bytes, every text the tokenizer's tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models.hf_folder import MODELS
from tokenizers import Tokenizer

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint

NAMES = ["tiny-qwen3moe", "tiny-deepseek-v3"]
F32 = NDArray[np.float32]

# GGUF name of a block's tensor -> Hugging Face name. {} is the layer; experts and MLA are apart.
BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    **{f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp.weight": f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")},
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def stored(folder: Path) -> dict[str, F32]:
    """All tensors as float32, read by the format's own definition."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            raw = data[8 + size + start : 8 + size + stop]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                assert entry["dtype"] == "F32"
                values = np.frombuffer(raw, "<f4")
            found[name] = values.reshape(entry["shape"])
    return found


def wanted(name: str, source: dict[str, F32], config: dict[str, int]) -> tuple[F32, list[str]]:
    """The values of the GGUF tensor ``name``, and the stored tensors that went into it."""
    if name in ENDS:
        return source[ENDS[name]], [ENDS[name]]
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    assert found, name
    prefix, rest = f"model.layers.{found[1]}", found[2]
    if experts := re.fullmatch(r"ffn_(gate|up|down)_exps\.weight", rest):
        count = config.get("num_experts") or config["n_routed_experts"]
        names = [f"{prefix}.mlp.experts.{i}.{experts[1]}_proj.weight" for i in range(count)]
        return np.stack([source[n] for n in names]), names
    if rest in ("attn_k_b.weight", "attn_v_b.weight"):
        heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
        whole = f"{prefix}.self_attn.kv_b_proj.weight"
        by_head = source[whole].reshape(heads, nope + config["v_head_dim"], -1)
        return (by_head[:, :nope].swapaxes(1, 2) if rest == "attn_k_b.weight" else by_head[:, nope:]), [whole]
    return source[f"{prefix}.{BLOCK[rest]}"], [f"{prefix}.{BLOCK[rest]}"]


@pytest.mark.parametrize("model", NAMES)
def test_every_tensor_is_what_is_stored(model: str) -> None:
    folder = MODELS / model
    checkpoint, source = open_checkpoint(folder), stored(folder)
    config = json.loads((folder / "config.json").read_text())
    used: set[str] = set()
    for name, info in checkpoint.tensors.items():
        values, names = wanted(name, source, config)
        used.update(names)
        assert info.shape == values.shape
        np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)
        if len(info.shape) == 3:
            np.testing.assert_array_equal(checkpoint.read(name, expert=1), values[1], err_msg=name)
            np.testing.assert_array_equal(
                checkpoint.read(name, expert=1, rows=slice(3, 7)), values[1, 3:7], err_msg=name
            )
    assert used == set(source), "a stored tensor went nowhere"


@pytest.fixture(scope="session", params=NAMES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained folder and its GGUF."""
    folder = MODELS / request.param
    out = tmp_path_factory.mktemp("converted") / f"{request.param}.gguf"
    checkpoint = open_checkpoint(folder)
    plan = copy_plan(checkpoint)
    compress(checkpoint, plan, None, out, kernels=None, threads=1, report=lambda done, total=None: None)
    assert out.stat().st_size == plan.bytes
    return folder, out


def test_the_gguf_holds_the_same(converted: tuple[Path, Path]) -> None:
    folder, out = converted
    first, second = open_checkpoint(folder), open_gguf(out)
    assert model_id(first) == model_id(second)
    for name, info in first.tensors.items():
        assert second.tensors[name].type == info.type
        np.testing.assert_array_equal(second.read_raw(name), first.read_raw(name), err_msg=name)


TEXTS = {
    "english": "The quick brown fox doesn't jump; it's 12,345.67 miles away -- isn't it?  I'LL SEE.\n\n\tYes.",
    "german": "Über den Wolken: 'Straße' größer als 1.000 €, „Zitat“ – Äpfel & Öl.\r\nNächste Zeile",
    "russian": "Съешь же ещё этих мягких булок, да выпей чаю: 12 345 рублей — «ЁЛКА»!\nНовая строка",
    "chinese": "今天天气很好，我们去公园散步吧。2024年1月1日，北京！混合English文字とかな。",
    "digits": "0 1 12 123 1234 12345 123456 1234567 3.14159 1e-10 0xFF ½ ٣٤ ²",
    "code": "def f(x: int) -> dict[str, int]:\n    # comment\n\treturn {'a': x ** 2, \"b\": [1,2,3][0]}\n\n\n",
    "spaces": "   leading,  double   triple    four\n \n  \t\n\u00a0nbsp\u3000wide trailing   ",
    "marks": "e\u0301 क्षि 👩‍👩‍👧 ☃️ \u200b ~~^^ __init__ a_b !!! ???",
    "alone": "\n",
}

TOKENIZE = """
import json, sys
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(sys.stdin)
print(json.dumps([llama.tokenize(t.encode(), add_bos=False, special=False) for t in texts]))
"""


@pytest.mark.native
def test_llama_cpp_tokenizes_alike(converted: tuple[Path, Path]) -> None:
    folder, out = converted
    texts = dict(TEXTS)
    for path in sorted((MODELS.parent / "texts").glob("*.validation.txt")):
        texts[path.stem] = path.read_text("utf-8")[:20_000]
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(out)],
        input=json.dumps(list(texts.values())),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for (name, text), got in zip(texts.items(), json.loads(done.stdout), strict=True):
        assert got == tokenizer.encode(text, add_special_tokens=False).ids, name


def test_special_tokens_are_kept(converted: tuple[Path, Path]) -> None:
    folder, out = converted
    metadata = open_gguf(out).metadata
    config = json.loads((folder / "config.json").read_text())
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert metadata["tokenizer.ggml.eos_token_id"].value == config["eos_token_id"]
    assert metadata["tokenizer.chat_template"].value == told["chat_template"]
    assert metadata["tokenizer.ggml.add_bos_token"].value == told["add_bos_token"]
    tokens, kinds = metadata["tokenizer.ggml.tokens"].value, metadata["tokenizer.ggml.token_type"].value
    assert len(tokens) == len(kinds) == config["vocab_size"]
    assert len(set(tokens)) == len(tokens)
    for entry in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]:
        assert tokens[entry["id"]] == entry["content"]
        assert kinds[entry["id"]] == 3
