"""Scale directions: how the logits answer to each tensor's scale, recorded beside a pack by the reference.

At the positions of one long prompt and some of the vocabulary's columns a pack's scales.safetensors has the
reference's logits and, for each weight that adds to the residual stream (attention output, down projections) and
for the head, the derivative of the logits by the logarithm of its scale. `levels/scales.py` fits an engine's
logits with them: the fit is the factor by which the engine's weights seem to be scaled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.progress import Advance, untold

COLUMNS = 64
MOST_POSITIONS = 512
STEP = 1e-6
"""Relative step of the derivative: in float64 it is exact to 1e-9, and routers choose the same experts."""
LEAST_POWER = 0.008
"""Of a direction against the logits: a scale that says less than this is lost in the rounding of activations."""
_WEIGHTS = re.compile(r"(blk\.\d+\.(attn_output|ffn_down|ffn_down_exps|ffn_down_shexp)|output)\.weight")
_DIRECTION = "direction."


@dataclass(frozen=True)
class Scales:
    """``prompt``: index in the pack. ``columns`` i32[c] of the vocabulary; ``logits`` f32[tokens, c] and
    ``directions`` by tensor f16[tokens, c], at the prompt's first ``tokens`` positions."""

    prompt: int
    columns: NDArray[np.int32]
    logits: NDArray[np.float32]
    directions: Mapping[str, NDArray[np.float16]]


def record_scales(artifact: Path, prompts: Sequence[Sequence[int]], report: Advance = untold) -> Scales:
    """Compute the directions of ``artifact`` on the longest of ``prompts``, one run of the reference a tensor.

    ``report`` in tokens. CollabError where the reference cannot compute the artifact.
    """
    from collab_conformance.reference.run_reference import ReferenceModel

    index = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    tokens = list(prompts[index])[:MOST_POSITIONS]
    reference = ReferenceModel(artifact)
    columns = np.linspace(0, reference.vocabulary - 1, min(COLUMNS, reference.vocabulary)).astype(np.int32)
    right = reference.run(tokens).logits[:, columns]
    power = float(np.square(centred(right)).sum())
    directions = {}
    names = list(filter(_WEIGHTS.fullmatch, open_gguf(artifact).tensors))
    for number, name in enumerate(names, 1):
        scaled = ReferenceModel(artifact, scales={name: 1.0 + STEP}).run(tokens).logits[:, columns]
        direction = (scaled - right) / STEP
        if float(np.square(centred(direction)).sum()) >= LEAST_POWER * power:
            directions[name] = direction.astype(np.float16)
        report(number * len(tokens), len(names) * len(tokens))
    return Scales(index, columns, right.astype(np.float32), directions)


def centred(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Each position's values less their mean, which no probability depends on: f64 of the same shape."""
    x = np.asarray(values, np.float64)
    return np.asarray(x - x.mean(-1, keepdims=True))


def scale_arrays(scales: Scales) -> dict[str, NDArray[Any]]:
    """What scales.safetensors holds, by name."""
    arrays: dict[str, NDArray[Any]] = {_DIRECTION + name: values for name, values in scales.directions.items()}
    arrays |= {"columns": scales.columns, "logits": scales.logits, "prompt": np.array([scales.prompt], np.int32)}
    # safetensors writes memory as it lies; columns picked from a matrix lie column by column.
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def scales_of(arrays: Mapping[str, NDArray[Any]], prompts: Sequence[int], vocabulary: int) -> Scales:
    """The inverse of `scale_arrays`, checked against the pack: ``prompts`` are the tokens of each of its prompts.

    ValueError that says what is wrong.
    """
    rest = dict(arrays)
    try:
        prompt, columns, logits = rest.pop("prompt"), rest.pop("columns"), rest.pop("logits")
    except KeyError as error:
        raise ValueError(f"it has no {error}") from None
    if prompt.shape != (1,) or prompt.dtype != np.int32 or not 0 <= int(prompt[0]) < len(prompts):
        raise ValueError("it is of no prompt of the pack")
    if columns.ndim != 1 or columns.dtype != np.int32 or not ((columns >= 0) & (columns < vocabulary)).all():
        raise ValueError("it has columns outside the vocabulary")
    shape = (len(logits) if logits.ndim else 0, len(columns))
    if not 0 < shape[0] <= prompts[int(prompt[0])]:
        raise ValueError(f"it has logits of {shape[0]} positions, the prompt has {prompts[int(prompt[0])]}")
    directions = {name.removeprefix(_DIRECTION): values for name, values in rest.items()}
    if not directions or any(not name.startswith(_DIRECTION) for name in rest):
        raise ValueError("it has no scale directions, or other arrays")
    for values, kind in ((logits, np.float32), *((values, np.float16) for values in directions.values())):
        if values.shape != shape or values.dtype != kind or not np.isfinite(values).all():
            raise ValueError("it has arrays of another shape or type, or values that are not finite")
    return Scales(int(prompt[0]), columns, logits, directions)
