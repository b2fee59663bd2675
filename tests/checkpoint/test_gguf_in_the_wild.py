"""GGUF files as people have them: the right value, or one line that says what to do.

Where a kind is known from a public report, the test names it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as T
from small_models.gguf_bytes import ARCHITECTURE, V, gguf, key, tensor
from small_models.hand_made_plans import typed_plan
from small_models.odd_gguf import EXPERTS, HEIGHT, VOCABULARY, WIDTH, carried, keys, tensors, values, write

from collab_plugin.checkpoint.decode import decode
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.block_scales import scales_are_finite
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.quantize.kernels import Kernels

KEPT = (3, 1)


def said(path: Path) -> str:
    """The one line that `inspect` says against ``path``."""
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def same(found: object, stored: Mapping[str, np.ndarray]) -> None:
    assert set(found.tensors) == set(stored)  # type: ignore[attr-defined]
    for name, array in stored.items():
        np.testing.assert_array_equal(found.read(name), array, err_msg=name)  # type: ignore[attr-defined]


# -- widths

FALLBACKS = {  # what llama-quantize gives rows that a type's blocks do not divide
    2880: {"Q2_K": "Q4_0", "Q4_K": "Q5_0", "Q6_K": "Q8_0", "IQ2_XXS": "IQ4_NL", "Q8_0": "Q8_0"},
    10944: {"Q2_K": "Q4_0", "Q6_K": "Q8_0"},
    1408: {"Q2_K": "Q4_0", "Q4_K": "Q5_0", "Q6_K": "Q8_0", "IQ2_XXS": "IQ4_NL", "Q8_0": "Q8_0"},
    2560: {"Q2_K": "Q2_K", "Q4_K": "Q4_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0"},
    24: {"Q2_K": "F16", "Q4_K": "F16", "Q6_K": "F16", "IQ2_XXS": "F16", "Q8_0": "F16"},
}
DOWN = "blk.0.ffn_down_exps.weight"


@pytest.mark.parametrize(("width", "asked"), [(w, kind) for w, kinds in FALLBACKS.items() for kind in kinds])
def test_rows_that_no_block_divides(width: int, asked: str, kernels: Kernels, tmp_path: Path) -> None:
    """gpt-oss 2880, DeepSeek-V2-Lite 10944 and 1408, Qwen2-57B 2560, and an expert narrower than any block."""
    stored = tensors(width)
    path = write(tmp_path / "m.gguf", stored, keys(expert_feed_forward_length=width))
    plan = typed_plan(open_gguf(path), lambda info: asked)
    got = FALLBACKS[width][asked]
    assert plan.tensors[DOWN].type == got
    made = carried(path, tmp_path / "out.gguf", KEPT, plan, kernels)
    assert made.tensors[DOWN].type.name == got
    block, size = GGML_QUANT_SIZES[T[got]]
    assert made.tensors[DOWN].nbytes == len(KEPT) * HEIGHT * width // block * size
    error = made.read(DOWN) - stored[DOWN][list(KEPT)]
    most = {"Q2_K": 0.35, "Q4_0": 0.11, "Q4_K": 0.09, "IQ4_NL": 0.1, "Q5_0": 0.05}.get(got, 0.02)
    assert np.sqrt(np.square(error).mean()) < most


def test_matrices_of_one_row(kernels: Kernels, tmp_path: Path) -> None:
    """A shared expert's gate as some converters write it, and a projection to one value."""
    rows = {"blk.0.ffn_gate_inp_shexp.weight": values(1, WIDTH), "blk.0.indexer.proj.weight": values(1, 256)}
    path = write(tmp_path / "m.gguf", tensors() | rows)
    plan = typed_plan(open_gguf(path), lambda info: "Q8_0")
    assert plan.tensors["blk.0.ffn_gate_inp_shexp.weight"].type == "F32"
    assert plan.tensors["blk.0.indexer.proj.weight"].type == "Q8_0"
    made = carried(path, tmp_path / "out.gguf", KEPT, plan, kernels)
    for name, row in rows.items():
        assert made.tensors[name].shape == row.shape
        np.testing.assert_allclose(made.read(name), row, atol=0.02)


# -- the container


def test_version_2_is_written_as_version_3(tmp_path: Path) -> None:
    stored = tensors()
    path = write(tmp_path / "m.gguf", stored)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    made = carried(path, tmp_path / "out.gguf")
    same(made, stored)
    assert (tmp_path / "out.gguf").read_bytes()[4:8] == struct.pack("<I", 3)


def test_big_endian(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors(), big_endian=True)
    assert "(big-endian files are not supported); make it again with a current llama.cpp" in said(path)


@pytest.mark.parametrize("alignment", [64, 4096])
def test_the_alignment_is_kept(alignment: int, tmp_path: Path) -> None:
    stored = tensors()
    path = write(tmp_path / "m.gguf", stored, alignment=alignment)
    made = carried(path, tmp_path / "out.gguf")
    same(made, stored)
    theirs = GGUFReader(tmp_path / "out.gguf")
    assert all(tensor.data_offset % alignment == 0 for tensor in theirs.tensors)


def test_a_first_shard_with_metadata_alone(tmp_path: Path) -> None:
    """As `llama-gguf-split --no-tensor-first-split` writes."""
    stored = tensors()
    write(tmp_path / "m.gguf", stored, split=3, empty_first=True)
    first, *rest = sorted(tmp_path.glob("m-*.gguf"))
    assert len(rest) == 3
    assert len(GGUFReader(first).tensors) == 0
    same(open_checkpoint(first), stored)
    same(carried(rest[1], tmp_path / "out.gguf"), stored)


def test_shards_that_lack_a_tensor(tmp_path: Path) -> None:
    """A quantizer that was stopped: every file is sound by itself (ikawrakow/ik_llama.cpp issue 601)."""
    stored = tensors()
    write(tmp_path / "m.gguf", stored, split=4)
    write(tmp_path / "other.gguf", dict(list(stored.items())[:-1]), split=4)
    (tmp_path / "other-00002-of-00002.gguf").replace(tmp_path / "m-00002-of-00002.gguf")
    line = said(tmp_path / "m-00001-of-00002.gguf")
    assert "its shards hold 7 tensors of 8: one of them is of another model or was not written whole" in line


def test_shards_renamed_beyond_their_order(tmp_path: Path) -> None:
    """A digest behind the numbers (Osmantic/ODS pull request 4973), and numbers of four digits (ollama issue 7914)."""
    for name in ("m-00001-of-00002-e3b5.gguf", "m-0001.gguf"):
        write(tmp_path / "m.gguf", tensors(), split=4)
        (tmp_path / "m-00001-of-00002.gguf").replace(tmp_path / name)
        assert "is one of 2 shards, but its name says otherwise; restore the names" in said(tmp_path / name)


def test_parts_that_want_joining(tmp_path: Path) -> None:
    """Files cut by bytes, as mradermacher published them (oobabooga/textgen issue 6187)."""
    whole = write(tmp_path / "m.gguf", tensors()).read_bytes()
    for number, part in enumerate((whole[:6000], whole[6000:]), 1):
        (tmp_path / f"big.gguf.part{number}of2").write_bytes(part)
    joined = "join the parts: cat big.gguf.part1of2 ... big.gguf.part2of2 > big.gguf"
    assert joined in said(tmp_path / "big.gguf.part1of2")


def test_what_lies_beside_a_model(tmp_path: Path) -> None:
    """Projectors and importance matrices are published in the folders of models (unslothai/unsloth issue 6084)."""
    folder = tmp_path / "m"
    folder.mkdir()
    model = write(folder / "m.gguf", tensors())
    one = {"v.weight": values(2, 2)}
    write(folder / "mmproj-F16.gguf", one, {"general.type": "mmproj"}, architecture="clip")
    write(folder / "old-projector.gguf", one, {}, architecture="clip")
    write(folder / "imatrix_unsloth.gguf", one, {"general.type": "imatrix"}, architecture="unused")
    assert open_checkpoint(folder).path == model
    write(folder / "another.gguf", tensors())
    assert "holds 2 GGUF files; name the one to open" in said(folder)
    (tmp_path / "deep").mkdir()
    folder.rename(tmp_path / "deep" / "UD-Q2_K_XL")
    assert "GGUF files are in its folders UD-Q2_K_XL: give one of those" in said(tmp_path / "deep")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "it is a web page: download the file itself"),
        (b"PK\3\4" + bytes(40), "it is a ZIP archive, such as PyTorch's pickles"),
        (b"tjgg\1\0\0\0", "it is in a format of llama.cpp from before GGUF"),
        (bytes(64), "it begins with nothing but zeros"),
    ],
)
@pytest.mark.parametrize("name", ["m.gguf", "m.bin"])
def test_files_that_are_no_gguf(data: bytes, says: str, name: str, tmp_path: Path) -> None:
    """Pointers: deepseek-ai/DeepSeek-V3 issue 557. Files from before GGUF: ggml-org/llama.cpp issue 3708."""
    (tmp_path / name).write_bytes(data)
    assert says in said(tmp_path / name)


def test_types_of_ik_llama_cpp(tmp_path: Path) -> None:
    """156 is its IQ3_KS (ikawrakow/ik_llama.cpp issue 605)."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf((ARCHITECTURE,), (tensor("blk.0.ffn_up_exps.weight", [256, 2], kind=156),), bytes(512)))
    assert "has type 156, one of ik_llama.cpp alone; make it again at types of llama.cpp" in said(path)


def test_a_vocabulary_of_a_million(tmp_path: Path) -> None:
    """Read in seconds."""
    tokens = [f"<{i}>" for i in range(1_000_000)]
    packed = b"".join(len(t).to_bytes(8, "little") + t.encode() for t in tokens)
    array = key("tokenizer.ggml.tokens", V.ARRAY, struct.pack("<IQ", V.STRING, len(tokens)) + packed)
    numbers = [key(name, V.UINT32, struct.pack("<I", value)) for name, value in keys().items()]
    stored = {"blk.0.ffn_up_exps.weight": values(EXPERTS, 1, 8), "blk.0.ffn_gate_inp.weight": values(EXPERTS, 8)}
    entries = [tensor(name, v.shape[::-1], offset=i * 128) for i, (name, v) in enumerate(stored.items())]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([ARCHITECTURE, array, *numbers], entries, b"".join(v.tobytes() for v in stored.values())))
    start = time.process_time()
    checkpoint = open_gguf(path)
    assert time.process_time() - start < 10
    assert checkpoint.metadata["tokenizer.ggml.tokens"].value == tokens


@pytest.mark.parametrize("template", ["{% generation %}{{ x", "{{ strftime_now('%d') }}", "", "a\0b", "\ufeff{{ a }}"])
def test_chat_templates_are_carried_over_as_they_are(template: str, tmp_path: Path) -> None:
    """What Jinja in an engine makes of them is the engine's business (mitsuhiko/minijinja issue 815)."""
    more = {"tokenizer.chat_template": template, "tokenizer.chat_template.tool_use": template}
    path = write(tmp_path / "m.gguf", tensors(), keys() | more)
    made = carried(path, tmp_path / "out.gguf", KEPT)
    assert {name: made.metadata[name].value for name in more} == more


# -- tensors


def test_fused_gate_and_up(tmp_path: Path) -> None:
    stored = tensors()
    gate, up = (stored.pop(f"blk.0.ffn_{part}_exps.weight") for part in ("gate", "up"))
    stored["blk.0.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    path = write(tmp_path / "m.gguf", stored)
    assert topology_of(open_gguf(path)).role_parameters[Role.EXPERT] == 3 * EXPERTS * WIDTH * WIDTH * 8 // 32 + (
        2 * EXPERTS * WIDTH * (WIDTH - HEIGHT)
    )
    made = carried(path, tmp_path / "out.gguf", KEPT)
    np.testing.assert_array_equal(made.read("blk.0.ffn_gate_up_exps.weight"), np.concatenate([gate, up], 1)[list(KEPT)])


def test_biases_and_scales_of_experts(tmp_path: Path) -> None:
    """gpt-oss has biases, files made of compressed checkpoints a scale for each expert; Gemma-4's router a scale for
    each channel."""
    more = {
        **{f"blk.0.ffn_{part}_exps.bias": values(EXPERTS, WIDTH, seed=i) for i, part in enumerate(("gate", "up"))},
        **{f"blk.0.ffn_{part}_exps.scale": values(EXPERTS, seed=i) for i, part in enumerate(("gate", "up", "down"))},
        "blk.0.ffn_gate_inp.bias": values(EXPERTS, seed=9),
        "blk.0.exp_probs_b.bias": values(EXPERTS, seed=10),
    }
    channels = {"blk.0.ffn_gate_inp.scale": values(WIDTH, seed=11)}
    path = write(tmp_path / "m.gguf", tensors() | more | channels)
    assert topology_of(open_gguf(path)).expert_count == EXPERTS
    made = carried(path, tmp_path / "out.gguf", KEPT)
    for name, array in more.items():
        np.testing.assert_array_equal(made.read(name), array[list(KEPT)], err_msg=name)
    np.testing.assert_array_equal(made.read("blk.0.ffn_gate_inp.scale"), channels["blk.0.ffn_gate_inp.scale"])


@pytest.mark.parametrize("instead", [False, True])
def test_keys_and_values_of_mla_in_one_matrix(instead: bool, tmp_path: Path) -> None:
    """Files from before llama.cpp's absorbed form have attn_kv_b alone, ik_llama.cpp's have all three
    (ikawrakow/ik_llama.cpp pull requests 394 and 409)."""
    stored = tensors() | {"blk.0.attn_kv_b.weight": values(64, 32)}
    if not instead:
        stored |= {"blk.0.attn_k_b.weight": values(2, 32, 16), "blk.0.attn_v_b.weight": values(2, 16, 32)}
    path = write(tmp_path / "m.gguf", stored, keys("deepseek2"), architecture="deepseek2")
    assert open_gguf(path).tensors["blk.0.attn_kv_b.weight"].role == Role.ATTENTION
    same(carried(path, tmp_path / "out.gguf"), stored)


def test_tied_embeddings(tmp_path: Path) -> None:
    stored = tensors()
    del stored["output.weight"]
    path = write(tmp_path / "m.gguf", stored)
    assert topology_of(open_gguf(path)).role_parameters.get(Role.OUTPUT) is None
    made = carried(path, tmp_path / "out.gguf", KEPT)
    assert "output.weight" not in made.tensors
    assert made.read("token_embd.weight").shape == (VOCABULARY, WIDTH)


def test_tensors_that_nobody_knows(tmp_path: Path) -> None:
    """They are copied bit for bit; what speaks of experts keeps them from being dropped."""
    unknown = {"blk.0.novelty.weight": values(EXPERTS, 3), "rope_freqs.weight": values(16), "x": values(2, 3, 4)}
    path = write(tmp_path / "m.gguf", tensors() | unknown)
    made = carried(path, tmp_path / "out.gguf", KEPT)
    for name, array in unknown.items():
        np.testing.assert_array_equal(made.read(name), array)


@pytest.mark.parametrize("table", ["blk.0.ffn_exp_map.weight", "blk.0.ffn_hyper_exps.weight", "blk.0.expert_map"])
def test_tensors_that_speak_of_experts_in_an_unknown_way(table: str, tmp_path: Path) -> None:
    stored = tensors() | {table: values(VOCABULARY, 2)}
    path = write(tmp_path / "m.gguf", stored)
    same(carried(path, tmp_path / "whole.gguf"), stored)
    with pytest.raises(CollabError, match=f"{table} speaks of experts in a way that is not known here"):
        carried(path, tmp_path / "out.gguf", KEPT)
    assert not (tmp_path / "out.gguf").exists()
    arguments = ["plan", path, "--keep", "50%", "--keep-types", "-o", tmp_path / "plan.json"]
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 2


# -- routing


def test_no_groups_in_the_file_is_no_groups_in_llama_cpp(tmp_path: Path) -> None:
    """DeepSeek-V3 was converted without its groups for months: llama.cpp then chooses among all experts."""
    path = write(tmp_path / "m.gguf", tensors(), keys("deepseek2"), architecture="deepseek2")
    assert (topology_of(open_gguf(path)).groups, topology_of(open_gguf(path)).groups_used) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expert_used_count": 3, "expert_group_count": 2, "expert_group_used_count": 1}, "serve no more than 2"),
        ({"expert_group_count": 2}, "4 experts in 2 groups, 0 used, cannot be routed"),
        ({"expert_group_count": 2, "expert_group_used_count": 0}, "4 experts in 2 groups, 0 used, cannot be routed"),
    ],
)
def test_groups_that_llama_cpp_aborts_on(changes: dict[str, int], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors(), keys("deepseek2", **changes), architecture="deepseek2")
    assert says in said(path)


# -- blocks that are no numbers


@pytest.mark.parametrize("kind", [k for k in GGML_QUANT_SIZES if k.name.startswith(("Q", "IQ", "TQ", "MX"))], ids=str)
def test_scales_that_are_not_finite_are_seen(kind: T) -> None:
    """By random bytes: what gguf-py decodes to finite values, and nothing else, has finite scales."""
    size = GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(0)
    try:
        decode(np.zeros((1, size), np.uint8), kind)
    except CollabError:
        pytest.skip("gguf-py does not decode it")
    seen = set()
    for _ in range(300):
        raw = rng.integers(0, 256, (1, size), np.uint8)
        with np.errstate(all="ignore"):
            finite = bool(np.isfinite(decode(raw, kind)).all())
        seen.add(finite)
        near_the_largest = kind == T.MXFP4 and 250 < raw[0, 0] < 255  # values overflow, the scale does not
        if kind.name != "Q8_1" and not near_the_largest:
            assert scales_are_finite(raw, kind) == finite
    assert True in seen


def test_blocks_that_a_failed_quantization_left(tmp_path: Path) -> None:
    """NaN scales in some experts alone (ikawrakow/ik_llama.cpp issue 649): copying them would keep them."""
    blocks = np.zeros((EXPERTS, 2, 34), np.uint8)
    blocks[2, 1, :2] = np.array([np.nan], np.float16).view(np.uint8)
    entries = (tensor("blk.0.ffn_up_exps.weight", [32, 2, EXPERTS], kind=T.Q8_0),)
    numbers = [key(name, V.UINT32, struct.pack("<I", value)) for name, value in keys().items()]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([ARCHITECTURE, *numbers], entries, blocks.tobytes() + bytes(-blocks.nbytes % 32)))
    checkpoint = open_gguf(path)
    line = r"blk\.0\.ffn_up_exps\.weight, expert 2 holds blocks whose scales are NaN or infinite"
    with pytest.raises(CollabError, match=line):
        carried(path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    np.testing.assert_array_equal(carried(path, tmp_path / "out.gguf", (0, 1)).read_raw("blk.0.ffn_up_exps.weight"), 0)
    assert copy_plan(checkpoint).bytes > 0
