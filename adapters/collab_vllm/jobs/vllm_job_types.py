"""What the engine asks its child process for. Paths are absolute: the child has another working folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    name: str
    content: str


@dataclass(frozen=True)
class VllmCut:
    """Text and how it is cut into windows of ``ctx`` tokens: at most ``chunks`` of each text. ``bos`` begins each
    window, None where the vocabulary adds none."""

    texts: tuple[Text, ...]
    ctx: int
    chunks: int | None
    bos: int | None


@dataclass(frozen=True)
class VllmCalibrateJob:
    model: str
    threads: int
    cut: VllmCut


@dataclass(frozen=True)
class VllmReferenceJob:
    """``out``: the file to write, as reference_file.py says."""

    model: str
    threads: int
    cut: VllmCut
    out: str


@dataclass(frozen=True)
class VllmEvaluateJob:
    """``reference``: what a VllmReferenceJob wrote, or another engine."""

    model: str
    threads: int
    cut: VllmCut
    reference: str


@dataclass(frozen=True)
class VllmGenerateJob:
    """``ctx``: context in tokens, at most the model's own. ``bos`` as in `VllmCut`."""

    model: str
    threads: int
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    ctx: int
    bos: int | None


Job = VllmCalibrateJob | VllmReferenceJob | VllmEvaluateJob | VllmGenerateJob
