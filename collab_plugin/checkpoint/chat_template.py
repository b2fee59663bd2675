"""The chat template of a Hugging Face folder: one text for a GGUF, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError

FILE = "chat_template.jinja"


def chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The default template, as transformers finds it: chat_template.jinja first, then tokenizer_config.json's text or
    its template named "default". And a note that names the others."""
    if (folder / FILE).is_file():
        try:
            return (folder / FILE).read_text("utf-8"), []
        except (OSError, UnicodeDecodeError) as error:
            raise CollabError(f"{folder / FILE} cannot be read: {error}") from None
    told = tokenizer_config.get("chat_template")
    if told is None or isinstance(told, str):
        return told, []
    if not isinstance(told, list) or not all(_is_named(entry) for entry in told):
        raise CollabError(f"{folder}/tokenizer_config.json has a chat_template that is neither text nor named texts")
    named = {entry["name"]: entry["template"] for entry in told}
    others = sorted(set(named) - {"default"})
    notes = [f"chat templates left out, a GGUF has the default one: {', '.join(others)}"] if others else []
    return named.get("default"), notes


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))
