"""What a file is that stands where a model, a tokenizer or an importance matrix should be, told by its first bytes."""

from __future__ import annotations

from pathlib import Path

HEAD = 256
"""So many bytes are looked at."""
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "it is a Git LFS pointer, which stands for the file: run `git lfs pull` beside it, or download the file",
    ),
    (b"<!doctype html", "it is a web page: download the file itself"),
    (b"<html", "it is a web page: download the file itself"),
    (b"pk\3\4", "it is a ZIP archive, such as PyTorch's pickles: give safetensors or a GGUF"),
    *(
        (magic, "it is in a format of llama.cpp from before GGUF: convert the original model with a current llama.cpp")
        for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
)


def foreign_hint(head: bytes) -> str | None:
    """What a file is that begins with ``head``, and what to do; None when nothing is known of it."""
    lower = head[:HEAD].lstrip().lower()
    found = next((says for start, says in _KINDS if lower.startswith(start)), None)
    if found is None and len(head) >= 16 and not any(head[:HEAD]):
        return "it begins with nothing but zeros, as a download that never ended does: download it again"
    return found


def head_of(path: Path) -> bytes:
    """The first bytes of the file at ``path``; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
