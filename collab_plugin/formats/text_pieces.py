"""Documents of a text file, whatever its format and size, in pieces that memory holds.

Formats by suffix: ``.jsonl`` (``.ndjson``) and ``.parquet`` hold a document in each line or row; anything else is plain
UTF-8 text, one document.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from collab_plugin.errors import CollabError

WHOLE = 16 * 2**20
"""Bytes of a file that is one piece; larger ones are cut at lines into pieces of about ``PIECE`` bytes."""
PIECE = 2**20
_LONGEST_LINE = 2**16  # of plain text; a longer one is cut between characters

Messages = list[dict[str, Any]]
Document = str | Messages
"""Text, or the messages of a chat: ``role`` and ``content``, as a chat template takes them."""

_LISTS = ("messages", "conversations", "conversation")
_TEXTS = ("text", "content")
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}


class TextPieces(ABC):
    """``count`` pieces; nothing is read before `documents` is called."""

    path: Path
    count: int

    @abstractmethod
    def documents(self, piece: int) -> Iterator[tuple[str, Document]]:
        """The documents of a piece, each with its place for messages. CollabError for what is damaged."""


def open_text(path: Path) -> TextPieces:
    """Open a regular file; CollabError when it cannot be read or is empty."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CollabError(f"cannot read the text {path}: {error.strerror}") from None
    if not size:
        raise CollabError(f"{path} is empty")
    if path.suffix in (".jsonl", ".ndjson"):
        return _JsonLines(path, size)
    return _Parquet(path) if path.suffix == ".parquet" else _Plain(path, size)


class _Bytes(TextPieces):
    """Pieces of a file that begin at lines."""

    longest_line: int | None = None

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.count = 1 if size <= WHOLE else -(-size // PIECE)

    def text(self, piece: int) -> str:
        """Line ends become newlines, and a byte-order mark is left out."""
        first, last = (0, self.size) if self.count == 1 else (self._line(piece), self._line(piece + 1))
        try:
            with self.path.open("rb") as file:
                file.seek(first)
                data = file.read(last - first)
        except OSError as error:
            raise CollabError(f"cannot read the text {self.path}: {error.strerror}") from None
        if not first and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise CollabError(f"{self.path} is UTF-16 and not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CollabError(
                f"{self.path} is not UTF-8 text (byte {first + error.start}); convert it: iconv -f LATIN1 -t UTF-8, or "
                "what it is in"
            ) from None
        text = text if first else text.removeprefix("\ufeff")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _line(self, piece: int) -> int:
        """Where the first line at or behind ``piece`` × PIECE begins; between two characters when none does soon."""
        at = min(piece * PIECE, self.size)
        if at in (0, self.size):
            return at
        with self.path.open("rb") as file:
            file.seek(at - 1)
            seen = at - 1
            while self.longest_line is None or seen < at + self.longest_line:
                data = file.read(_LONGEST_LINE)
                if not data:
                    return self.size
                if (found := data.find(b"\n")) >= 0:
                    return seen + found + 1
                seen += len(data)
            file.seek(at)
            return at + next((i for i, byte in enumerate(file.read(4)) if byte & 0xC0 != 0x80), 0)


class _Plain(_Bytes):
    longest_line = _LONGEST_LINE

    def documents(self, piece: int) -> Iterator[tuple[str, Document]]:
        text = self.text(piece)
        if self.count == 1 and not text.strip():
            raise CollabError(f"{self.path} is empty")
        yield str(self.path), text


class _JsonLines(_Bytes):
    def documents(self, piece: int) -> Iterator[tuple[str, Document]]:
        for number, line in enumerate(self.text(piece).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}" if self.count == 1 else f"{self.path}, line {line[:40]!r}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CollabError(f"{where} is not JSON ({error}); a .jsonl file holds one object a line") from None
            yield where, document_of(record, where)


class _Parquet(TextPieces):
    """A piece for each row group."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise CollabError(f"{path} needs pyarrow: pip install 'collab-plugin[parquet]'") from None
        try:
            self._file = parquet.ParquetFile(path)
        except (ArrowException, OSError) as error:
            raise CollabError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
        self.path, self.count = path, self._file.num_row_groups
        columns = self._file.schema_arrow.names
        self._column = next((name for name in (*_LISTS, *_TEXTS) if name in columns), None)
        if self._column is None or not self._file.metadata.num_rows:
            raise CollabError(f"{path} has no rows with a column {_wanted()}; it has {', '.join(columns)[:200]}")

    def documents(self, piece: int) -> Iterator[tuple[str, Document]]:
        rows = self._file.read_row_group(piece, columns=[self._column]).to_pylist()
        for number, row in enumerate(rows):
            where = f"{self.path}, row {number} of group {piece}"
            yield where, document_of(row, where)


def document_of(record: object, where: str) -> Document:
    """The document that a record is: OpenAI's ``messages``, ShareGPT's ``conversations``, or a ``text``."""
    if isinstance(record, dict):
        for key in _LISTS:
            if isinstance(record.get(key), list) and record[key]:
                return [_message(entry, f"{where}: `{key}`") for entry in record[key]]
        for key in _TEXTS:
            if isinstance(record.get(key), str):
                return str(record[key])
    raise CollabError(f"{where} has none of {_wanted()} in it")


def _wanted() -> str:
    return ", ".join(f"`{key}`" for key in (*_LISTS, *_TEXTS))


def _message(entry: object, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise CollabError(f"{where} holds {str(entry)[:40]!r}, which is no message")
    role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
    if not isinstance(role, str):
        raise CollabError(f"{where} has a message without `role` or `from`")
    rest = {key: value for key, value in entry.items() if key not in ("role", "from", "content", "value")}
    return {**rest, "role": _SPEAKERS.get(role, role), "content": _content(content, where)}


def _content(content: object, where: str) -> str:
    """Text; of a content in parts, the text of all of them."""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        if any(not isinstance(part.get("text"), str) for part in content):
            raise CollabError(f"{where} has a message with parts that are no text; leave such chats out")
        return "".join(part["text"] for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise CollabError(f"{where} has a message whose content is {str(content)[:40]!r}, no text")
    return content
