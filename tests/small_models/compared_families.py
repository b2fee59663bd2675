"""Every tiny checkpoint converted, whole and pruned, and what llama.cpp and transformers compute of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from small_models.converted import TOKENS, as_gguf, llama_cpp_logits, make_checkpoints, nmse
from small_models.converter_differences import converter_differences
from small_models.family_cases import KEPT
from small_models.torch_python import compute


@dataclass(frozen=True)
class ComparedFamily:
    """``original`` and ``pruned``: normalised squared error of llama.cpp's logits, None where llama.cpp does not load
    the file; ``changed``: of transformers' pruned logits from the original's. ``reference``: of our reference.
    ``differences`` from llama.cpp's converter, None where it was not there; ``why_not``: what stopped it."""

    family: str
    architecture: str
    notes: tuple[str, ...]
    original: float | None
    pruned: float | None
    changed: float | None
    reference: float | None
    differences: tuple[str, ...] | None
    why_not: str | None


def compare_families(
    python: str,
    folder: Path,
    cases: Mapping[str, Mapping[str, Any]],
    converter: Path | None,
    classes: Sequence[str] = (),
) -> dict[str, ComparedFamily]:
    """All ``cases`` with one process of transformers, one of llama.cpp and one of the reference. ``classes``: as of
    `make_checkpoints`."""
    make_checkpoints(python, folder, cases, converter, classes)
    ggufs: list[Path] = []
    decoded: list[Path] = []
    opened = {case: open_safetensors(folder / case / "model") for case in cases}
    for case, checkpoint in opened.items():
        wide = "packed" in cases[case]
        whole = as_gguf(checkpoint, folder / case / "whole.gguf", None, wide=wide)
        ggufs.append(whole)
        if checkpoint.family.decoder is not None:
            decoded.append(whole)
        if not cases[case].get("whole"):
            ggufs.append(as_gguf(checkpoint, folder / case / "kept.gguf", KEPT, wide=wide))
    found = dict(zip(ggufs, llama_cpp_logits(*ggufs), strict=True))
    reference = {gguf: compute(gguf, TOKENS, gguf.with_suffix(".npz"))["logits"] for gguf in decoded}

    def error(case: str, gguf: str, by: str) -> float | None:
        logits = found.get(folder / case / gguf)
        return None if logits is None else nmse(np.load(folder / case / by), logits)

    compared = {}
    for case, checkpoint in opened.items():
        at = folder / case
        pruned, mine = at / "pruned.npy", reference.get(at / "whole.gguf")
        made, text = at / "converted.gguf", at / "converter.txt"
        original = np.load(at / "original.npy")
        compared[case] = ComparedFamily(
            family=checkpoint.family.name,
            architecture=checkpoint.architecture,
            notes=checkpoint.notes,
            original=error(case, "whole.gguf", "original.npy"),
            pruned=error(case, "kept.gguf", "pruned.npy"),
            changed=nmse(original, np.load(pruned)) if pruned.is_file() else None,
            reference=None if mine is None else nmse(original, mine),
            differences=None if text.is_file() or not made.is_file()
            else tuple(converter_differences(checkpoint, open_checkpoint(made))),
            why_not=text.read_text() if text.is_file() else None,
        )  # fmt: skip
    return compared
