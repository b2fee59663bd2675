"""The routed experts of one layer, computed in numpy as llama.cpp does (build_moe_ffn of src/llama-graph.cpp)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.topology import Topology
from collab_plugin.errors import CollabError
from collab_plugin.repair.samples import LayerSample

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
ReadExpert = Callable[[str, int], F32]
"""(tensor, expert) -> f32[rows, columns]."""
CHECKED_TOKENS = 16
TOKEN_VALUES = 2**25
"""Of tokens whose hidden values are worked out together."""
_MOST_DIFFERENCE = 0.25
"""Of a token's output, relative: a quantized copy that was sampled stays below, another arithmetic does not."""


@dataclass(frozen=True)
class RoutedTokens:
    """Of each token: ``ids`` i64[n, k] of its experts, and their router ``weights`` f32[n, k]."""

    ids: I64
    weights: F32

    def by_expert(self, expert: int) -> tuple[I64, F32]:
        """Tokens that chose ``expert``, i64[m], and its weights f32[m]."""
        rows, places = np.nonzero(self.ids == expert)
        return rows, self.weights[rows, places]


class RoutedBlock:
    """Gated experts (gate, up and down) without biases of ``layer``. CollabError where the layer has others.

    ``matrices``: names of their tensors, that of `down` last.
    """

    def __init__(self, checkpoint: Checkpoint, topology: Topology, layer: int) -> None:
        self.checkpoint, self.topology, self.layer = checkpoint, topology, layer
        self._read: ReadExpert = lambda name, expert: checkpoint.read(name, expert=expert)
        self.fused = self._name("ffn_gate_up_exps.weight") in checkpoint.tensors
        sides = ("gate_up", "down") if self.fused else ("gate", "up", "down")
        self.matrices = tuple(self._name(f"ffn_{side}_exps.weight") for side in sides)
        own = {self._name("ffn_gate_inp.weight"), self._name("exp_probs_b.bias"), *self.matrices}
        others = [
            n for n, info in checkpoint.tensors.items() if info.by_expert and info.layer == layer and n not in own
        ]
        if others or not set(self.matrices) <= set(checkpoint.tensors):
            what = others[0] if others else "no gate, up and down"
            raise CollabError(
                f"`samples` repair gated experts without biases, and layer {layer} has {what}; leave it out"
            )

    @property
    def down(self) -> str:
        """Name of the tensor that writes to the stream."""
        return self._name("ffn_down_exps.weight")

    def reading(self, read: ReadExpert) -> RoutedBlock:
        """The same block with gate and up as ``read`` gives them."""
        other = copy.copy(self)
        other._read = read
        return other

    def choose(self, inputs: F32, kept: tuple[int, ...], used: int, *, grouped: bool) -> RoutedTokens:
        """The ``used`` experts that each token of ``inputs`` f32[n, d] takes of those ``kept``."""
        t = self.topology
        logits = inputs @ self.checkpoint.read(self._name("ffn_gate_inp.weight")).T
        allowed = np.zeros(t.expert_count, bool)
        allowed[list(kept)] = True
        logits = np.where(allowed, logits, -np.inf)
        scores = logits if t.gating == "softmax-after-top-k" else _sigmoid(logits)
        if t.gating == "softmax":
            scores = _softmax(logits)
        bias = self._name("exp_probs_b.bias")
        ranked = scores + self.checkpoint.read(bias) if bias in self.checkpoint.tensors else scores
        ranked = np.where(allowed, ranked, -np.inf)
        if grouped:
            ranked = _best_groups(ranked, t.groups, t.groups_used)
        ids = np.argsort(-ranked, axis=1, kind="stable")[:, :used]
        weights = np.take_along_axis(scores, ids, 1)
        if t.gating == "softmax-after-top-k":
            weights = _softmax(weights)
        elif t.renormalises:
            weights = weights / np.maximum(weights.sum(1, keepdims=True), np.float32(6.103515625e-5))
        return RoutedTokens(ids, np.asarray(weights * np.float32(t.weights_scale), np.float32))

    def hidden(self, inputs: F32, expert: int) -> F32:
        """What the expert's down matrix multiplies, f32[n, f], of ``inputs`` f32[n, d]."""
        gated, up = self._gated(inputs, expert)
        return np.asarray(gated * _sigmoid(gated) * up, np.float32)

    def weighted_hidden(self, inputs: F32, rows: I64, weights: F32, expert: int) -> F32:
        """`hidden` of ``rows`` i64[m] of ``inputs`` f32[n, d], times ``weights`` f32[m]: f32[m, f]."""
        found = np.empty((len(rows), self.checkpoint.tensors[self.down].shape[-1]), np.float32)
        step = max(1, TOKEN_VALUES // inputs.shape[1])
        for at in range(0, len(rows), step):
            some = slice(at, at + step)
            found[some] = self.hidden(inputs[rows[some]], expert) * weights[some, None]
        return found

    def slopes(self, inputs: F32, expert: int) -> dict[str, F32]:
        """How much the hidden values of each token move with those of gate and of up, f32[n, rows] by tensor."""
        gated, up = self._gated(inputs, expert)
        open_ = _sigmoid(gated)
        of_gate, of_up = up * (open_ + gated * open_ * (1 - open_)), gated * open_
        if self.fused:
            return {self._name("ffn_gate_up_exps.weight"): np.concatenate([of_gate, of_up], 1)}
        return {self._name("ffn_gate_exps.weight"): of_gate, self._name("ffn_up_exps.weight"): of_up}

    def _gated(self, inputs: F32, expert: int) -> tuple[F32, F32]:
        """What gate and up make of ``inputs``, f32[n, f] each."""
        if self.fused:
            gate, up = np.split(self._read(self._name("ffn_gate_up_exps.weight"), expert), 2)
        else:
            gate, up = (self._read(self._name(f"ffn_{side}_exps.weight"), expert) for side in ("gate", "up"))
        return inputs @ gate.T, inputs @ up.T

    def outputs(self, inputs: F32, choice: RoutedTokens) -> F32:
        """The weighted sum of what the chosen experts give, f32[n, d]."""
        found = np.zeros_like(inputs)
        for expert in np.unique(choice.ids):
            rows, weights = choice.by_expert(int(expert))
            hidden = self.hidden(inputs[rows], int(expert)) * weights[:, None]
            found[rows] += hidden @ self.checkpoint.read(self.down, expert=int(expert)).T
        return found

    def check(self, sample: LayerSample) -> None:
        """CollabError when the sample has another width, or the first tokens' outputs are not what the model gave."""
        t = self.topology
        width = self.checkpoint.tensors[self._name("ffn_gate_inp.weight")].shape[-1]
        if sample.inputs.shape[1] != width:
            raise CollabError(
                f"`samples` are damaged: layer {self.layer} takes {width} values a token, they hold "
                f"{sample.inputs.shape[1]}; sample again"
            )
        inputs, wanted = (np.asarray(a[:CHECKED_TOKENS]) for a in (sample.inputs, sample.outputs))
        choice = self.choose(inputs, tuple(range(t.expert_count)), t.experts_used, grouped=t.groups > 1)
        difference = np.linalg.norm(self.outputs(inputs, choice) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        if not np.median(difference) < _MOST_DIFFERENCE:
            raise CollabError(
                f"`samples` do not fit: layer {self.layer} computes other outputs ({np.median(difference):.0%} off); "
                f"sample this very model, or leave them out (experts of {t.architecture} may work otherwise)"
            )

    def _name(self, rest: str) -> str:
        return f"blk.{self.layer}.{rest}"


def _best_groups(ranked: F32, groups: int, used: int) -> F32:
    """Only the experts of the ``used`` groups whose best two are the best."""
    grouped = ranked.reshape(len(ranked), groups, -1)
    best = np.sort(grouped, -1)[..., -2:].sum(-1)
    chosen = np.argsort(-best, axis=1, kind="stable")[:, :used]
    mask = np.zeros(best.shape, bool)
    np.put_along_axis(mask, chosen, True, 1)
    return np.asarray(np.where(mask[..., None], grouped, -np.inf).reshape(ranked.shape))


def _sigmoid(values: F32) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)))


def _softmax(values: F32) -> F32:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
