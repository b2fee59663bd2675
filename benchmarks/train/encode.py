"""Tokenize the training texts once: one uint16 array a domain."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def main() -> None:
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    out = Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(sys.argv[2]).glob("*.txt")):
        text = path.read_text("utf-8")
        parts = [text[i : i + 100_000] for i in range(0, len(text), 100_000)]
        encoded = tokenizer.encode_batch(parts, add_special_tokens=False)
        ids = np.concatenate([np.asarray(e.ids, np.uint16) for e in encoded])
        np.save(out / f"{path.stem}.npy", ids)
        print(path.stem, len(text.encode()), len(ids), f"{len(text.encode()) / len(ids):.2f} bytes a token")


if __name__ == "__main__":
    main()
