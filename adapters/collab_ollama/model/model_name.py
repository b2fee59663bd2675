"""Names of models in Ollama: HOST/NAMESPACE/MODEL:TAG, all but MODEL with defaults.

Source: types/model/name.go of Ollama v0.32.15.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from collab_plugin.errors import CollabError

_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


@dataclass(frozen=True)
class ModelName:
    """A name with every part; ``str`` gives the shortest spelling that Ollama shows."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        place = "" if self.namespace == "library" else f"{self.namespace}/"
        if self.host != "registry.ollama.ai":
            place = f"{self.host}/{self.namespace}/"
        return f"{place}{self.model}:{self.tag}"

    @property
    def path(self) -> PurePosixPath:
        """The manifest's path below ``manifests`` of the models folder."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)


def parse_name(text: str) -> ModelName:
    """Parse what the user typed; CollabError naming the part that Ollama would refuse."""
    rest, tag = text, "latest"
    if text.rfind(":") > text.rfind("/"):
        rest, _, tag = text.rpartition(":")
    parts = rest.rsplit("/", 2)
    namespace = parts[-2] if len(parts) > 1 else "library"
    host = parts[0] if len(parts) > 2 else "registry.ollama.ai"
    name = ModelName(host, namespace, parts[-1], tag)
    for part, pattern in _PARTS.items():
        if not pattern.fullmatch(getattr(name, part)):
            raise CollabError(
                f"{text!r} is no name for a model in Ollama: its {part} {getattr(name, part)!r} may have letters, "
                "digits, '_', '-'" + ("" if part == "namespace" else " and '.'") + ", not first a sign"
            )
    return name
