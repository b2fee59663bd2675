"""The few pieces of llama.cpp's C interface that llama-cpp-python does not bind, or binds too thinly."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import llama_cpp as llama
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from collab_llamacpp.native.ggml import ggml
from collab_plugin.checkpoint.gguf import shard_paths
from collab_plugin.engines.ggml_structs import GgmlTensor
from collab_plugin.engines.text_windows import TextCut, windows_of
from collab_plugin.errors import CollabError
from collab_plugin.placement.usable_memory import usable_memory

Tokens = Sequence[int] | NDArray[np.int64]
BASE = ggml()
_DTYPES = {0: np.float32, 1: np.float16, 26: np.int32}
_OPS = {BASE.ggml_op_name(i).decode(): i for i in range(64)}
MUL_MAT, MUL_MAT_ID, GET_ROWS = (_OPS[name] for name in ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS"))


def tensor_at(address: int) -> GgmlTensor:
    return GgmlTensor.from_address(address)


def read_tensor(address: int) -> NDArray[Any]:
    """Copy a tensor of the running graph from any backend: numpy order, strides honoured."""
    t = tensor_at(address)
    size = BASE.ggml_nbytes(address)
    raw = np.empty(size, np.uint8)
    BASE.ggml_backend_tensor_get(address, raw.ctypes.data, 0, size)
    dtype = np.dtype(_DTYPES[t.type])
    shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
    return np.lib.stride_tricks.as_strided(raw[: dtype.itemsize].view(dtype), shape, strides)


def write_tensor(address: int, values: NDArray[Any]) -> None:
    """Overwrite a contiguous tensor of the running graph with ``values`` of its type and numpy-order shape."""
    data = np.ascontiguousarray(values)
    if data.nbytes != BASE.ggml_nbytes(address):
        raise ValueError(f"{data.nbytes} bytes for a tensor of {BASE.ggml_nbytes(address)}")
    BASE.ggml_backend_tensor_set(address, data.ctypes.data, 0, data.nbytes)


class ContextError(CollabError):
    """The model was loaded, but has no context with these options."""


class PlacementChoice(Protocol):
    """Where a model's tensors go."""

    def apply(self, params: Any) -> Any:
        """Set it in llama_model_params; what is returned must live as long as the load."""
        ...


@dataclass(frozen=True)
class DeviceChoice:
    """Where a model runs: ``devices`` (ggml_backend_dev_t) hold every layer, none meaning the CPU; without
    ``extra_buffers`` weights stay as they are in the file (no repacking, no AMX)."""

    devices: tuple[int, ...] = ()
    extra_buffers: bool = True

    def apply(self, params: Any) -> Any:
        """Set it in llama_model_params; what is returned must live as long as the load."""
        listed = (ctypes.c_void_p * (len(self.devices) + 1))(*self.devices, None)
        params.devices = ctypes.addressof(listed)
        params.n_gpu_layers = -1 if self.devices else 0
        params.use_extra_bufts = self.extra_buffers
        return listed


def larger_than_memory(path: Path) -> bool:
    """Whether the files of the GGUF take more than there is; False for what does not exist."""
    return path.exists() and sum(file.stat().st_size for file in shard_paths(path)) > usable_memory()


class LoadedModel:
    """One loaded model with a context; freed by `close` or the with statement.

    ``placement`` None: where llama.cpp puts it by itself. ``kv_type``: ggml type of the key and value cache.
    ``sequences``: how many windows of ``ctx`` tokens `decode_together` takes. Weights of a file that is larger than
    memory stay in its mapping; of others llama.cpp copies those whose type it repacks.
    """

    def __init__(
        self,
        path: Path,
        *,
        ctx: int,
        threads: int,
        callback: Any = None,
        model_only: bool = False,
        placement: PlacementChoice | None = None,
        kv_type: str = "f16",
        sequences: int = 1,
    ) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        kept = placement.apply(params) if placement else None
        if larger_than_memory(path):
            params.use_extra_bufts = False
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        del kept
        if not self.model:
            raise CollabError(f"llama.cpp cannot load {path}")
        self.path, self.size, self.threads, self.kv_type = path, ctx, threads, kv_type
        self.sequences = sequences
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab = llama.llama_vocab_n_tokens(self.vocab)
        self.ctx = None
        if model_only:
            return
        try:
            self.ctx = self._context(callback)
        except ContextError:
            llama.llama_model_free(self.model)
            raise
        self.batch = llama.llama_batch_init(ctx * sequences, 0, 1)

    def _context(self, callback: Any) -> Any:
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = self.size * self.sequences
        # Sequences that are run together are one micro-batch: a callback then sees them in one tensor.
        options.n_ubatch = min(512, self.size) if self.sequences == 1 else options.n_batch
        options.n_seq_max = self.sequences
        options.n_threads = options.n_threads_batch = self.threads
        options.type_k = options.type_v = GGMLQuantizationType[self.kv_type.upper()].value
        if self.kv_type.upper() == "F32":
            # Flash attention casts an F32 cache to F16 (llama-graph.cpp, build_attn_mha).
            options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if callback is not None:
            options.cb_eval = callback
        made = llama.llama_init_from_model(self.model, options)
        if not made:
            raise ContextError(f"llama.cpp cannot make a context of {self.size} tokens for {self.path}; lower `ctx`")
        return made

    @contextmanager
    def observed(self, callback: Any) -> Iterator[None]:
        """Decode with ``callback`` as cb_eval in a context of its own: backends do not fuse operations that
        a callback may ask for, so the other context must not have one."""
        plain, self.ctx = self.ctx, self._context(callback)
        try:
            yield
        finally:
            llama.llama_free(self.ctx)
            self.ctx = plain

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ctx:
            llama.llama_batch_free(self.batch)
            llama.llama_free(self.ctx)
        llama.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = False, *, add: bool = True) -> NDArray[np.int64]:
        """Token ids i64[n], with what the vocabulary adds at the start (BOS) unless ``add`` is false;
        with ``special`` the text of control tokens stands for them."""
        data = text.encode("utf-8")
        size = len(data) + 16
        buffer = (llama.llama_token * size)()
        count = llama.llama_tokenize(self.vocab, data, len(data), buffer, size, add, special)
        if count < 0:
            raise CollabError("llama.cpp cannot tokenize the text")
        found: NDArray[np.int64] = np.ctypeslib.as_array(buffer)[:count].astype(np.int64)
        return found

    def decode(self, tokens: Tokens, first_logit: int, start: int = 0) -> None:
        """Run one batch at positions ``start``...; logits are kept from index ``first_logit`` on."""
        assert self.ctx is not None
        for i, token in enumerate(tokens):
            self.batch.token[i] = int(token)
            self.batch.pos[i] = start + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i >= first_logit
        self.batch.n_tokens = len(tokens)
        code = llama.llama_decode(self.ctx, self.batch)
        if code != 0:
            raise CollabError(f"llama.cpp could not decode a batch of {len(tokens)} tokens (code {code})")

    def decode_together(self, windows: Sequence[Sequence[int]]) -> None:
        """Run windows of equal length, one for each of ``sequences``, in one batch; all logits are kept."""
        assert self.ctx is not None
        self.clear()
        at = 0
        for sequence, window in enumerate(windows):
            for position, token in enumerate(window):
                self.batch.token[at] = int(token)
                self.batch.pos[at] = position
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = True
                at += 1
        self.batch.n_tokens = at
        code = llama.llama_decode(self.ctx, self.batch)
        if code != 0:
            raise CollabError(f"llama.cpp could not decode a batch of {at} tokens (code {code})")

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The last batch's kept logits f32[rows, vocabulary]; valid until the next decode."""
        pointer = llama.llama_get_logits(self.ctx)
        return np.ctypeslib.as_array(pointer, (rows, self.n_vocab))

    def scored(self, window: Tokens) -> NDArray[np.float32]:
        """Logits f32[n, vocabulary] of the window's second half, but for the last, which predicts nothing.

        llama-perplexity's chunking (perplexity.cpp:540). Valid until the next decode.
        """
        first = len(window) // 2
        self.clear()
        self.decode(window, first)
        return self.logits(len(window) - first)[: len(window) - 1 - first]

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.ctx), True)

    def forget(self, start: int) -> bool:
        """Drop what is remembered from position ``start`` on; False where the architecture cannot (a
        recurrent state), and then nothing is kept."""
        kept = bool(llama.llama_memory_seq_rm(llama.llama_get_memory(self.ctx), 0, start, -1))
        if not kept:
            self.clear()
        return kept

    def windows(self, cut: TextCut) -> list[NDArray[np.int64]]:
        """`windows_of` with this model's vocabulary, which knows best whether it adds BOS."""
        bos = llama.llama_vocab_bos(self.vocab) if llama.llama_vocab_get_add_bos(self.vocab) else None
        return windows_of(
            replace(cut, bos_id=bos), lambda text, special: self.tokenize(text, special, add=False), str(self.path)
        )
