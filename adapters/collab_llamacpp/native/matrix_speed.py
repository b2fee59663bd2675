"""How fast a device multiplies with a matrix, and what a small operation of a graph takes (ggml, one token)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import numpy as np
from gguf import GGMLQuantizationType

from collab_llamacpp.native.ggml import Ggml
from collab_llamacpp.native.weight_buffers import WEIGHTS, extra_buffer_types, weight_buffer_type
from collab_plugin.engines.ggml_structs import InitParams
from collab_plugin.formats.ggml_types import row_bytes
from collab_plugin.placement.machine_profile import ReadMatrix

_MOST = 128 * 2**20
"""Bytes of matrices that are multiplied with in turn: more than the caches of a processor hold."""
_ROWS = 4096
"""Larger matrices, such as heads, are measured with so many rows."""
_SECONDS = 0.15
_TURNS = 16
"""Products in one graph, because a call takes some time whatever it computes."""
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


def matrix_speed(
    lib: Ggml, device: int, backend: int, matrix: ReadMatrix, model_bytes: int, clock: Clock
) -> float | None:
    """Bytes of weights a second when one token is multiplied with ``matrix.used`` matrices at random, of as many as a
    model of ``model_bytes`` could have, so that caches hold of them what they hold of the model. They lie where
    llama.cpp's loader puts experts: repacked, where the processor has a kernel for that. None where the device declines
    the type. The weights are noise: products may be infinite, which takes no longer."""
    used, columns, rows = matrix.used, matrix.columns, min(matrix.rows, _ROWS)
    size = rows * row_bytes(matrix.type, columns)
    experts = max(min(_MOST, model_bytes) // size, 2 * used)
    with ExitStack() as stack:
        held, context = (stack.enter_context(_context(lib, 2 * _TURNS + 8)) for _ in range(2))
        kind = GGMLQuantizationType[matrix.type].value
        weights = lib.ggml_new_tensor_3d(held, kind, columns, rows, experts)
        x = lib.ggml_new_tensor_3d(context, _F32, columns, 1, 1)
        ids = [lib.ggml_new_tensor_2d(context, _I32, used, 1) for _ in range(_TURNS)]
        nodes = [lib.ggml_mul_mat_id(context, weights, x, own) for own in ids]
        chosen_type = weight_buffer_type(lib, device, extra_buffer_types(lib, device), weights, nodes[0])
        if chosen_type is None:
            return None
        own_type = lib.ggml_backend_dev_buffer_type(device)
        for tensors, buffer_type, usage in ((held, chosen_type, WEIGHTS), (context, own_type, 0)):
            buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(tensors, buffer_type)
            if not buffer:
                return None
            stack.callback(lib.ggml_backend_buffer_free, buffer)
            lib.ggml_backend_buffer_set_usage(buffer, usage)
        random = np.random.default_rng(0)
        # Whole, because repacked buffers take nothing else.
        lib.ggml_backend_tensor_set(weights, random.bytes(size) * experts, 0, experts * size)
        lib.ggml_backend_tensor_set(x, np.ones(columns, np.float32).ctypes.data, 0, 4 * columns)
        graph = lib.ggml_new_graph(context)
        for node in nodes:
            lib.ggml_build_forward_expand(graph, node)
        seconds, end = [], time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            for tensor in ids:
                row = random.permutation(experts)[:used].astype(np.int32)
                lib.ggml_backend_tensor_set(tensor, row.ctypes.data, 0, row.nbytes)
            start = clock()
            lib.ggml_backend_graph_compute(backend, graph)
            seconds.append(clock() - start)
        # Not the shortest: a run does not have the memory for itself at every moment either.
        return _TURNS * used * size / median(seconds)


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
