"""A GGUF as Ollama will see it: files, sizes, label, and whether Ollama's rewrite gives the same bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from collab_ollama.model.ollama_types import OLLAMA
from collab_ollama.model.template_check import why_not_rendered
from collab_plugin.checkpoint.gguf import GgufCheckpoint, open_gguf, shard_paths
from collab_plugin.engines.supported_types import refuse_types
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_layout import copy_order

MAX_EXPERTS = 1024
"""llama-hparams.h, LLAMA_MAX_EXPERTS; more makes llama-quantize and llama-server abort."""


@dataclass(frozen=True)
class OllamaArtifact:
    """``files``: one GGUF, or all shards in order; ``bytes``: their sum. ``label`` names the types that most
    weights have and the bits a weight, such as "IQ2_S+Q4_K 2.64bpw". ``chat_template``: the GGUF's, None when
    it has none that llama.cpp renders, with the reason in ``notes``. ``in_copy_order``: llama-quantize's COPY,
    which Ollama runs on every file, writes the same bytes again."""

    files: tuple[Path, ...]
    bytes: int
    architecture: str
    context_length: int | None
    label: str
    chat_template: str | None
    notes: tuple[str, ...]
    in_copy_order: bool
    checkpoint: GgufCheckpoint


def open_artifact(path: Path) -> OllamaArtifact:
    """Open a GGUF for Ollama; CollabError for what its checks or llama.cpp's would refuse, with the reason."""
    checkpoint = open_gguf(path)
    files = tuple(shard_paths(checkpoint.path))
    refuse_types(OLLAMA, {name: info.type.name for name, info in checkpoint.tensors.items()}, str(path))
    _refuse_experts(checkpoint)
    template, notes = _chat_template(checkpoint)
    context = _value(checkpoint, f"{checkpoint.architecture}.context_length")
    return OllamaArtifact(
        files=files,
        bytes=sum(file.stat().st_size for file in files),
        architecture=checkpoint.architecture,
        context_length=context if isinstance(context, int) else None,
        label=_label(checkpoint),
        chat_template=template,
        notes=notes,
        in_copy_order=len(files) == 1 and _in_copy_order(checkpoint),
        checkpoint=checkpoint,
    )


def _value(checkpoint: GgufCheckpoint, key: str) -> object:
    found = checkpoint.metadata.get(key)
    return None if found is None else found.value


def _chat_template(checkpoint: GgufCheckpoint) -> tuple[str | None, tuple[str, ...]]:
    template = _value(checkpoint, "tokenizer.chat_template")
    if not isinstance(template, str) or not template.strip():
        return None, ()
    why = why_not_rendered(template)
    if why is None:
        return template, ()
    return None, (f"llama.cpp cannot render the file's chat template ({why}): a TEMPLATE takes its place",)


def _refuse_experts(checkpoint: GgufCheckpoint) -> None:
    count = _value(checkpoint, f"{checkpoint.architecture}.expert_count")
    used = _value(checkpoint, f"{checkpoint.architecture}.expert_used_count")
    if isinstance(used, list):
        raise CollabError(
            f"{checkpoint.path} has a number of used experts for each layer, which Ollama's llama.cpp does not read; "
            "plan with one number of experts a token"
        )
    if isinstance(count, int) and count > MAX_EXPERTS:
        raise CollabError(f"{checkpoint.path} has {count} experts a layer; llama.cpp takes at most {MAX_EXPERTS}")


def _in_copy_order(checkpoint: GgufCheckpoint) -> bool:
    keys, names = copy_order(checkpoint.metadata, checkpoint.tensors)
    return keys == list(checkpoint.metadata) and names == list(checkpoint.tensors)


def _label(checkpoint: GgufCheckpoint) -> str:
    weights: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        weights[info.type.name] += info.n_elements
    whole = sum(weights.values())
    main = [name for name, count in weights.most_common(2) if count >= 0.05 * whole]
    bits = 8 * sum(info.nbytes for info in checkpoint.tensors.values()) / whole
    return f"{'+'.join(main)} {bits:.2f}bpw"
