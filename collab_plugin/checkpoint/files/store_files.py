"""Models in folders of object stores and servers (``s3://``, ``gs://``, ``https://``, whatever fsspec has), read by
ranges, and copied into the user's cache where whole files are needed."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collab_plugin.checkpoint.files.model_files import DistantFile, ModelFiles, is_companion
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile
from collab_plugin.formats.user_folders import cache_path

_STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created", "generation")
# Looked for one by one where a server lists no folders.
_USUAL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
          "special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json",
          "model.safetensors")  # fmt: skip


class StoreFiles(ModelFiles):
    """A folder of a store, or one GGUF of it."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address.rstrip("/")
        with _told(self.address):
            self.store, root = fsspec.url_to_fs(self.address)
        place, _, last = str(root).rstrip("/").rpartition("/")
        self.named = last if last.endswith(".gguf") else None
        self.root = place if self.named else str(root).rstrip("/")
        self.name = (last.removesuffix(".gguf") if self.named else last) or self.address.rpartition("/")[2]
        with _told(self.address):
            self._entries = self._listed() or self._tried()
        if not self._entries or (self.named and self.named not in self._entries):
            raise CollabError(f"there are no files at {self.address}; is the address right?")

    def names(self) -> list[str]:
        return sorted(self._entries)

    def has(self, name: str) -> bool:
        return name in self._entries

    def open(self, name: str) -> ByteFile:
        return _StoreFile(self, name, self._size(name))

    def fetch(self, names: Sequence[str]) -> Path:
        folder = cache_path() / "stores" / self._key()
        with _told(self.address):
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                here = folder / name
                # Small files are fetched anew: a store may not say that one was changed.
                if is_companion(name) or not here.is_file() or here.stat().st_size != self._size(name):
                    part = here.with_name(f"{name}.partial")
                    self.store.get_file(f"{self.root}/{name}", str(part))
                    part.replace(here)
        return folder

    def where(self, name: str) -> str:
        return f"{self.address.rpartition('/')[0] if self.named else self.address}/{name}"

    def _size(self, name: str) -> int | None:
        size: int | None = self._entries[name].get("size")
        if size is None:
            with _told(self.where(name)):
                size = self._entries[name]["size"] = self.store.info(f"{self.root}/{name}").get("size")
        return size

    def _listed(self) -> dict[str, dict[str, Any]]:
        try:
            found = self.store.ls(f"{self.root}/", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception:
            if self._is_http:  # a server may refuse to list what it serves
                return {}
            raise
        files = (entry for entry in found if entry.get("type") == "file" or self._is_http)
        names = ((str(entry["name"]).rstrip("/").rpartition("/")[2], dict(entry)) for entry in files)
        return {name: entry for name, entry in names if is_companion(name) or _is_weights(name)}

    def _tried(self) -> dict[str, dict[str, Any]]:
        """The usual files that are there, and those that an index names."""
        import json

        wanted = [self.named] if self.named else list(_USUAL)
        found = [name for name in wanted if self.store.exists(f"{self.root}/{name}")]
        for index in (name for name in found if name.endswith(".index.json")):
            table = json.loads(self.store.cat_file(f"{self.root}/{index}")).get("weight_map", {})
            found += sorted(set(map(str, table.values())) - set(found))
        return {name: {} for name in found}

    @property
    def _is_http(self) -> bool:
        """Listings of web servers do not tell folders from files."""
        return self.address.startswith(("http://", "https://"))

    def _key(self) -> str:
        """Of the folder in the cache: another one when the store says that a file was changed."""
        stamps = [[name, e.get("size"), *(str(e[s]) for s in _STAMPS if s in e)] for name, e in self._entries.items()]
        return hashlib.sha256(f"{self.store.protocol} {self.root} {sorted(map(str, stamps))}".encode()).hexdigest()[:32]


class _StoreFile(DistantFile):
    def __init__(self, files: StoreFiles, name: str, size: int | None) -> None:
        super().__init__(files.where(name), size)
        self._store, self._path = files.store, f"{files.root}/{name}"

    def fetch(self, start: int, stop: int) -> bytes:
        with _told(self.where):
            return bytes(self._store.cat_file(self._path, start=start, end=stop))


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


@contextmanager
def _told(address: str) -> Iterator[None]:
    """What a store's library says, in one line: each has errors of its own."""
    scheme = address.partition("://")[0]
    try:
        yield
    except CollabError:
        raise
    except ImportError as error:
        raise CollabError(f"{address} needs a package that is not installed: {_first_line(error)}") from None
    except FileNotFoundError:
        raise CollabError(f"{address} does not exist") from None
    except PermissionError as error:
        raise CollabError(f"{address} may not be read: {_first_line(error)}; give {scheme} your credentials") from None
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise CollabError(f"no space to copy {address} to {cache_path()}: free some") from None
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise CollabError(f"{address}: no store is called {scheme}://; known are fsspec's, and hf://") from None
        raise CollabError(f"{address} cannot be read: {type(error).__name__} {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
