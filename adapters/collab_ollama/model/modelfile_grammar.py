"""What a Modelfile can say, and how: its grammar has no escapes, so some values cannot be written.

Source: parser/parser.go of Ollama v0.32.15 (ParseFile, unquote). A quoted value ends at the first line
break before which the text so far ends in the closing quotes, and characters that Go's
strconv.IsPrint refuses vanish without a word. Whatever would come out changed is refused here.
"""

from __future__ import annotations

import unicodedata

from collab_plugin.errors import CollabError

QUOTES = '"""'
_LINE_BREAKS = "\n\r"


def quoted(value: str, what: str) -> str:
    """Return ``value`` between triple quotes; CollabError when Ollama would read something else."""
    for character in value:
        if not _survives(character):
            raise CollabError(f"{what} has the character U+{ord(character):04X}, which a Modelfile cannot hold{_WAY}")
    for at, character in enumerate(value):
        if character in _LINE_BREAKS and _closed(QUOTES + value[:at]):
            raise CollabError(f'{what} has a line that ends in """, which ends the value in a Modelfile{_WAY}')
    return f"{QUOTES}{value}{QUOTES}"


_WAY = "; change it, or use `collab-plugin ollama create`, which has no such limit"


def plain(value: str, what: str) -> str:
    """Return a one-line ``value`` that needs no quotes (FROM has none); CollabError when it cannot be said."""
    for character in value:
        if character in _LINE_BREAKS or not _survives(character):
            raise CollabError(f"{what} has the character U+{ord(character):04X}, which a Modelfile cannot hold")
    if value != value.strip() or value.startswith('"') or not value:
        raise CollabError(f"{what} is {value!r}: a Modelfile cannot hold blanks at its ends or a quote in front")
    return value


def _survives(character: str) -> bool:
    """Go's strconv.IsPrint (letters, marks, numbers, punctuation, symbols, the space), tabs and line breaks."""
    return character in " \t\n\r" or unicodedata.category(character)[0] in "LMNPS"


def _closed(text: str) -> bool:
    trimmed = text.strip()
    return len(trimmed) >= 2 * len(QUOTES) and trimmed.endswith(QUOTES)
