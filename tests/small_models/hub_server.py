"""A server that answers as the Hugging Face hub does what huggingface_hub's client asks of it, and counts its bytes.

Models are folders. A repository's files are at one commit; "main" names it. What is not public wants the token. Weights
are elsewhere: whoever asks for them is sent there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"
_API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?/?$")
_FILE = re.compile(r"^(?P<elsewhere>/cdn)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class Hub:
    """``served``: bytes of bodies by file name. ``cut``: the connection ends after so many bytes of each file, once.
    ``revisions``: those that files were asked for at."""

    endpoint: str
    repos: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    revisions: set[str] = field(default_factory=set)

    def weights(self) -> int:
        """Bytes of safetensors and GGUF files that were served."""
        return sum(count for name, count in self.served.items() if name.endswith((".safetensors", ".gguf")))


@contextmanager
def hub_server(repos: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub("", repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            asked = _API.match(path) or _FILE.match(path)
            repo = asked["repo"] if asked else ""
            if repo not in hub.repos or (repo in hub.private and self.headers["Authorization"] != f"Bearer {TOKEN}"):
                return self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
            assert asked is not None
            if (asked["revision"] or "main") not in ("main", COMMIT):
                return self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            if "path" in asked.groupdict():
                hub.revisions.add(asked["revision"])
                if asked["path"].endswith((".safetensors", ".gguf")) and not asked["elsewhere"]:
                    return self._send_elsewhere(repo, asked["path"], path)
                return self._file(repo, asked["path"], body)
            return self._json(repo, asked["what"] == "tree")

        def _refuse(self, code: HTTPStatus, reason: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, repo: str, tree: bool) -> None:
            files = sorted(path for path in hub.repos[repo].rglob("*") if path.is_file())
            names = {path.relative_to(hub.repos[repo]).as_posix(): path for path in files}
            if tree:
                answer: object = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                    for name, path in names.items()
                ]
            else:
                siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in names.items()]
                answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            data = json.dumps(answer).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _send_elsewhere(self, repo: str, name: str, path: str) -> None:
            file = hub.repos[repo] / name
            if repo in hub.gated or not file.is_file():
                return self._file(repo, name, False)
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"{hub.endpoint}/cdn{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{_etag(file)}"')
            self.send_header("X-Linked-Size", str(file.stat().st_size))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _file(self, repo: str, name: str, body: bool) -> None:
            path = hub.repos[repo] / name
            if repo in hub.gated:
                return self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
            if not path.is_file():
                return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            size = path.stat().st_size
            start, stop = 0, size
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, stop = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else size, size)
            self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{_etag(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if not body:
                return None
            if hub.cut.get(name, size) < stop - start:
                stop = start + hub.cut.pop(name)
                self.close_connection = True
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start))
            hub.ranges.append((name, start, stop))
            hub.served[name] = hub.served.get(name, 0) + stop - start
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(path: Path) -> str:
    return hashlib.sha1(f"{path.name}{path.stat().st_size}".encode()).hexdigest()
