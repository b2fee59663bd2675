"""`verify`'s session over llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import llama_cpp as llama
import numpy as np

from collab_llamacpp.native.libraries import library_folder
from collab_llamacpp.native.model import ContextError, DeviceChoice, LoadedModel, PlacementChoice
from collab_llamacpp.native.observe import RoutingObserver
from collab_llamacpp.native.tensor_overrides import TensorOverrides
from collab_llamacpp.targets.selection import DeviceSelection
from collab_llamacpp.tensor_places import tensor_places
from collab_plugin import CollabError, LoadOptions, LogProbabilities, NotOfferedError, Routing, Session
from collab_plugin.engines.compare_logits import log_softmax
from collab_plugin.engines.target import F32, I32
from collab_plugin.placement.placement_file import read_placement

# What a step of `greedy` tells.
_ALTERNATIVES = 5
# A quantized cache needs rows of whole blocks and an attention kernel for it.
_PLAIN_CACHES = ("f32", "f16")


class LlamaCppSession(Session):
    """A model in a context of ``options.ctx`` tokens; longer sequences are a CollabError."""

    def __init__(self, session: LoadedModel) -> None:
        self._session = session

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> F32:
        return np.concatenate(list(self._decoded(tokens, batch)))

    def top(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        return _best(self.logits(tokens), n)

    def routing(self, tokens: Sequence[int]) -> tuple[Routing, ...]:
        observer = RoutingObserver()
        with self._session.observed(observer.callback):
            for _ in self._decoded(tokens, None):
                pass
        observer.finish()
        return tuple(Routing(layer, np.concatenate(ids)) for layer, ids in sorted(observer.chosen.items()))

    def greedy(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        self._check(tokens, n - 1)
        self._session.clear()
        self._session.decode(tokens, len(tokens) - 1)
        steps = []
        for step in range(n):
            found = _best(self._session.logits(1).copy(), _ALTERNATIVES)
            steps.append(found)
            if step + 1 < n:
                self._session.decode([int(found.ids[0, 0])], 0, len(tokens) + step)
        return LogProbabilities(np.concatenate([s.ids for s in steps]), np.concatenate([s.values for s in steps]))

    def _decoded(self, tokens: Sequence[int], batch: int | None) -> Iterator[F32]:
        """Logits of a fresh sequence, a batch at a time. All are asked for: without, the last layer sees one
        token a batch."""
        self._check(tokens, 0)
        size = batch or len(tokens)
        self._session.clear()
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            self._session.decode(part, 0, start)
            yield self._session.logits(len(part)).copy()

    def _check(self, tokens: Sequence[int], more: int) -> None:
        if not len(tokens):
            raise CollabError("there are no tokens to decode")
        if len(tokens) + more > self._session.size:
            raise CollabError(
                f"{len(tokens)} tokens and {more} more exceed the context of {self._session.size}; raise it"
            )
        # llama.cpp reads past its table of embeddings otherwise.
        if not 0 <= min(tokens) <= max(tokens) < self._session.n_vocab:
            raise CollabError(f"token ids must be from 0 to {self._session.n_vocab - 1}")


def _best(logits: F32, n: int) -> LogProbabilities:
    """The ``n`` most probable of each row, equal ones by rising id."""
    scores = log_softmax(logits)
    ids: I32 = np.argsort(-scores, axis=-1, kind="stable")[:, :n].astype(np.int32)
    return LogProbabilities(ids, np.take_along_axis(scores, ids.astype(np.int64), -1).astype(np.float32))


@contextmanager
def load(selection: DeviceSelection, artifact: Path, options: LoadOptions) -> Iterator[LlamaCppSession]:
    """Load with every layer on the selected device but for what a placement keeps on the processor, or on the CPU
    alone."""
    _check_layout()
    devices = DeviceChoice((selection.device,) if selection.offloads else (), selection.extra_buffers)
    placement: PlacementChoice = devices
    if options.placement is not None:
        places = tensor_places(read_placement(options.placement), artifact)
        placement = TensorOverrides(places.on_processor, places.on_gpu, devices)
    with ExitStack() as stack:
        try:
            made = LoadedModel(
                artifact, ctx=options.ctx, threads=options.threads, placement=placement, kv_type=options.kv_type
            )
        except ContextError as error:
            if options.kv_type in _PLAIN_CACHES:
                raise
            raise NotOfferedError(f"llama.cpp makes no {options.kv_type} cache for this model here") from error
        session = stack.enter_context(made)
        yield LlamaCppSession(session)
        llama.llama_synchronize(session.ctx)


def _check_layout() -> None:
    """A library of another version would take options from the wrong places, silently."""
    model, context = llama.llama_model_default_params(), llama.llama_context_default_params()
    found = (
        model.n_gpu_layers,
        model.use_extra_bufts,
        context.n_batch,
        context.n_ubatch,
        context.type_k,
        context.type_v,
    )
    if found != (-1, True, 2048, 512, 1, 1):
        raise CollabError(f"{library_folder()} holds another llama.cpp than llama-cpp-python {llama.__version__} binds")
