"""The few pieces of llama.cpp's C interface that llama-cpp-python does not bind, or binds too thinly."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from collab_llamacpp.kernels import library_folder
from collab_plugin.errors import CollabError
from collab_plugin.texts import read_text


class GgmlTensor(ctypes.Structure):
    """ggml_tensor (ggml.h:685); the layout is checked against the library's own size on import."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


def _load_base() -> ctypes.CDLL:
    path = next(p for p in sorted(library_folder().glob("*ggml-base*")) if ".so" in p.name or ".d" in p.suffix)
    lib = ctypes.CDLL(str(path))
    lib.ggml_tensor_overhead.restype = ctypes.c_size_t
    lib.ggml_nbytes.restype = ctypes.c_size_t
    lib.ggml_nbytes.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_tensor_get.restype = None
    lib.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    lib.ggml_op_name.restype = ctypes.c_char_p
    lib.ggml_op_name.argtypes = [ctypes.c_int]
    # A tensor object is a 32-byte ggml_object followed by the struct.
    if lib.ggml_tensor_overhead() != 32 + ctypes.sizeof(GgmlTensor):
        raise CollabError("this llama.cpp has another ggml_tensor; install llama-cpp-python==0.3.36")
    return lib


BASE = _load_base()
_DTYPES = {0: np.float32, 1: np.float16, 26: np.int32}
_OPS = {BASE.ggml_op_name(i).decode(): i for i in range(64)}
MUL_MAT, MUL_MAT_ID = _OPS["MUL_MAT"], _OPS["MUL_MAT_ID"]


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


class Session:
    """One loaded model with a context; freed by `close` or the with statement."""

    def __init__(self, path: Path, *, ctx: int, threads: int, callback: Any = None, model_only: bool = False) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise CollabError(f"llama.cpp cannot load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab = llama.llama_vocab_n_tokens(self.vocab)
        self.ctx = None
        if model_only:
            return
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = ctx
        options.n_ubatch = min(512, ctx)
        options.n_threads = options.n_threads_batch = threads
        if callback is not None:
            options.cb_eval = callback
        self.ctx = llama.llama_init_from_model(self.model, options)
        if not self.ctx:
            raise CollabError(f"llama.cpp cannot make a context of {ctx} tokens for {path}; lower --ctx")
        self.batch = llama.llama_batch_init(ctx, 0, 1)

    def __enter__(self) -> Session:
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
        return np.array(buffer[:count], np.int64)

    def decode(self, tokens: Sequence[int], first_logit: int, start: int = 0) -> None:
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

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The last batch's kept logits f32[rows, vocabulary]; valid until the next decode."""
        pointer = llama.llama_get_logits(self.ctx)
        return np.ctypeslib.as_array(pointer, (rows, self.n_vocab))

    def scored(self, window: Sequence[int]) -> NDArray[np.float32]:
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

    def windows(self, texts: Sequence[Path], ctx: int, chunks: int | None) -> list[NDArray[np.int64]]:
        """Windows of ``ctx`` tokens, none across two texts, each starting with BOS where the vocabulary
        adds one (as llama-perplexity and llama-imatrix do); a text's rest is left out. With ``chunks``
        the first so many of each text."""
        found = []
        total = 0
        for path in texts:
            tokens = self.tokenize(read_text(path))
            total += len(tokens)
            found += [tokens[i : i + ctx].copy() for i in range(0, len(tokens) - ctx + 1, ctx)][:chunks]
        if not found:
            raise CollabError(
                f"{total} tokens of text are less than one window of {ctx}; give more text or lower --ctx"
            )
        if llama.llama_vocab_get_add_bos(self.vocab):
            for window in found:
                window[0] = llama.llama_vocab_bos(self.vocab)
        return found
