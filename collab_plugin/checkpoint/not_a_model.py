"""Why a path is no model that is read here, when its name or what lies beside it tells."""

from __future__ import annotations

from pathlib import Path

from collab_plugin.formats.foreign_file import foreign_hint, head_of


def why_not(path: Path) -> str | None:
    """What is at ``path`` instead of a model, and what to give; None when nothing tells."""
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return f"it is a part of a Hugging Face folder: give the folder, {path.parent}, with its config.json"
    return foreign_hint(head_of(path))


def _folder(path: Path) -> str | None:
    if (path / "adapter_config.json").is_file():
        return "it is a LoRA adapter (adapter_config.json): merge it into its model first, and give that"
    if any(path.glob("*.safetensors")):
        return "it has safetensors but no config.json: download that, too"
    inner = sorted({gguf.parent.name for gguf in path.glob("*/*.gguf")})
    if inner:
        return f"GGUF files are in its folders {', '.join(inner[:3])}: give one of those"
    return None
