"""Hugging Face folders of safetensors, seen under GGUF names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from collab_plugin.checkpoint.apply_rules import RuleMatcher
from collab_plugin.checkpoint.checkpoint import F32, Bytes, Checkpoint, CheckpointFormat, TensorInfo
from collab_plugin.checkpoint.decode import check_finite
from collab_plugin.checkpoint.families.builtin_families import FAMILIES
from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Family, family_of
from collab_plugin.checkpoint.families.gguf_keys import flag, text, u32
from collab_plugin.checkpoint.families.routers import scales_experts
from collab_plugin.checkpoint.files.model_files import LocalFiles, ModelFiles, is_companion, origin_note
from collab_plugin.checkpoint.folder_tensors import passed_over, stored_tensors
from collab_plugin.checkpoint.storage.quantization import quantization_of
from collab_plugin.checkpoint.storage.stored_matrix import Matrix
from collab_plugin.checkpoint.tensor_sources import Stack, TensorSource
from collab_plugin.checkpoint.tokenizer import load_json, tokenizer_keys
from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import tensor_bytes
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.safetensors_header import Stored
from collab_plugin.formats.tensor_names import layer_of, role_of

_HALF = re.compile("[\ud800-\udfff]")
_ELSE = "Hugging Face folders of {known} are read here, others as the GGUF that llama.cpp's convert_hf_to_gguf.py makes"


class SafetensorsCheckpoint(Checkpoint):
    """See `Checkpoint`. FP8 weights count as BF16 and are read as such.

    MXFP4, experts in NVFP4 and whole numbers of 4 and 8 bits count as the GGUF type that holds the same codes, where
    there is one.
    ``beside``: stored tensors that are no part of the GGUF and that a pruned folder has unchanged.
    """

    format = "safetensors"

    def __init__(
        self,
        files: ModelFiles,
        path: Path,
        metadata: dict[str, MetaValue],
        sources: dict[str, TensorSource],
        notes: tuple[str, ...],
        family: Family,
        beside: Sequence[Stored] = (),
    ) -> None:
        self.files, self.path, self.metadata, self.notes = files, path, metadata, notes
        self.family, self._sources, self.beside = family, sources, beside
        self.tensors = {
            name: TensorInfo(name, s.shape, s.type, tensor_bytes(s.type.name, s.shape), role_of(name), layer_of(name))
            for name, s in sources.items()
        }

    def stored(self, name: str) -> list[Matrix]:
        """What the folder stores of the GGUF tensor ``name``: one tensor, or one for each expert."""
        return self._sources[name].matrices

    def stacked(self, name: str) -> bool:
        """Whether the folder stores a tensor of each expert."""
        return isinstance(self._sources[name], Stack)

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> F32:
        return check_finite(self._sources[name].values(expert, rows), name, expert)

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> Bytes:
        return self._sources[name].raw(expert, rows)

    def by_rows(self, name: str) -> bool:
        return isinstance(self.files, LocalFiles) and self._sources[name].by_rows

    @property
    def address(self) -> str:
        return self.files.address

    def local(self) -> Path:
        parts = (p for source in self._sources.values() for m in source.matrices for p in m.parts)
        stored = {part.file.where for part in (*parts, *self.beside)}
        weights = [name for name in self.files.names() if self.files.where(name) in stored]
        return self.files.fetch([*filter(is_companion, self.files.names()), *weights])

    def check_conversion(self) -> None:
        # Imported here: it costs as much as all else, and only who writes a GGUF needs it.
        from collab_plugin.checkpoint.compare_tokens import check_tokens

        check_tokens(self.path, self.metadata)


def open_safetensors(model: Path | ModelFiles, families: Sequence[Family] = FAMILIES) -> SafetensorsCheckpoint:
    """Open a Hugging Face folder: config.json, tokenizer.json and safetensors, sharded or not.

    ``families``: those to choose from, the built-in ones unless told otherwise.
    """
    files = model if isinstance(model, ModelFiles) else LocalFiles(model)
    folder = files.companions()
    raw = load_json(folder / "config.json")
    readable = [family for family in families if family.conversion]
    family = family_of(raw.get("architectures"), readable, files.address, _ELSE)
    conversion = family.conversion
    assert conversion is not None
    raw = _decoder_keys(files.where("config.json"), raw, conversion)
    quantization = quantization_of(files.address, raw)
    _settle_expert_count(files.where("config.json"), raw, family)
    config = Config(raw, files.where("config.json"), conversion.defaults)
    _check_counts(config, family)
    _check_fixed(config, family, conversion)
    metadata = {
        "general.architecture": text(family.architecture),
        "general.type": text("model"),
        "general.name": text(files.name),
    }
    keys = _keys(config, family, conversion)
    metadata |= {f"{family.architecture}.{key}": value for key, value in keys.items()}
    tokens, tokenizer_notes = tokenizer_keys(folder, config.integer("vocab_size"), marked=conversion.marked_spaces)
    metadata |= tokens | _special_tokens(tokens, conversion)
    _check_text(files.address, metadata)
    stored, notes = stored_tensors(files)
    stored, beside, told = passed_over(stored, conversion)
    notes += [*origin_note(files), *tokenizer_notes, *told, *conversion.notes(config)]
    matcher = RuleMatcher(conversion, config, stored, quantization, scales_experts(family.architecture))
    if predicting := matcher.prediction_layers():
        layers = ", ".join(map(str, predicting))
        notes.append(f"MTP layer {layers} dropped: llama.cpp's {family.architecture} runs without it")
    sources = matcher.sources()
    if config.get("tie_word_embeddings") and "lm_head.weight" in stored:
        notes.append("lm_head.weight was not read: config.json ties the output matrix to the embedding")
    known = conversion.ignored | {*family.expert_counts, conversion.prediction.count if conversion.prediction else ""}
    if unread := [key for key in config.unread() if key not in known]:
        notes.append(f"config.json has keys that are not known here and were not read: {', '.join(unread)}")
    return SafetensorsCheckpoint(files, folder, metadata, sources, tuple(notes), family, beside)


def _decoder_keys(where: str, config: dict[str, Any], conversion: Conversion) -> dict[str, Any]:
    """config.json with the decoder's own keys, where they are nested, in the first place, under the names and in the
    form in which the family asks for them."""
    nested = config.get(conversion.nested) if conversion.nested else None
    if nested is not None:
        if not isinstance(nested, dict):
            raise CollabError(f"{where} has a {conversion.nested} that is no object")
        outer = {key: value for key, value in config.items() if key != conversion.nested}
        # Of a model that sees pictures transformers asks its own configuration, not the decoder's.
        tied = {key: outer[key] for key in ("tie_word_embeddings",) if key in outer}
        config = outer | nested | tied
    config = {conversion.aliases[key]: config[key] for key in conversion.aliases if key in config} | {
        key: value for key, value in config.items() if key not in conversion.aliases
    }
    return {**config, **conversion.settled(config)}


def _special_tokens(tokens: Mapping[str, MetaValue], conversion: Conversion) -> dict[str, MetaValue]:
    """Keys of the tokens that the family tells the kind of, as far as the vocabulary has them."""
    ids = {token: index for index, token in enumerate(tokens["tokenizer.ggml.tokens"].value)}
    told = conversion.special_tokens.items()
    return {f"tokenizer.ggml.{kind}_token_id": u32(ids[token]) for kind, token in told if token in ids}


def _check_text(where: str, metadata: Mapping[str, MetaValue]) -> None:
    """CollabError for a text that a GGUF cannot hold: JSON may have half of a pair of surrogates, UTF-8 has none."""
    for key, told in metadata.items():
        if told.type == GGUFValueType.STRING and (bad := _HALF.search(str(told.value))):
            raise CollabError(
                f"{where}: {key} holds {bad[0]!r}, which is no character; correct the file that it is from"
            )


def _settle_expert_count(where: str, config: dict[str, Any], family: Family) -> None:
    """Put the expert count under its usual key; CollabError when config.json has two that differ."""
    first, *others = family.counts_in(config)
    for key in others:
        if config[key] != config[first]:
            raise CollabError(
                f"{where} has {first} = {str(config[first])[:40]} and {key} = {str(config[key])[:40]}: "
                "they must be equal; correct one"
            )
    if first not in config:
        raise CollabError(
            f"{where} tells the number of experts under none of {', '.join(family.expert_counts)}, as "
            f"{family.classes[0]} does; add it"
        )
    config.setdefault(family.expert_count, config[first])


def _check_counts(config: Config, family: Family) -> None:
    """Counts that size loops and lists; far beyond any model they are damage."""
    for key, most in (("num_hidden_layers", 4096), (family.expert_count, 65535), ("vocab_size", 2**24)):
        if config.integer(key) > most:
            raise CollabError(f"{config.where} has {key} = {config.integer(key)}, more than {most}: is it damaged?")
        if config.integer(key) < 1:
            raise CollabError(f"{config.where} has {key} = {config.integer(key)}, at least 1 is needed: is it damaged?")


def _check_fixed(config: Config, family: Family, conversion: Conversion) -> None:
    """Keys that change what is computed, where llama.cpp computes one thing only."""
    for key, values in conversion.fixed.items():
        if (value := config.get(key)) not in values:
            only = " or ".join(map(repr, values))
            raise CollabError(
                f"{config.where} has {key} = {str(value)[:40]!r}; llama.cpp's {family.architecture} computes {only}"
            )


def _keys(config: Config, family: Family, conversion: Conversion) -> dict[str, MetaValue]:
    keys = {key.gguf: value for key in conversion.keys if (value := key.value(config)) is not None}
    keys |= conversion.more_keys(config)
    if conversion.renormalises is not None:
        said, done = config.flag(conversion.renormalises), family.routing.renormalises
        if done is None:
            keys["expert_weights_norm"] = flag(said)
        elif done != said:
            does, always = ("does not renormalise", "always does") if done else ("renormalises", "never does")
            raise CollabError(
                f"{config.where} {does} router weights ({conversion.renormalises} is {said}), llama.cpp's "
                f"{family.architecture} {always}"
            )
    return keys


def _matches(files: ModelFiles) -> bool:
    return files.named is None and files.has("config.json")


def safetensors_format(families: Callable[[], Sequence[Family]]) -> CheckpointFormat:
    """The format for folders of ``families``, asked for when a folder is opened."""
    return CheckpointFormat(
        "safetensors",
        "Hugging Face folders with config.json and safetensors",
        _matches,
        lambda files: open_safetensors(files, families()),
    )
