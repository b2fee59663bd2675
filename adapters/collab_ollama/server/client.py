"""The HTTP API of an Ollama server: each call one method, each failure a CollabError.

Source: server/routes.go and api/types.go of Ollama v0.32.15.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collab_ollama.server.host import is_loopback
from collab_ollama.server.version import refuse_old
from collab_plugin.errors import CollabError

try:
    import httpx
except ImportError:
    raise CollabError("httpx is not installed: pip install 'collab-plugin[ollama]'") from None

_CHUNK = 2**20
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """What /api/show says: parameters as text, ``template`` and ``system`` as stored, GGUF keys (no arrays)."""

    parameters: str
    template: str
    system: str
    license: str
    blob: str | None
    model_info: Mapping[str, Any]
    details: Mapping[str, Any]
    capabilities: tuple[str, ...]


class Client:
    """Talks to one server. ``url`` as of host.server_url."""

    def __init__(self, url: str) -> None:
        self.url = url
        # A silent read can take minutes: the server copies and hashes whole models.
        timeout = httpx.Timeout(None, connect=10.0)
        # As Ollama's own client: no proxy to this machine.
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=not is_loopback(url))

    def close(self) -> None:
        self._http.close()

    def version(self) -> str:
        """Return the server's version; CollabError when there is none or it is older than 0.30.0."""
        data = self._json("GET", "/api/version", timeout=10.0)
        version = str(data.get("version", "")) if isinstance(data, dict) else ""
        refuse_old(version, self.url)
        return version

    def answers(self) -> bool:
        """True when anything answers there."""
        try:
            self._http.get("/", timeout=10.0)
        except httpx.TransportError:
            return False
        return True

    def show(self, model: str) -> Shown | None:
        """Return what the server knows of ``model``, None when it has no such model."""
        data = self._json("POST", "/api/show", {"model": model}, missing_ok=True)
        if data is None:
            return None
        blob = re.search(r"^FROM .*sha256-([0-9a-f]{64})\s*$", data.get("modelfile", ""), re.M)
        return Shown(
            parameters=data.get("parameters", ""),
            template=data.get("template", ""),
            system=data.get("system", ""),
            license=data.get("license", ""),
            blob=f"sha256:{blob[1]}" if blob else None,
            model_info=data.get("model_info") or {},
            details=data.get("details") or {},
            capabilities=tuple(data.get("capabilities") or ()),
        )

    def delete(self, model: str) -> None:
        """Delete ``model``; nothing happens when there is none."""
        self._json("DELETE", "/api/delete", {"model": model}, missing_ok=True)

    def has_blob(self, digest: str) -> bool:
        """True when the server has the file "sha256:<hex>"."""
        with self._naming():
            return self._http.head(f"/api/blobs/{digest}").status_code == httpx.codes.OK

    def push_blob(self, digest: str, path: Path, report: Callable[[int], None]) -> None:
        """Send ``path``; the server checks it against ``digest``. ``report`` gets the bytes sent so far."""
        with self._naming():
            reply = self._http.post(
                f"/api/blobs/{digest}",
                content=_pieces(path, report),
                headers={"Content-Length": str(path.stat().st_size)},
            )
        if reply.status_code not in (httpx.codes.OK, httpx.codes.CREATED):
            raise CollabError(f"Ollama did not take {path}: {_error_of(reply)}")

    def create(self, request: Mapping[str, Any]) -> Iterator[Event]:
        """Create a model, yielding each event of the stream; CollabError for errors in it, or when it breaks off."""
        last: Event = {}
        with self._naming(), self._http.stream("POST", "/api/create", json={**request, "stream": True}) as reply:
            if reply.status_code != httpx.codes.OK:
                reply.read()
                raise CollabError(f"Ollama did not create the model: {_error_of(reply)}")
            for line in reply.iter_lines():
                if not line.strip():
                    continue
                last = json.loads(line)
                if "error" in last:
                    raise CollabError(f"Ollama did not create the model: {last['error']}")
                yield last
        if last.get("status") != "success":
            raise CollabError(f"Ollama's answer broke off after {last.get('status', 'nothing')!r}; look at its log")

    def generate(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """POST /api/generate without streaming."""
        reply: Mapping[str, Any] = self._json("POST", "/api/generate", {**request, "stream": False})
        return reply

    def stream(self, request: Mapping[str, Any]) -> Iterator[Event]:
        """POST /api/generate, yielding each event; the last has ``done``. CollabError for errors in it, or when it
        breaks off."""
        last: Event = {}
        with self._naming(), self._http.stream("POST", "/api/generate", json={**request, "stream": True}) as reply:
            if reply.status_code != httpx.codes.OK:
                reply.read()
                raise CollabError(f"Ollama refused to generate: {_error_of(reply)}")
            for line in reply.iter_lines():
                if not line.strip():
                    continue
                last = json.loads(line)
                if "error" in last:
                    raise CollabError(f"Ollama stopped generating: {last['error']}")
                yield last
        if not last.get("done"):
            raise CollabError("Ollama's answer broke off; look at its log")

    def running(self) -> list[Mapping[str, Any]]:
        """The loaded models (/api/ps): name, size and size_vram in bytes, context_length."""
        found: list[Mapping[str, Any]] = self._json("GET", "/api/ps").get("models") or []
        return found

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        missing_ok: bool = False,
        timeout: float | None = None,
    ) -> Any:
        with self._naming():
            reply = self._http.request(method, path, json=body, timeout=timeout or httpx.USE_CLIENT_DEFAULT)
        if missing_ok and reply.status_code == httpx.codes.NOT_FOUND:
            return None
        if reply.status_code != httpx.codes.OK:
            raise CollabError(f"Ollama refused {path}: {_error_of(reply)}")
        if not reply.content:
            return {}
        try:
            return reply.json()
        except ValueError:
            raise CollabError(f"{self.url} answers, but is no Ollama server ({path} is not JSON)") from None

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise CollabError(f"no Ollama server at {self.url}: start it (ollama serve), or give `host`") from None
        except httpx.TransportError as error:
            raise CollabError(f"the Ollama server at {self.url} broke off ({error or type(error).__name__})") from None


def _pieces(path: Path, report: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
                sent += len(piece)
                report(sent)
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None


def _error_of(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status_code} {reply.text[:200]}".strip()
