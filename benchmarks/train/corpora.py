"""Collect the training, calibration and validation texts from installed packages.

Six domains; documents are split by hash, so no document is in two sets. Packages (Debian bookworm):
bible-kjv-text, debian-handbook, debian-reference-{de,fr,en}, manpages-de, manpages-fr, dict-gcide,
libc6-dev, linux-libc-dev; Python code: the standard library of the running interpreter.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = ("english", "german", "python")
LIMIT = 5_000_000
HELD_OUT_BYTES = 170_000


def strip_html(text: str) -> str:
    text = re.sub(r"(?is)<(script|style|head|nav|footer)\b.*?</\1>", " ", text)
    text = re.sub(r"(?i)<(br|/p|/div|/h\d|/li|/tr|/pre|/dt|/dd)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    return re.sub(r"\s*\n\s*(\n\s*)*", "\n\n", text).strip() + "\n"


def strip_roff(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if line.startswith(("'\\\"", '.\\"')):
            continue
        if line.startswith((".SH", ".SS")):
            line = "\n" + line[3:].strip().strip('"')
        elif line.startswith((".B ", ".I ", ".BR ", ".IR ", ".RB ", ".RI ", ".BI ", ".IB ")):
            line = line.split(" ", 1)[1].replace('"', "")
        elif line.startswith("."):
            continue
        line = re.sub(r"\\f[BIRPC1-4]|\\f\(..|\\f\[[^\]]*\]|\\&|\\/|\\,|\\c|\\:|\\%", "", line)
        line = line.replace("\\-", "-").replace("\\(aq", "'").replace("\\(en", "-").replace("\\e", "\\")
        line = re.sub(r"\\\((..)|\\\[[^\]]*\]|\\[sm][+-]?\d+|\\ ", " ", line)
        lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def bible() -> Iterator[str]:
    """Chapters of the King James Version, printed by Debian's `bible` program."""
    out = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    chapter: str | None = None
    current: list[str] = []
    for line in out.splitlines():
        head, _, verse = line.partition(" ")
        key = head.rpartition(":")[0]
        if key != chapter and current:
            yield "\n".join(current) + "\n"
            current = []
        chapter = key
        current.append(verse.strip())
    yield "\n".join(current) + "\n"


def pages(pattern: str, root: str) -> Iterator[str]:
    for path in sorted(Path(root).glob(pattern)):
        yield strip_html(path.read_text("utf-8", errors="ignore"))


def man_pages(language: str) -> Iterator[str]:
    for path in sorted(Path(f"/usr/share/man/{language}").glob("man*/*.gz")):
        if path.is_symlink():
            continue
        yield strip_roff(gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore"))


def python_files() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        rel = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "turtledemo"} & set(rel):
            continue
        yield path.read_text("utf-8", errors="ignore")


def c_headers() -> Iterator[str]:
    for folder in ("linux", "x86_64-linux-gnu", "drm", "sound", "rdma"):
        for path in sorted(Path("/usr/include", folder).rglob("*.h")):
            if path.stat().st_size < 200_000:
                yield path.read_text("utf-8", errors="ignore")


def dictionary() -> Iterator[str]:
    text = gzip.decompress(Path("/usr/share/dictd/gcide.dict.dz").read_bytes()).decode("utf-8", "ignore")
    entries = re.split(r"\n(?=[A-Z][a-z]+ \\)", text[1_000_000:9_000_000])
    for start in range(0, len(entries), 20):
        yield "\n".join(entries[start : start + 20])


HANDBOOK = "/usr/share/doc/debian-handbook/html"
DOMAINS = {
    "english": lambda: bible(),
    "german": lambda: chain(
        man_pages("de"), pages("de-DE/*.html", HANDBOOK), pages("*.de.html", "/usr/share/debian-reference")
    ),
    "french": lambda: chain(
        man_pages("fr"), pages("fr-FR/*.html", HANDBOOK), pages("*.fr.html", "/usr/share/debian-reference")
    ),
    "python": lambda: python_files(),
    "c": lambda: c_headers(),
    "dictionary": lambda: dictionary(),
}


def chain(*parts: Iterator[str]) -> Iterator[str]:
    for part in parts:
        yield from part


def split(domain: str) -> dict[str, str]:
    """Return texts of a domain: train, calibration, validation; near-equal documents dropped."""
    seen: set[str] = set()
    sets: dict[str, list[str]] = {"train": [], "calibration": [], "validation": []}
    size = dict.fromkeys(sets, 0)
    docs = []
    for doc in DOMAINS[domain]():
        key = hashlib.sha256(re.sub(r"\W+", "", doc[:400]).encode()).hexdigest()
        if len(doc) > 400 and key not in seen:
            seen.add(key)
            docs.append((key, doc[:40_000]))
    for _, doc in sorted(docs):  # order by hash: a shuffle that never changes
        part = "train"
        if domain in HELD_OUT:
            part = next((p for p in ("validation", "calibration") if size[p] < HELD_OUT_BYTES), "train")
        if part == "train" and size["train"] > LIMIT:
            break
        sets[part].append(doc)
        size[part] += len(doc.encode())
    return {part: "\n".join(docs) for part, docs in sets.items()}


def main() -> None:
    out, held_out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    held_out.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        texts = split(domain)
        (out / f"{domain}.txt").write_text(texts["train"], "utf-8")
        for part in ("calibration", "validation"):
            if texts[part]:
                (held_out / f"{domain}.{part}.txt").write_text(texts[part], "utf-8")
        print(domain, {part: len(text.encode()) for part, text in texts.items()}, flush=True)


if __name__ == "__main__":
    main()
