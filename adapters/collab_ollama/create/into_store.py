"""Create a model without the server: link the artifact into its models folder and write the manifest.

For a file that leaves no room for the copies that `/api/create` makes. The layout of a models folder is
no interface of Ollama's (manifest/, types/model/config.go of v0.32.15): so the server is asked what it
makes of the result, and all is taken back when that is not what was meant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from collab_ollama.create.over_http import Created, digest_of, refuse_existing
from collab_ollama.create.store import Store
from collab_ollama.model.gguf_for_ollama import OllamaArtifact
from collab_ollama.model.model_name import ModelName
from collab_ollama.model.modelfile import Modelfile, check
from collab_ollama.server.client import Client, Shown
from collab_plugin.errors import CollabError
from collab_plugin.progress import OnProgress, silent

_IMAGE = "application/vnd.ollama.image"


def create_direct(
    artifact: OllamaArtifact,
    modelfile: Modelfile,
    name: ModelName,
    client: Client,
    store: Store,
    *,
    replace: bool,
    progress: OnProgress = silent,
) -> Created:
    """As create.create, for one file and a server of this machine and user; nothing is copied or checked by Ollama.

    Raises CollabError, leaving nothing behind, when the file cannot be linked or the server does not see
    the model as it was meant.
    """
    check(modelfile)
    version = client.version()
    if len(artifact.files) > 1:
        raise CollabError("a split artifact must be merged by Ollama: leave out `direct`")
    refuse_existing(client, name, replace)
    path = artifact.files[0]
    digest = digest_of(path, progress)
    manifest = store.manifest(name)
    before = manifest.read_bytes() if manifest.is_file() else None
    put: list[str] = []
    try:
        if not client.has_blob(digest):
            if not store.link(path, digest):
                raise CollabError(
                    f"{path} cannot be linked into {store.blobs}: both must be on one disk and yours; "
                    "leave out `direct`"
                )
            put.append(digest)
        if not client.has_blob(digest):
            raise CollabError(f"{store.folder} is not the folder of the server at {client.url}; give `models`")
        store.write(manifest, _json(_manifest(artifact, modelfile, digest, store, put)))
        shown = client.show(str(name))
        _refuse_other(shown, artifact, modelfile, digest)
        assert shown is not None
    except BaseException:
        _take_back(store, name, before)
        store.remove_unused(put)
        raise
    return Created(
        name=str(name),
        server=client.url,
        version=version,
        digest=shown.blob,
        source_digests=(digest,),
        bytes=artifact.bytes,
        linked=store.is_link(path, digest),
        quantization_level=str(shown.details.get("quantization_level", "")),
        capabilities=shown.capabilities,
        notes=(*artifact.notes, "Ollama did not check the file: what is wrong with it shows when it is loaded"),
    )


def _take_back(store: Store, name: ModelName, before: bytes | None) -> None:
    if before is None:
        store.remove_manifest(name)
    else:
        store.write(store.manifest(name), before)


def _manifest(
    artifact: OllamaArtifact, modelfile: Modelfile, digest: str, store: Store, put: list[str]
) -> Mapping[str, object]:
    """The manifest; the small files that it names are written, and their digests added to ``put``."""

    def layer(kind: str, data: bytes) -> dict[str, object]:
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not store.blob(found).exists():
            put.append(found)
            store.write(store.blob(found), data)
        return {"mediaType": kind, "digest": found, "size": len(data)}

    layers: list[dict[str, object]] = [{"mediaType": f"{_IMAGE}.model", "digest": digest, "size": artifact.bytes}]
    texts = [("template", modelfile.template), ("system", modelfile.system)]
    texts += [("license", text) for text in modelfile.licenses]
    layers += [layer(f"{_IMAGE}.{kind}", text.encode()) for kind, text in texts if text]
    if modelfile.parameters:
        layers.append(layer(f"{_IMAGE}.params", _json(modelfile.parameters)))
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layer("application/vnd.docker.container.image.v1+json", _json(_config(artifact, modelfile))),
        "layers": layers,
    }


def _config(artifact: OllamaArtifact, modelfile: Modelfile) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": artifact.architecture,
        "model_families": [artifact.architecture],
        "model_type": _human(sum(info.n_elements for info in artifact.checkpoint.tensors.values())),
        "file_type": artifact.label,
        "capabilities": ["completion"],
        # "Required by spec", and the same on every machine.
        "architecture": "amd64",
        "os": "linux",
    }
    if modelfile.requires is not None:
        config["requires"] = modelfile.requires.removeprefix("v")
    return config


def _human(count: int) -> str:
    """21060000 -> "21.06M", as format.HumanNumber of Ollama."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if count >= size:
            return f"{count / size:.{0 if count % size == 0 else digits}f}{unit}"
    return str(count)


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _refuse_other(shown: Shown | None, artifact: OllamaArtifact, modelfile: Modelfile, digest: str) -> None:
    """CollabError when the server sees anything but what was meant."""
    if shown is None:
        raise CollabError("this Ollama does not see the model that was written: leave out `direct`")
    seen = (shown.blob, shown.system, shown.details.get("quantization_level"))
    meant = (digest, modelfile.system or "", artifact.label)
    names = {line.split(maxsplit=1)[0] for line in shown.parameters.splitlines() if line.strip()}
    if seen != meant or names != set(modelfile.parameters):
        raise CollabError("this Ollama reads the model in another way than was meant: leave out `direct`")
