"""Make the multiple-choice windows of this folder from tests/texts: `python tests/lm_eval/make_windows.py [FOLDER]`.

Each item is a piece of a held-out text and four contexts, of which one came before it: the others stand at
least `APART` characters away in the same text, so in other documents as a rule. The answer is the context under
which the piece is likeliest. (Four pieces after one context are a harder task: how likely a piece is by itself
then outweighs the context in models as small as the trained ones here, which do little better than chance.)
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOMAINS = ("english", "german", "python")
ITEMS = 100
CONTEXT, CONTINUATION = 240, 60
APART = 30_000


def break_at(text: str, at: int) -> int:
    """The first single space between two words at ``at`` or later."""
    while not (text[at] == " " and not text[at - 1].isspace() and not text[at + 1].isspace()):
        at += 1
    return at


def items(text: str, seed: int) -> list[dict[str, object]]:
    rng = random.Random(seed)
    step = (len(text) - 2 * CONTEXT) // ITEMS
    starts = [break_at(text, CONTEXT + i * step) for i in range(ITEMS)]
    found: list[dict[str, object]] = []
    for at in starts:
        before = rng.sample([other for other in starts if abs(other - at) >= APART], 3)
        label = rng.randrange(4)
        before.insert(label, at)
        contexts = [text[end - CONTEXT : end].lstrip() for end in before]
        piece = text[at : break_at(text, at + CONTINUATION)]
        found.append({"contexts": contexts, "continuation": piece, "label": label})
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for seed, domain in enumerate(DOMAINS):
        text = (HERE.parent / "texts" / f"{domain}.validation.txt").read_text("utf-8")
        lines = [json.dumps(item, ensure_ascii=False) for item in items(text, seed)]
        (folder / f"windows_{domain}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
