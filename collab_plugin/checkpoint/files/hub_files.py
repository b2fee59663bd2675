"""Models on the Hugging Face hub, ``hf://organization/name[@revision][/file.gguf]``: read by HTTP ranges, and fetched
into the library's own cache where whole files are needed.

The revision is looked up once and pinned to its commit. Tokens, endpoint, cache and offline mode are the library's
(HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from collab_plugin.checkpoint.files.model_files import DistantFile, ModelFiles, is_companion
from collab_plugin.errors import CollabError
from collab_plugin.formats.byte_file import ByteFile, LocalFile

SCHEME = "hf://"
_ADDRESS = re.compile(r"^hf://(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?$")


class HubFiles(ModelFiles):
    """One commit of a model repository. ``folder`` names the place within it, "" for its top."""

    def __init__(self, address: str) -> None:
        found = _ADDRESS.match(address)
        if not found:
            raise CollabError(f"{address} is no model on the hub; write hf://organization/name or …/name@revision")
        self.repo = found["repo"]
        inside = (found["file"] or "").rstrip("/")
        with _told(address):
            self._asked = found["revision"] or "main"
            self.commit, self._sizes, self._cached = _looked_up(self.repo, self._asked)
        self.named = inside.rpartition("/")[2] if inside in self._sizes else None
        self._prefix = inside[: len(inside) - len(self.named)] if self.named else f"{inside}/" if inside else ""
        if inside and not self.names():
            raise CollabError(f"{address}: {self.repo} has no {inside} at commit {self.commit[:12]}")
        self.address = f"{SCHEME}{self.repo}@{self.commit}{f'/{inside}' if inside else ''}"
        self.name = self.repo.rpartition("/")[2]

    def names(self) -> list[str]:
        inside = (name.removeprefix(self._prefix) for name in self._sizes if name.startswith(self._prefix))
        return sorted(name for name in inside if "/" not in name)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._sizes

    def open(self, name: str) -> ByteFile:
        here = self._here(name)
        return LocalFile(here) if here else _HubFile(self, self._prefix + name, self._sizes[self._prefix + name])

    def fetch(self, names: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        if self._cached is not None:
            return self._cached / self._prefix
        patterns = [glob.escape(self._prefix + name) for name in names]
        with _told(self.address), _bars(not all(map(is_companion, names))):
            # By the name that was asked for, so that the cache knows it offline; by its commit when it has moved.
            for revision in (self._asked, self.commit):
                folder = Path(snapshot_download(self.repo, revision=revision, allow_patterns=patterns))
                if folder.name == self.commit:
                    break
            return folder / self._prefix

    def where(self, name: str) -> str:
        return f"{SCHEME}{self.repo}@{self.commit}/{self._prefix}{name}"

    def _here(self, name: str) -> Path | None:
        """The file in the library's cache, when it was fetched before."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self._prefix + name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None


class _HubFile(DistantFile):
    def __init__(self, files: HubFiles, path: str, size: int | None) -> None:
        from huggingface_hub import hf_hub_url

        super().__init__(f"{SCHEME}{files.repo}@{files.commit}/{path}", size)
        self._url = hf_hub_url(files.repo, path, revision=files.commit)

    def fetch(self, start: int, stop: int) -> bytes:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with _told(self.where):
            answer = http_backoff("GET", self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(answer)
            return bytes(answer.content)


def _looked_up(repo: str, revision: str) -> tuple[str, dict[str, int | None], Path | None]:
    """The commit, sizes of its files by path, and in offline mode the folder of the cache, which is then all there
    is."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        return str(info.sha), {file.rfilename: file.size for file in info.siblings or ()}, None
    folder = _cached(repo, revision)
    paths = (path for path in folder.rglob("*") if path.is_file())
    return folder.name, {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}, folder


def _cached(repo: str, revision: str) -> Path:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    with suppress(CacheNotFound):
        models = (each for each in scan_cache_dir().repos if each.repo_type == "model" and each.repo_id == repo)
        for found in (held for model in models for held in model.revisions):
            if revision in (*found.refs, found.commit_hash):
                return found.snapshot_path
    raise CollabError(
        f"{SCHEME}{repo}@{revision} is not in the cache of this machine, and HF_HUB_OFFLINE keeps from asking the hub"
    )


@contextmanager
def _told(address: str) -> Iterator[None]:
    """What the hub or the way to it says, in one line."""
    from huggingface_hub import errors

    # The HTTP library's own base class (which library it is changes with versions), and OSError.
    network: tuple[type[Exception], ...] = tuple(b for b in errors.HfHubHTTPError.__bases__ if issubclass(b, Exception))
    try:
        yield
    except errors.GatedRepoError:
        raise CollabError(
            f"{address} is gated: ask for access on its page of the hub, then set HF_TOKEN to a token of your account"
        ) from None
    except errors.RevisionNotFoundError:
        raise CollabError(f"{address}: the hub has no such revision; give a branch, a tag or a commit") from None
    except errors.RepositoryNotFoundError:
        raise CollabError(
            f"{address} is not on the hub, or private: check the name, and set HF_TOKEN for a private model"
        ) from None
    except errors.EntryNotFoundError:
        raise CollabError(f"{address}: a file of it is neither on the hub nor in the cache of this machine") from None
    except errors.HFValidationError as error:
        raise CollabError(f"{address} is no model on the hub: {str(error).splitlines()[0]}") from None
    except network as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise CollabError(f"no space to download {address}: free some, or set HF_HOME to another disk") from None
        raise CollabError(f"{address} cannot be had: {_first_line(error)}; is the network up?") from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__} {str(error).strip().partition(chr(10))[0]}".rstrip(" .")


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """The library's progress bars are for gigabytes; configurations and tokenizers come without."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not shown and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()
