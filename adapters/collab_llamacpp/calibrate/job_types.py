"""What the engine asks its child processes for. Nothing of llama.cpp is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from collab_plugin.engines.disturbance import Disturbance
from collab_plugin.engines.text_windows import TextCut
from collab_plugin.placement.machine_profile import ReadMatrix
from collab_plugin.placement.placement import PolicyUse


@dataclass(frozen=True)
class CalibrateJob:
    """``experts`` in each layer; ``kv_type``: how keys and values are kept, "f16" or "f32"; ``together``: windows that
    run in one batch; ``trace``: keep each token's choice of experts. ``unfinished``: a file for what was done so far,
    not more often than every ``save_seconds`` (0: after each batch), or ""."""

    model: str
    threads: int
    cut: TextCut
    experts: int
    architecture: str
    kv_type: str = "f16"
    together: int = 1
    trace: bool = False
    unfinished: str = ""
    save_seconds: float = 300.0


@dataclass(frozen=True)
class ReferenceJob:
    """``out``: the file to write, as reference_file.py says."""

    original: str
    threads: int
    cut: TextCut
    out: str


@dataclass(frozen=True)
class EvaluateJob:
    """``original``: a model, or what a ReferenceJob wrote; ``ngrams``: sketch of the calibration text, or ""."""

    model: str
    threads: int
    cut: TextCut
    original: str
    ngrams: str


@dataclass(frozen=True)
class DisturbJob:
    """``most`` of the cut's windows run, evenly spread, and of those ``part``, as for `Engine.disturb`. ``shapes``: an
    npz file with ``energy.NAME`` and ``inputs.NAME`` for each tensor (`ErrorShape`). ``vocabulary``: tokens that the
    model knows. ``logits_as_weights``: the router's softmax comes after its choice of experts."""

    model: str
    threads: int
    cut: TextCut
    most: int | None
    part: tuple[int, int]
    disturbances: tuple[Disturbance, ...]
    shapes: str
    vocabulary: int
    logits_as_weights: bool


@dataclass(frozen=True)
class SampleJob:
    """``layers`` with routed experts; ``width`` of the stream; ``out``, ``model_id``: see repair/samples.py."""

    model: str
    threads: int
    cut: TextCut
    layers: tuple[int, ...]
    width: int
    out: str
    model_id: str
    engine: str


@dataclass(frozen=True)
class MeasureJob:
    """``matrices`` to multiply with, of a model of ``model_bytes``."""

    matrices: tuple[ReadMatrix, ...]
    model_bytes: int
    threads: int


@dataclass(frozen=True)
class GenerateJob:
    """``on_processor``, ``on_gpu``: regular expressions of tensors whose memory is chosen; the first that matches
    counts. ``pages``: tell the page cache which experts are read next, and which leave by this policy."""

    model: str
    threads: int
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    ctx: int
    on_processor: tuple[str, ...] = ()
    on_gpu: tuple[str, ...] = ()
    pages: PolicyUse | None = None


@dataclass(frozen=True)
class ServeJob:
    """``token``: what requests must show."""

    model: str
    threads: int
    ctx: int
    token: str


Job = CalibrateJob | ReferenceJob | EvaluateJob | DisturbJob | SampleJob | MeasureJob | GenerateJob
