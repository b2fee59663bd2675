"""`verify`'s session over vLLM: an engine in this process, asked through `vllm.LLM`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin import LoadOptions, LogProbabilities, NotOfferedError, Routing, Session
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.engines.target import F32
from collab_plugin.placement.match_artifact import check_made_for
from collab_plugin.placement.placement_file import read_placement
from collab_vllm.import_vllm import import_vllm
from collab_vllm.load.latent_attention import around_latent_attention
from collab_vllm.targets.hugging_face import write_folder

_ALTERNATIVES = 5


class VllmSession(Session):
    """A model in eager mode, whose routers can be watched."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._vocabulary = llm.model_config.get_vocab_size()

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> F32:
        if batch is not None and batch < len(tokens):
            raise NotOfferedError("vLLM divides prompts as it likes; the batch is no option of a request")
        output = self._generate(tokens, 1, prompt_logprobs=-1)
        # The first position has none: nothing predicts it.
        rows = [*self._rows(output.prompt_logprobs, 1), *self._rows(output.outputs[0].logprobs, 0)]
        return np.stack(rows)

    def top(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        return _best(self.logits(tokens), n)

    def routing(self, tokens: Sequence[int]) -> tuple[Routing, ...]:
        seen: dict[int, list[NDArray[np.int32]]] = {}
        routers = self._llm.apply_model(_routers)[0]
        for layer, router in routers.items():
            router.set_capture_fn(_recorder(seen.setdefault(layer, [])))
        try:
            self._generate(tokens, 1)
        finally:
            for router in routers.values():
                router.set_capture_fn(None)
        return tuple(Routing(layer, np.concatenate(parts)[: len(tokens)]) for layer, parts in sorted(seen.items()))

    def greedy(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        return _best(np.stack(list(self._rows(self._generate(tokens, n).outputs[0].logprobs, 0))), _ALTERNATIVES)

    def _generate(self, tokens: Sequence[int], n: int, *, prompt_logprobs: int | None = None) -> Any:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=n,
            logprobs=-1,
            prompt_logprobs=prompt_logprobs,
            flat_logprobs=True,
            ignore_eos=True,
            detokenize=False,
        )
        prompt = {"prompt_token_ids": [int(token) for token in tokens]}
        return self._llm.generate([prompt], sampling, use_tqdm=False)[0]

    def _rows(self, flat: Any, first: int) -> Iterator[F32]:
        """Logits f32[vocabulary] of each position from ``first`` on; the engine lists them by rank, the sampled
        token twice."""
        for start, end in zip(flat.start_indices[first:], flat.end_indices[first:], strict=True):
            row = np.full(self._vocabulary, np.nan, np.float32)
            row[flat.token_ids[start:end]] = flat.logprobs[start:end]
            yield row


def _recorder(to: list[NDArray[np.int32]]) -> Callable[[Any], None]:
    return lambda ids: to.append(np.asarray(ids.detach().cpu().numpy(), np.int32).copy())


def _routers(model: Any) -> dict[int, Any]:
    """Routers by layer; run in the worker, which is this process."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.models.utils import extract_layer_index

    return {
        extract_layer_index(name): router
        for name, module in model.named_modules()
        if isinstance(router := getattr(module, "router", None), BaseRouter)
    }


def _best(logits: F32, n: int) -> LogProbabilities:
    """The ``n`` most probable of each row, equal ones by rising id."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    logs = wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))
    ids = np.argsort(-logs, axis=-1, kind="stable")[:, :n].astype(np.int32)
    return LogProbabilities(ids, np.take_along_axis(logs, ids, axis=-1).astype(np.float32))


@contextmanager
def load(artifact: Path, options: LoadOptions) -> Iterator[Session]:
    """Start vLLM on ``artifact``; one at a time in a process."""
    if options.kv_type != "f32":
        raise NotOfferedError("vLLM's key and value cache has the model's type, which is float32 here")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else routers are in another process
    vllm = import_vllm()
    how: dict[str, Any] = {}
    if options.placement is not None:
        import collab_vllm

        collab_vllm.register()
        check_made_for(read_placement(options.placement), open_gguf(artifact))
        how = {"load_format": "collab", "model_loader_extra_config": {"placement": str(options.placement)}}
    import psutil
    import torch

    with tempfile.TemporaryDirectory(prefix="collab-vllm-") as scratch:
        folder = Path(scratch, "model")
        write_folder(artifact, folder, memory=psutil.virtual_memory().total)
        torch.set_num_threads(options.threads)
        llm = vllm.LLM(
            str(folder),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,  # a cached prompt has no log-probabilities
            max_model_len=options.ctx + 1,  # vLLM samples at least one token
            max_num_batched_tokens=max(options.ctx + 1, 256),
            max_num_seqs=1,
            max_logprobs=-1,
            logprobs_mode="raw_logits",
            **around_latent_attention(folder),
            **how,
        )
        try:
            yield VllmSession(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
