"""Create a model over HTTP: hash, link or send the file, have it created, check what came out.

What the server does with a file (server/create.go of Ollama v0.32.15): it runs llama-quantize COPY on
it, hashes the result and keeps it under its digest. Both the copy and the file that is hashed are
temporary: twice the model's size is needed in the meantime. When the artifact is in COPY's order, the
result has the digest of the artifact, and the hard link stays the only file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collab_ollama.create.events import Events
from collab_ollama.create.store import Store
from collab_ollama.model.gguf_for_ollama import OllamaArtifact
from collab_ollama.model.model_name import ModelName
from collab_ollama.model.modelfile import Modelfile, check
from collab_ollama.server.client import Client, Shown
from collab_plugin.errors import CollabError
from collab_plugin.progress import OnProgress, silent, track

_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class Created:
    """``digest``: of the file that Ollama runs; ``source_digests``: of the files given. ``linked``: the model
    is a hard link to the artifact, and takes no disk of its own. ``notes``: what a user must know."""

    name: str
    server: str
    version: str
    digest: str | None
    source_digests: tuple[str, ...]
    bytes: int
    linked: bool
    quantization_level: str
    capabilities: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Put:
    """``store``: the server's folder, None when it is out of reach. Digests of what was put there, by a link
    or over HTTP, and was not there before."""

    store: Store | None
    linked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)


def create(
    artifact: OllamaArtifact,
    modelfile: Modelfile,
    name: ModelName,
    client: Client,
    store: Store | None,
    *,
    replace: bool,
    progress: OnProgress = silent,
) -> Created:
    """Create ``name`` of ``artifact`` as ``modelfile`` says (its files are the artifact's).

    ``store`` is the server's models folder when it is on this machine; whether it is, is checked. On any
    failure, Ctrl-C included, what was put there is removed. Raises CollabError.
    """
    check(modelfile)
    version = client.version()
    existed = refuse_existing(client, name, replace)
    digests = tuple(digest_of(path, progress) for path in artifact.files)
    before = store.temporary() if store else frozenset()
    put = _Put(store)
    try:
        _put(artifact, digests, client, put, progress)
        _create(client, _request(artifact, modelfile, name, digests), name, progress, keep=existed)
        shown = client.show(str(name))
        if shown is None:
            raise CollabError(f"Ollama said success, but has no {name}; look at its log")
    except BaseException:
        _clean(client, put, before)
        raise
    return _result(artifact, modelfile, name, client, version, digests, shown, put)


def refuse_existing(client: Client, name: ModelName, replace: bool) -> bool:
    """True when the server has a model of that name; CollabError when it may not be replaced."""
    existed = client.show(str(name)) is not None
    if existed and not replace:
        raise CollabError(f"{name} exists in {client.url}; give another `name`, or `replace`")
    return existed


def digest_of(path: Path, progress: OnProgress) -> str:
    """Return "sha256:<hex>" of a file, with progress; CollabError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file, track(progress, f"hashing {path.name}", path.stat().st_size, "bytes") as report:
            done = 0
            while piece := file.read(_CHUNK):
                digest.update(piece)
                done += len(piece)
                report(done)
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    return f"sha256:{digest.hexdigest()}"


def _put(artifact: OllamaArtifact, digests: tuple[str, ...], client: Client, put: _Put, progress: OnProgress) -> None:
    """Link or send the files that the server lacks."""
    files = zip(artifact.files, digests, strict=True)
    missing = {digest: path for path, digest in files if not client.has_blob(digest)}
    if put.store is not None and any(put.store.blob(digest).exists() for digest in missing):
        put.store = None  # another server's folder: it has what this server lacks
    if put.store is not None:
        _link(missing, client, put, put.store)
    to_send = {digest: path for digest, path in missing.items() if digest not in put.linked}
    size = sum(path.stat().st_size for path in to_send.values())
    need = 2 * artifact.bytes + size
    _check_disk(put.store, need)
    for digest, path in to_send.items():
        title = f"sending {path.name} (the server needs {need:,} bytes for the model)"
        with track(progress, title, path.stat().st_size, "bytes") as report:
            put.sent.append(digest)
            client.push_blob(digest, path, report)


def _link(missing: Mapping[str, Path], client: Client, put: _Put, store: Store) -> None:
    put.linked += [digest for digest, path in missing.items() if store.link(path, digest)]
    # A link in another server's folder is not seen by this one.
    if not all(client.has_blob(digest) for digest in put.linked):
        store.remove_unused(put.linked)
        put.linked.clear()
        put.store = None


def _check_disk(store: Store | None, need: int) -> None:
    if store is None or not store.folder.is_dir():
        return
    free = store.free()
    if free < need:
        raise CollabError(
            f"Ollama needs {need:,} bytes in {store.folder} while it creates the model (it copies the file twice), "
            f"and {free:,} are free; free {need - free:,} bytes, or give the server another OLLAMA_MODELS "
            "(`models` names its folder)"
        )


def _request(
    artifact: OllamaArtifact, modelfile: Modelfile, name: ModelName, digests: tuple[str, ...]
) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": str(name),
        "files": {path.name: digest for path, digest in zip(artifact.files, digests, strict=True)},
        "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in modelfile.parameters.items()},
        "info": {"quantization_level": artifact.label, "capabilities": ["completion"]},
    }
    if modelfile.template is not None:
        request["template"] = modelfile.template
    if modelfile.system is not None:
        request["system"] = modelfile.system
    if modelfile.licenses:
        request["license"] = list(modelfile.licenses)
    if modelfile.requires is not None:
        request["requires"] = modelfile.requires.removeprefix("v")
    return request


def _create(client: Client, request: Mapping[str, Any], name: ModelName, progress: OnProgress, *, keep: bool) -> None:
    """Have the model created. After Ctrl-C the server goes on regardless, so its end is awaited; then the
    model is deleted, unless ``keep``: it took the place of one that is gone by then."""
    events = Events(client.create(request))
    try:
        with track(progress, f"creating {name}", unit="bytes") as report:
            for event in events:
                if event.get("total"):
                    report(event.get("completed", 0), event["total"])
    except KeyboardInterrupt:
        with track(progress, "interrupted; waiting for Ollama, which cannot stop its copy, to take it away again"):
            events.drain()
        if not keep:
            client.delete(str(name))
        raise


def _clean(client: Client, put: _Put, before: frozenset[str]) -> None:
    if put.store is None:
        return
    put.store.remove_unused([*put.linked, *put.sent])
    if not client.answers():
        put.store.remove_temporary(before)


def _result(
    artifact: OllamaArtifact,
    modelfile: Modelfile,
    name: ModelName,
    client: Client,
    version: str,
    digests: tuple[str, ...],
    shown: Shown,
    put: _Put,
) -> Created:
    if put.store is not None:
        # Shards, or a file that COPY wrote anew, are no part of the model.
        put.store.remove_unused([*put.linked, *put.sent])
    return Created(
        name=str(name),
        server=client.url,
        version=version,
        digest=shown.blob,
        source_digests=digests,
        bytes=artifact.bytes,
        linked=put.store is not None and shown.blob is not None and put.store.is_link(artifact.files[0], shown.blob),
        quantization_level=str(shown.details.get("quantization_level", "")),
        capabilities=shown.capabilities,
        notes=tuple(_notes(artifact, modelfile, digests, shown, put.store)),
    )


def _notes(
    artifact: OllamaArtifact, modelfile: Modelfile, digests: tuple[str, ...], shown: Shown, store: Store | None
) -> Iterator[str]:
    yield from artifact.notes
    if len(artifact.files) > 1:
        yield f"Ollama merged the {len(artifact.files)} shards into one file of its own"
    elif shown.blob not in digests:
        yield "Ollama wrote the file anew: it was not in llama-quantize's order, so the model takes its own disk"
    if shown.blob not in digests and store is None:
        yield "the file that was sent stays on the server until it starts again"
    if modelfile.template is None and shown.template != artifact.chat_template:
        yield (
            "Ollama recognised the chat template and uses its own version of it; "
            "start the server with OLLAMA_GO_TEMPLATE=0 before creating to keep the file's"
        )
