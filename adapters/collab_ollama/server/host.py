"""Where the server is: OLLAMA_HOST as Ollama reads it."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from collab_plugin.errors import CollabError

DEFAULT_PORT = 11434


def server_url(given: str | None) -> str:
    """Return "http://host:port" from ``given``, OLLAMA_HOST, or the default; CollabError when it is no address.

    Source: envconfig/config.go (Host). An address to listen on everywhere means this machine to a client.
    """
    text = given or os.environ.get("OLLAMA_HOST", "").strip() or "127.0.0.1"
    with_scheme = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(with_scheme)
        port = parts.port or {"https": 443}.get(parts.scheme, DEFAULT_PORT)
        if "://" in text and parts.scheme == "http" and parts.port is None:
            port = 80
    except ValueError as error:
        raise CollabError(f"{text!r} is no address of a server ({error}); write HOST:PORT") from None
    if parts.scheme not in ("http", "https"):
        raise CollabError(f"{text!r} is no address of a server; write HOST:PORT or http://HOST:PORT")
    host = parts.hostname or "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(url: str) -> bool:
    """True when the server is on this machine by its address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
