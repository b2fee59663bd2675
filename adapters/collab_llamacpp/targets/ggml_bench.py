"""Single operations on a device through ggml's public interface."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from collab_llamacpp.native.ggml import Ggml
from collab_llamacpp.native.weight_buffers import WEIGHTS, extra_buffer_types, weight_buffer_type
from collab_llamacpp.targets.selection import DeviceSelection
from collab_plugin import KernelBench, NotOfferedError
from collab_plugin.engines.ggml_structs import InitParams
from collab_plugin.engines.target import F32, I32, Bytes
from collab_plugin.formats.ggml_types import TYPES, row_bytes, type_info

_F32, _I32 = GGMLQuantizationType.F32.value, GGMLQuantizationType.I32.value
# Asked of `types`: as large as a layer, since some backends decline small products.
_ROWS, _COLUMNS, _TOKENS = 256, 512, 64

# Makes the operation's node from a context and its weights; the other operands are in the same context.
_Node = tuple[int, list[tuple[int, NDArray[np.float32] | NDArray[np.int32]]]]
_Make = Callable[[int, int], _Node]


class GgmlBench(KernelBench):
    """One device. Weights go where llama.cpp's loader puts them: into the first extra buffer type (repacked,
    AMX) that takes the operation, else into the device's own."""

    def __init__(self, lib: Ggml, selection: DeviceSelection, backend: int) -> None:
        self._lib, self._device, self._backend = lib, selection.device, backend
        self._extra = extra_buffer_types(lib, selection.device) if selection.extra_buffers else []

    def types(self) -> tuple[str, ...]:
        def claimed(name: str) -> bool:
            with self._context() as context:
                weights = self._lib.ggml_new_tensor_2d(context, _number(name), _COLUMNS, _ROWS)
                x = self._lib.ggml_new_tensor_2d(context, _F32, _COLUMNS, _TOKENS)
                node = self._lib.ggml_mul_mat(context, weights, x)
                return self._buffer_type(weights, node) is not None

        return tuple(name for name in TYPES if claimed(name))

    def mul_mat(self, type_name: str, weights: Bytes, x: F32) -> F32:
        def make(context: int, matrix: int) -> _Node:
            right = self._lib.ggml_new_tensor_2d(context, _F32, x.shape[1], len(x))
            return self._lib.ggml_mul_mat(context, matrix, right), [(right, x)]

        _check(type_name, weights, x)
        return self._run(type_name, weights, make, (len(x), len(weights)))

    def mul_mat_id(self, type_name: str, weights: Bytes, x: F32, ids: I32) -> F32:
        def make(context: int, experts: int) -> _Node:
            right = self._lib.ggml_new_tensor_3d(context, _F32, x.shape[1], 1, len(x))
            chosen = self._lib.ggml_new_tensor_2d(context, _I32, ids.shape[1], len(ids))
            return self._lib.ggml_mul_mat_id(context, experts, right, chosen), [(right, x), (chosen, ids)]

        _check(type_name, weights, x)
        # ggml reads past the weights otherwise.
        if len(ids) != len(x) or not 0 <= ids.min() <= ids.max() < len(weights):
            raise ValueError(f"ids {ids.shape} for {len(x)} tokens and {len(weights)} experts")
        return self._run(type_name, weights, make, (len(x), ids.shape[1], weights.shape[1]))

    def where(self, type_name: str) -> str:
        """Name of the buffer type that holds weights of this type: "CPU_REPACK" when they are repacked."""
        with self._context() as context:
            weights = self._lib.ggml_new_tensor_2d(context, _number(type_name), _COLUMNS, _ROWS)
            x = self._lib.ggml_new_tensor_2d(context, _F32, _COLUMNS, _TOKENS)
            found = self._buffer_type(weights, self._lib.ggml_mul_mat(context, weights, x))
            return str(self._lib.ggml_backend_buft_name(found).decode()) if found else ""

    def _run(self, type_name: str, weights: Bytes, make: _Make, shape: tuple[int, ...]) -> F32:
        lib, number = self._lib, _number(type_name)
        columns = weights.shape[-1] // row_bytes(type_name, type_info(type_name).block) * type_info(type_name).block
        with ExitStack() as stack:
            # Weights and the rest in contexts of their own, which get a buffer each.
            held, context = stack.enter_context(self._context()), stack.enter_context(self._context())
            if weights.ndim == 2:
                matrix = lib.ggml_new_tensor_2d(held, number, columns, len(weights))
            else:
                matrix = lib.ggml_new_tensor_3d(held, number, columns, weights.shape[1], len(weights))
            node, operands = make(context, matrix)
            buffer_type = self._buffer_type(matrix, node)
            if buffer_type is None:
                raise NotOfferedError(f"the device declines {type_name} weights of this shape")
            stack.callback(lib.ggml_backend_buffer_free, self._allocate(held, buffer_type, WEIGHTS))
            own = lib.ggml_backend_dev_buffer_type(self._device)
            stack.callback(lib.ggml_backend_buffer_free, self._allocate(context, own, 0))
            for tensor, values in [(matrix, weights), *operands]:
                data = np.ascontiguousarray(values)
                lib.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
            graph = lib.ggml_new_graph(context)
            lib.ggml_build_forward_expand(graph, node)
            code = lib.ggml_backend_graph_compute(self._backend, graph)
            if code:
                raise RuntimeError(f"ggml_backend_graph_compute returned {code}")
            out = np.empty(shape, np.float32)
            if lib.ggml_nbytes(node) != out.nbytes:
                raise RuntimeError(f"the product has {lib.ggml_nbytes(node)} bytes and not {out.nbytes}")
            lib.ggml_backend_tensor_get(node, out.ctypes.data, 0, out.nbytes)
            return out

    def _allocate(self, context: int, buffer_type: int, usage: int) -> int:
        buffer = self._lib.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError("the device has no memory left for one operation")
        self._lib.ggml_backend_buffer_set_usage(buffer, usage)
        return int(buffer)

    def _buffer_type(self, weights: int, node: int) -> int | None:
        return weight_buffer_type(self._lib, self._device, self._extra, weights, node)

    @contextmanager
    def _context(self) -> Iterator[int]:
        """A ggml context for a few tensors and a graph, without their data."""
        size = 8 * self._lib.ggml_tensor_overhead() + self._lib.ggml_graph_overhead()
        context = self._lib.ggml_init(InitParams(size, None, True))
        try:
            yield context
        finally:
            self._lib.ggml_free(context)


@contextmanager
def open_bench(lib: Ggml, selection: DeviceSelection) -> Iterator[GgmlBench]:
    """The device's own backend, with one thread where it has threads."""
    backend = lib.ggml_backend_dev_init(selection.device, None)
    if not backend:
        raise NotOfferedError("llama.cpp cannot start this device")
    try:
        set_threads = lib.procedure(selection.device, "ggml_backend_set_n_threads", None, ctypes.c_void_p, ctypes.c_int)
        if set_threads is not None:
            set_threads(backend, 1)
        yield GgmlBench(lib, selection, backend)
    finally:
        lib.ggml_backend_free(backend)


def _number(type_name: str) -> int:
    return int(GGMLQuantizationType[type_name].value)


def _check(type_name: str, weights: Bytes, x: F32) -> None:
    """ggml asserts and aborts otherwise."""
    if x.ndim != 2 or weights.shape[-1] != row_bytes(type_name, x.shape[1]):
        raise ValueError(f"{type_name} weights {weights.shape} bytes for x {x.shape}")
