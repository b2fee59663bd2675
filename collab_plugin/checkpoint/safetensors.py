"""Hugging Face folders of safetensors, seen under GGUF names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, get_tensor_name_map

from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint, CheckpointFormat, TensorInfo
from collab_plugin.checkpoint.decode import check_finite
from collab_plugin.checkpoint.families.deepseek import DEEPSEEK_V3
from collab_plugin.checkpoint.families.family import Config, Family, text
from collab_plugin.checkpoint.families.qwen3moe import QWEN3_MOE
from collab_plugin.checkpoint.tensor_sources import KeyValueHeads, Matrix, Single, Stack, TensorSource, round_to_bf16
from collab_plugin.checkpoint.tokenizer import load_json, tokenizer_keys
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.safetensors_header import Stored, read_header
from collab_plugin.formats.tensor_names import Role, layer_of, role_of

FAMILIES = (QWEN3_MOE, DEEPSEEK_V3)
INDEX = "model.safetensors.index.json"
_EXPERT = re.compile(r"^(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_IGNORED = ("rotary_emb.inv_freq",)


class SafetensorsCheckpoint(Checkpoint):
    """See `Checkpoint`. FP8 weights count as BF16 and are read as such."""

    format = "safetensors"

    def __init__(
        self,
        path: Path,
        metadata: dict[str, MetaValue],
        sources: dict[str, TensorSource],
        notes: tuple[str, ...],
        family: Family,
    ) -> None:
        self.path, self.metadata, self.notes, self.family, self._sources = path, metadata, notes, family, sources
        self.tensors = {
            name: TensorInfo(name, s.shape, s.type, tensor_bytes(s.type.name, s.shape), role_of(name), layer_of(name))
            for name, s in sources.items()
        }

    def stored(self, name: str) -> list[Matrix]:
        """What the folder stores of the GGUF tensor ``name``: one tensor, or one for each expert."""
        return self._sources[name].matrices

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        return check_finite(self._sources[name].values(expert, rows), name, expert)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        values = np.ascontiguousarray(self._sources[name].values(expert, rows))
        kind = self._sources[name].type
        if kind == GGMLQuantizationType.F32:
            return values.view(np.uint8)
        if kind == GGMLQuantizationType.F16:
            return values.astype(np.float16).view(np.uint8)  # exact: it was F16
        return round_to_bf16(values).view(np.uint8)


def family_of(folder: Path, config: dict[str, object]) -> Family:
    """Return the family of config.json; CollabError naming those that are known."""
    classes = config.get("architectures")
    for family in FAMILIES:
        if isinstance(classes, list) and set(classes) & set(family.classes):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.classes)
    raise CollabError(
        f"{folder} is a {str(classes)[:80]}; Hugging Face folders of {known} are read here, "
        "others as the GGUF that llama.cpp's convert_hf_to_gguf.py makes"
    )


def open_safetensors(folder: Path) -> SafetensorsCheckpoint:
    """Open a Hugging Face folder: config.json, tokenizer.json and safetensors, sharded or not."""
    raw = load_json(folder / "config.json")
    family = family_of(folder, raw)
    _check_readable(folder, raw)
    raw.setdefault(family.expert_key, raw.get(family.expert_keys(raw)[0]))
    config = Config(raw, f"{folder}/config.json")
    _check_counts(config, family)
    arch = _arch_name(family)
    metadata = {
        "general.architecture": text(arch),
        "general.type": text("model"),
        "general.name": text(_name(folder)),
    }
    metadata |= {f"{arch}.{key}": value for key, value in family.keys(config).items()}
    metadata |= tokenizer_keys(folder, config.integer("vocab_size"))
    stored = _stored(folder)
    layers = config.integer("num_hidden_layers")
    notes = []
    extra = {int(m[1]) for name in stored if (m := _LAYER.match(name)) and int(m[1]) >= layers}
    if extra:
        notes.append(f"MTP layer {', '.join(map(str, sorted(extra)))} dropped: llama.cpp's {arch} runs without it")
        stored = {n: s for n, s in stored.items() if not ((m := _LAYER.match(n)) and int(m[1]) >= layers)}
    sources = dict(sorted(_sources(stored, family, config, layers), key=lambda item: _order(item[0])))
    _check_complete(folder, sources, layers, config, family)
    return SafetensorsCheckpoint(folder, metadata, sources, tuple(notes), family)


def _check_readable(folder: Path, config: dict[str, object]) -> None:
    """FP8 with block scales is read; what other tools pack is not."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method not in (None, "fp8"):
        raise CollabError(f"{folder} is quantized as {str(method)[:40]}, which is not read here; give the original")


def _check_counts(config: Config, family: Family) -> None:
    """Counts that size loops and lists; far beyond any model they are damage."""
    for key, most in (("num_hidden_layers", 4096), (family.expert_key, 65535), ("vocab_size", 2**24)):
        if config.integer(key) > most:
            raise CollabError(f"{config.where} has {key} = {config.integer(key)}, more than {most}: is it damaged?")


def _arch_name(family: Family) -> str:
    from gguf import MODEL_ARCH_NAMES

    return str(MODEL_ARCH_NAMES[family.arch])


def _name(folder: Path) -> str:
    return folder.resolve().name


def _stored(folder: Path) -> dict[str, Stored]:
    """All tensors of the folder's files, whatever file they are in."""
    if (folder / INDEX).is_file():
        table = load_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise CollabError(f"{folder}/{INDEX} has no weight_map")
        names = sorted({str(name) for name in table.values()})
        for name in names:
            if Path(name).name != name or name in ("", ".", ".."):
                raise CollabError(f"{folder}/{INDEX} names {name!r}, a file outside the folder")
    else:
        table, names = None, sorted(p.name for p in folder.glob("*.safetensors"))
    found: dict[str, Stored] = {}
    for name in names:
        if not (folder / name).is_file():
            raise CollabError(f"shard missing: {name} of {folder}; download it again")
        for tensor, stored in read_header(folder / name).items():
            if tensor in found:
                raise CollabError(f"tensor {tensor!r} is in two files of {folder}")
            found[tensor] = stored
    missing = sorted(set(table or ()) - set(found))
    if missing:
        raise CollabError(f"{folder}: the index promises {missing[0]!r}, no file holds it; download it again")
    return found


def _sources(
    stored: dict[str, Stored], family: Family, config: Config, layers: int
) -> Iterator[tuple[str, TensorSource]]:
    name_map = get_tensor_name_map(family.arch, layers)
    experts: dict[str, dict[int, Matrix]] = {}
    tied = bool(config.get("tie_word_embeddings", False))
    for name, tensor in stored.items():
        if name.endswith(("_scale_inv", *_IGNORED)) or (tied and name == "lm_head.weight"):
            continue
        matrix = Matrix(tensor, stored.get(f"{name}_scale_inv"))
        if found := _EXPERT.match(name):
            experts.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = matrix
        elif family.mla and name.endswith("kv_b_proj.weight"):
            for part in ("k", "v"):
                gguf_name = _gguf_name(name_map, name.replace("kv_b_proj", f"{part}_b_proj"))
                yield (
                    gguf_name,
                    KeyValueHeads(
                        matrix,
                        part,
                        config.integer("num_attention_heads"),
                        config.integer("qk_nope_head_dim"),
                        config.integer("v_head_dim"),
                    ),
                )
        else:
            gguf_name = _gguf_name(name_map, name.replace("e_score_correction_bias", "e_score_correction.bias"))
            role = role_of(gguf_name)
            wide = len(tensor.shape) <= 1 or role in (Role.NORM, Role.ROUTER, Role.ROUTER_BIAS)
            yield gguf_name, Single(matrix, wide)
    count = config.integer(family.expert_key)
    for name, matrices in experts.items():
        absent = sorted(set(range(count)) ^ set(matrices))
        if absent:
            raise CollabError(f"{name}: expert {absent[0]} is missing or too many ({count} are configured)")
        yield _gguf_name(name_map, name), Stack([matrices[i] for i in range(count)])


def _gguf_name(name_map: object, name: str) -> str:
    found = name_map.get_name(name, try_suffixes=(".weight", ".bias"))  # type: ignore[attr-defined]  # gguf is untyped
    if found is None:
        raise CollabError(f"tensor {name!r} has no name in GGUF for this family; is it of another version?")
    return str(found)


def _order(name: str) -> tuple[int, int, str]:
    layer = layer_of(name)
    return (0 if name.startswith("token_embd") else 2 if layer is None else 1, layer or 0, name)


def _check_complete(
    folder: Path, sources: dict[str, TensorSource], layers: int, config: Config, family: Family
) -> None:
    """A checkpoint with tensors missing is refused here, not by an abort in an engine."""
    dense = config.integer("first_k_dense_replace", 0)
    needed = ["token_embd.weight", "output_norm.weight"]
    if not config.get("tie_word_embeddings", False):
        needed.append("output.weight")
    for layer in range(layers):
        needed += [f"blk.{layer}.{part}" for part in family.parts(config, layer < dense)]
    absent = [name for name in needed if name not in sources]
    if absent:
        raise CollabError(f"{folder} has no {absent[0]} ({len(absent)} tensors are missing); download it again")


def _matches(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file()


SAFETENSORS_FORMAT = CheckpointFormat(
    "safetensors", "Hugging Face folders with config.json and safetensors", _matches, open_safetensors
)
