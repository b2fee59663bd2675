"""GGUF models: split files, every storage type, one expert at a time, and the same model at other types."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as T
from small_models.gguf_bytes import ARCHITECTURE, V, gguf, key, tensor
from small_models.llama_cpp_calls import llama_quantize
from small_models.tiny_moe import write_qwen3moe

from collab_plugin.checkpoint.gguf import open_gguf, open_shard
from collab_plugin.checkpoint.identity import fingerprint, model_id
from collab_plugin.checkpoint.topology import topology_of
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plugins.open_checkpoint import open_checkpoint

# -- split files


def shard_bytes(number: int, count: int, names: list[str], *, first: bool) -> bytes:
    keys = [ARCHITECTURE, key("qwen3moe.block_count", V.UINT32, struct.pack("<I", 2))] if first else []
    keys += [
        key("split.no", V.UINT16, struct.pack("<H", number)),
        key("split.count", V.UINT16, struct.pack("<H", count)),
    ]
    values = [np.full(8, hash_of(name), np.float32) for name in names]
    tensors = [tensor(name, [8], offset=32 * i) for i, name in enumerate(names)]
    return gguf(keys, tensors, b"".join(v.tobytes() for v in values))


def hash_of(name: str) -> float:
    return float(sum(name.encode()))


def _split(folder: Path, parts: list[list[str]], count: int | None = None) -> list[Path]:
    n = count or len(parts)
    paths = [folder / f"m-{i + 1:05d}-of-{n:05d}.gguf" for i in range(len(parts))]
    for i, (path, names) in enumerate(zip(paths, parts, strict=True)):
        path.write_bytes(shard_bytes(i, n, names, first=i == 0))
    return paths


@pytest.mark.parametrize("named", ["first", "last", "folder"])
def test_split_files_are_one_model(named: str, tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a", "b"], [], ["c"]])
    checkpoint = open_checkpoint({"first": paths[0], "last": paths[-1], "folder": tmp_path}[named])
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert checkpoint.path == paths[0]
    for name in "abc":
        assert set(checkpoint.read(name)) == {hash_of(name)}
    assert not [k for k in checkpoint.metadata if k.startswith("split.")]


def test_missing_shard(tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a"], ["b"], ["c"]])
    paths[1].unlink()
    with pytest.raises(CollabError, match=r"shard missing: m-00002-of-00003\.gguf \(1 of 3\)"):
        open_gguf(paths[0])
    result = CliRunner().invoke(main, ["inspect", str(paths[2])])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_renamed_shard(tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a"], ["b"]])
    alone = tmp_path / "model.gguf"
    shutil.copy(paths[0], alone)
    with pytest.raises(CollabError, match="is one of 2 shards"):
        open_gguf(alone)


def test_swapped_shards(tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a"], ["b"], ["c"]])
    spare = tmp_path / "spare"
    paths[1].rename(spare)
    paths[2].rename(paths[1])
    spare.rename(paths[2])
    with pytest.raises(CollabError, match="is not shard 2 of its model"):
        open_gguf(paths[0])


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a"], ["a"]])
    with pytest.raises(CollabError, match="'a' is in two shards"):
        open_gguf(paths[0])


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = _split(tmp_path, [["a"], ["b"]])
    paths[1].write_bytes(b"GGUF")
    with pytest.raises(CollabError, match="m-00002-of-00002"):
        open_gguf(paths[0])


def test_folder_with_two_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(gguf(tensors=(tensor("t", [8]),), data=bytes(32)))
    with pytest.raises(CollabError, match="holds 2 GGUF files; name the one to open"):
        open_checkpoint(tmp_path)


# -- storage types


SLOW = ("IQ1_S", "IQ2_S")  # ggml prepares tables for these


@pytest.mark.native
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TYPES])
def test_values_of_every_type_are_ggmls(name: str, tmp_path: Path) -> None:
    """Stored as [3 experts, 4 rows, 512]; any part read equals what ggml makes of those bytes."""
    kernels = GgmlKernels()
    rng = np.random.default_rng(1)
    values = rng.standard_normal((12, 512)).astype(np.float32)
    raw = kernels.quantize(values, name, rng.random(512).astype(np.float32) + 0.1)
    want = kernels.dequantize(raw, name, 512).reshape(3, 4, 512)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(tensors=(tensor("t", [512, 4, 3], T[name]),), data=raw.tobytes()))
    checkpoint = open_gguf(path)
    info = checkpoint.tensors["t"]
    assert (info.shape, info.type.name, info.nbytes) == ((3, 4, 512), name, raw.nbytes)
    np.testing.assert_allclose(checkpoint.read("t"), want, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(checkpoint.read("t", expert=1), checkpoint.read("t")[1])
    np.testing.assert_array_equal(checkpoint.read("t", expert=2, rows=slice(1, 3)), checkpoint.read("t")[2, 1:3])
    np.testing.assert_array_equal(checkpoint.read_raw("t").reshape(12, -1), raw)
    np.testing.assert_array_equal(checkpoint.read_raw("t", expert=2, rows=slice(3, 4)), raw[11:12])


@pytest.mark.parametrize("kind", [t for t in GGML_QUANT_SIZES if t.name not in TYPES], ids=lambda t: t.name)
def test_types_that_are_not_offered_are_copied_or_refused(kind: T, tmp_path: Path) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    width = block * 2
    data = bytes(range(1, size * 4 + 1)) if size < 60 else bytes(size * 4)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(tensors=(tensor("t", [width, 2], kind),), data=data))
    checkpoint = open_gguf(path)
    assert checkpoint.read_raw("t").tobytes() == data
    try:
        assert checkpoint.read("t").shape == (2, width)
    except CollabError as error:
        assert "\n" not in str(error)


# -- values that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float, qwen3moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(qwen3moe, path)
    name = "blk.1.ffn_up_exps.weight"
    header, _ = open_shard(path)
    stored = header.tensors[name]
    with path.open("r+b") as file:
        file.seek(stored.offset + 2 * stored.nbytes // stored.shape[0] + 40)
        file.write(struct.pack("<f", value))
    checkpoint = open_gguf(path)
    with pytest.raises(CollabError, match=rf"{name}, expert 2 holds 1 values that are NaN or infinite"):
        checkpoint.read(name, expert=2)
    with pytest.raises(CollabError, match=f"{name} holds 1 values"):
        checkpoint.read(name)
    assert np.isfinite(checkpoint.read(name, expert=1)).all()


def test_large_values_are_finite(tmp_path: Path) -> None:
    """Squares of these overflow float32, the values do not."""
    path = tmp_path / "model.gguf"
    values = np.full(8, 3e38, np.float32)
    path.write_bytes(gguf(tensors=(tensor("t", [8]),), data=values.tobytes()))
    np.testing.assert_array_equal(open_gguf(path).read("t"), values)


# -- the same model


@pytest.mark.native
@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2"])
def test_model_id_survives_quantization(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source, copy = request.getfixturevalue(model), tmp_path / "q4_0.gguf"
    llama_quantize(source, copy, "Q4_0", LlamaFileType.MOSTLY_Q4_0, open_gguf(source), None)
    first, second = open_gguf(source), open_gguf(copy)
    assert second.tensors["blk.1.ffn_up_exps.weight"].type == T.Q4_0
    assert model_id(first) == model_id(second)
    assert fingerprint(first) != fingerprint(second)


def test_other_routers_are_another_model(qwen3moe: Path, tmp_path: Path) -> None:
    other = open_gguf(write_qwen3moe(tmp_path / "model.gguf", seed=1))
    assert model_id(other) != model_id(open_gguf(qwen3moe))


def test_fingerprint_is_of_the_content(qwen3moe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another-name.gguf"
    shutil.copy(qwen3moe, copy)
    assert fingerprint(open_gguf(copy)) == fingerprint(open_gguf(qwen3moe))


# -- models without experts, and contradictions


def test_dense_model(tmp_path: Path) -> None:
    path = tmp_path / "dense.gguf"
    keys = (ARCHITECTURE, key("qwen3moe.block_count", V.UINT32, struct.pack("<I", 1)))
    path.write_bytes(gguf(keys, (tensor("blk.0.ffn_up.weight", [8, 2]),), bytes(64)))
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "has no routed experts" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_experts_as_tensors_of_their_own(tmp_path: Path) -> None:
    """As llama.cpp converted Mixtral until March 2024."""
    path = tmp_path / "old.gguf"
    keys = (ARCHITECTURE, key("qwen3moe.expert_count", V.UINT32, struct.pack("<I", 2)))
    path.write_bytes(gguf(keys, (tensor("blk.0.ffn_gate.0.weight", [8, 2]),), bytes(64)))
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {path} holds each expert as a tensor of its own (blk.0.ffn_gate.0.weight), a layout of 2023 that is "
        "not read any more: convert the original model again with a current llama.cpp\n"
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"expert_count": 3, "expert_used_count": 2}, "holds 4 experts, the metadata says 3"),
        ({"expert_count": 4, "expert_used_count": 5}, "expert_used_count is 5 with 4 experts"),
        ({"expert_count": 4}, "expert_used_count is 0"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_group_count": 3}, "4 experts in 3 groups"),
        (
            {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 2, "expert_group_used_count": 3},
            "3 used, cannot be routed",
        ),
    ],
)
def test_metadata_that_contradicts(keys: dict[str, int], says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    entries = [key(f"qwen3moe.{k}", V.UINT32, struct.pack("<I", v)) for k, v in keys.items()]
    path.write_bytes(gguf((ARCHITECTURE, *entries), (tensor("blk.0.ffn_up_exps.weight", [8, 2, 4]),), bytes(256)))
    with pytest.raises(CollabError, match=says):
        topology_of(open_gguf(path))


def test_inspect(deepseek2: Path) -> None:
    checkpoint = open_gguf(deepseek2)
    topology = topology_of(checkpoint)
    assert topology.moe_layers == (1,)
    assert (topology.expert_count, topology.experts_used, topology.shared_experts) == (4, 2, 1)
    assert (topology.gating, topology.renormalises, topology.weights_scale) == ("sigmoid", True, 2.5)
    assert topology.role_parameters[Role.EXPERT] == 3 * 4 * 256 * 256
    assert topology.total_bytes == sum(info.nbytes for info in checkpoint.tensors.values())
    result = CliRunner().invoke(main, ["inspect", str(deepseek2)])
    assert result.exit_code == 0, result.output
    assert "top-2, 1 shared; sigmoid router" in " ".join(result.stdout.split())


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, says in ((tmp_path / "notes.txt", "no model in a known format"), (tmp_path / "no", "does not exist")):
        with pytest.raises(CollabError, match=says):
            open_checkpoint(path)
