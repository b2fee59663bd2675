"""What the engine asks its child process for. Paths are absolute: the child has another working folder."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.engines.text_windows import TextCut


@dataclass(frozen=True)
class VllmCalibrateJob:
    """``unfinished``, ``save_seconds``: as for `UnfinishedCalibration`. These sums are small: 58 layers of 256 experts
    are kept in 0.3 MB and 7 ms, so that it is done often."""

    model: str
    threads: int
    cut: TextCut
    unfinished: str = ""
    save_seconds: float = 30.0


@dataclass(frozen=True)
class VllmReferenceJob:
    """``out``: the file to write, as reference_file.py says."""

    model: str
    threads: int
    cut: TextCut
    out: str


@dataclass(frozen=True)
class VllmEvaluateJob:
    """``reference``: what a VllmReferenceJob wrote, or another engine."""

    model: str
    threads: int
    cut: TextCut
    reference: str


@dataclass(frozen=True)
class VllmGenerateJob:
    """``ctx``: context in tokens, at most the model's own. ``bos`` begins the
    prompt, None where the vocabulary adds none."""

    model: str
    threads: int
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    ctx: int
    bos: int | None


Job = VllmCalibrateJob | VllmReferenceJob | VllmEvaluateJob | VllmGenerateJob
