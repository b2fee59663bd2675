"""How fast a device multiplies with experts, and what a small operation of a graph takes (ggml, one token)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from gguf import GGMLQuantizationType

from collab_llamacpp.native.ggml import Ggml
from collab_llamacpp.native.weight_buffers import WEIGHTS, extra_buffer_types, weight_buffer_type
from collab_plugin.engines.ggml_structs import InitParams
from collab_plugin.formats.ggml_types import row_bytes

COLUMNS, ROWS, USED = 2048, 1024, 8
_MOST = 128 * 2**20
"""Bytes of experts of one type: more than the caches of a processor hold."""
_SECONDS = 0.15
_NODES = 256
Clock = Callable[[], float]
_F32, _I32 = GGMLQuantizationType.F32.value, GGMLQuantizationType.I32.value


@contextmanager
def started(lib: Ggml, device: int, threads: int) -> Iterator[int]:
    """A backend of the device, with so many threads where it has threads."""
    backend = lib.ggml_backend_dev_init(device, None)
    try:
        set_threads = lib.procedure(device, "ggml_backend_set_n_threads", None, ctypes.c_void_p, ctypes.c_int)
        if set_threads is not None:
            set_threads(backend, threads)
        yield int(backend)
    finally:
        lib.ggml_backend_free(backend)


def clock_of(kind: str, threads: int) -> Clock:
    """The thread's own time where one thread of the processor computes, so that other work does not count."""
    return time.thread_time if (kind, threads) == ("host", 1) else time.perf_counter


def expert_speed(lib: Ggml, device: int, backend: int, type_name: str, clock: Clock) -> float | None:
    """Bytes of experts a second when one token is multiplied with 8 experts at random, which lie where llama.cpp's
    loader puts them: repacked, where the processor has a kernel for that. None where the device declines the type. The
    experts are noise: products may be infinite, which takes no longer."""
    size = ROWS * row_bytes(type_name, COLUMNS)
    experts = max(_MOST // size, 2 * USED)
    with ExitStack() as stack:
        held, context = (stack.enter_context(_context(lib, 8)) for _ in range(2))
        weights = lib.ggml_new_tensor_3d(held, GGMLQuantizationType[type_name].value, COLUMNS, ROWS, experts)
        x = lib.ggml_new_tensor_3d(context, _F32, COLUMNS, 1, 1)
        ids = lib.ggml_new_tensor_2d(context, _I32, USED, 1)
        node = lib.ggml_mul_mat_id(context, weights, x, ids)
        chosen_type = weight_buffer_type(lib, device, extra_buffer_types(lib, device), weights, node)
        if chosen_type is None:
            return None
        own = lib.ggml_backend_dev_buffer_type(device)
        for tensors, kind, usage in ((held, chosen_type, WEIGHTS), (context, own, 0)):
            buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(tensors, kind)
            if not buffer:
                return None
            stack.callback(lib.ggml_backend_buffer_free, buffer)
            lib.ggml_backend_buffer_set_usage(buffer, usage)
        random = np.random.default_rng(0)
        # Whole, because repacked buffers take nothing else.
        lib.ggml_backend_tensor_set(weights, random.bytes(size) * experts, 0, experts * size)
        lib.ggml_backend_tensor_set(x, np.ones(COLUMNS, np.float32).ctypes.data, 0, 4 * COLUMNS)
        graph = lib.ggml_new_graph(context)
        lib.ggml_build_forward_expand(graph, node)
        best, end = 0.0, time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            chosen = np.stack([random.permutation(experts)[:USED] for _ in range(16)]).astype(np.int32)
            start = clock()
            for row in chosen:
                lib.ggml_backend_tensor_set(ids, row.ctypes.data, 0, row.nbytes)
                lib.ggml_backend_graph_compute(backend, graph)
            best = max(best, 16 * USED * size / (clock() - start))
        return best


def node_seconds(lib: Ggml, device: int, backend: int, clock: Clock) -> float:
    """Seconds of one small operation in a graph of many."""
    with ExitStack() as stack:
        context = stack.enter_context(_context(lib, 2 * _NODES + 8))
        x = lib.ggml_new_tensor_2d(context, _F32, 32, 1)
        weights = lib.ggml_new_tensor_2d(context, _F32, 32, 32)
        graph = lib.ggml_new_graph(context)
        nodes = [lib.ggml_mul_mat(context, weights, x) for _ in range(_NODES)]
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, lib.ggml_backend_dev_buffer_type(device))
        stack.callback(lib.ggml_backend_buffer_free, buffer)
        for tensor, count in ((x, 32), (weights, 1024)):
            lib.ggml_backend_tensor_set(tensor, np.ones(count, np.float32).ctypes.data, 0, 4 * count)
        for node in nodes:
            lib.ggml_build_forward_expand(graph, node)
        times = []
        for _ in range(20):
            start = clock()
            lib.ggml_backend_graph_compute(backend, graph)
            times.append((clock() - start) / _NODES)
        return min(times)


@contextmanager
def _context(lib: Ggml, tensors: int) -> Iterator[int]:
    size = tensors * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead()
    context = lib.ggml_init(InitParams(size, None, True))
    try:
        yield int(context)
    finally:
        lib.ggml_free(context)
