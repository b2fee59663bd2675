"""Programs that load artifacts, and the ggml types that they take: `plan --for NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Loader:
    """``types`` are the ggml type names that the program loads; a file with any other is refused by it."""

    name: str
    description: str
    types: frozenset[str]


def allowed_types(loader: Loader, types: tuple[str, ...], given: bool) -> tuple[str, ...]:
    """Return those of ``types`` that the loader takes.

    CollabError naming the first one it refuses when the user had asked for them (``given``).
    """
    refused = [name for name in types if name not in loader.types]
    if given and refused:
        raise CollabError(f"`loader` {loader.name} does not load {refused[0]}; leave it out of `types`")
    return tuple(name for name in types if name in loader.types)


def refuse_types(loader: Loader, types: Mapping[str, str], what: str) -> None:
    """CollabError naming the first tensor of ``types`` (name -> ggml type) that the loader refuses."""
    for tensor, kind in types.items():
        if kind not in loader.types:
            count = sum(other == kind for other in types.values())
            raise CollabError(
                f"{what}: {tensor} has type {kind}, which {loader.name} does not load ({count} tensors); "
                f"plan again for {loader.name}"
            )
