"""One graph of ggml: SwiGLU experts of a layer, each row of activations through the experts that it chose."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from collab_plugin.engines.ggml_structs import GgmlTensor, InitParams
from collab_vllm.experts.host.ggml_cpu import ComputePlan, GgmlCpu

_F32, _I32 = GGMLQuantizationType.F32.value, GGMLQuantizationType.I32.value
_NODES = 16
"""Room of a graph: it has four operations and five inputs."""
_ALIGN = 64


@dataclass(frozen=True)
class ExpertShape:
    """Matrices of a layer's experts: gate and up [experts, narrow, wide], down [experts, wide, narrow], each at a type
    of ggml."""

    experts: int
    wide: int
    narrow: int
    types: tuple[str, str, str]


class Workspace:
    """Memory that graphs compute in, one after the other; grows to what the largest one needs."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.version = 0

    def need(self, size: int) -> None:
        if size > len(self._memory):
            self._memory = torch.empty(size, dtype=torch.uint8)
            self.version += 1

    def part(self, start: int, dtype: torch.dtype, *shape: int) -> Tensor:
        """A tensor in this memory, from byte ``start`` on."""
        size = dtype.itemsize * int(torch.Size(shape).numel())
        return self._memory[start : start + size].view(dtype).view(shape)


class ExpertGraph:
    """``rows`` rows with ``used`` experts each, for any layer of one ``layout``. Not for two threads at once.

    Before `compute`, ``x`` f32[rows, wide] and ``ids`` i32[rows, used] are filled.
    """

    def __init__(
        self, ggml: GgmlCpu, workspace: Workspace, layout: ExpertShape, used: int, rows: int, threads: int
    ) -> None:
        self._ggml, self._workspace, self._version = ggml, workspace, -1
        room = _NODES * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead_custom(_NODES, False)
        self._context = context = ggml.ggml_init(InitParams(room, None, True))
        wide, narrow = layout.wide, layout.narrow
        self._matrices = [
            ggml.ggml_new_tensor_3d(context, GGMLQuantizationType[kind].value, columns, rows_of, layout.experts)
            for kind, columns, rows_of in zip(
                layout.types, (wide, wide, narrow), (narrow, narrow, wide), strict=True
            )
        ]  # fmt: skip
        gate_matrix, up_matrix, down_matrix = self._matrices
        x = ggml.ggml_new_tensor_3d(context, _F32, wide, 1, rows)
        ids = ggml.ggml_new_tensor_2d(context, _I32, used, rows)
        gate = ggml.ggml_mul_mat_id(context, gate_matrix, x, ids)
        up = ggml.ggml_mul_mat_id(context, up_matrix, x, ids)
        hidden = ggml.ggml_swiglu_split(context, gate, up)
        out = ggml.ggml_mul_mat_id(context, down_matrix, hidden, ids)
        self._graph = ggml.ggml_new_graph_custom(context, _NODES, False)
        ggml.ggml_build_forward_expand(self._graph, out)
        self._plan: ComputePlan = ggml.ggml_graph_plan(self._graph, threads, None)
        self._tensors = (x, ids, gate, up, hidden, out)
        inner = (torch.float32, rows, used, narrow)
        self._shapes = (
            (torch.float32, rows, wide), (torch.int32, rows, used), inner, inner, inner,
            (torch.float32, rows, used, wide), (torch.uint8, max(1, self._plan.work_size)),
        )  # fmt: skip
        self._starts = [0]
        for dtype, *shape in self._shapes:
            size = dtype.itemsize * int(torch.Size(shape).numel())
            self._starts.append(self._starts[-1] + -(-size // _ALIGN) * _ALIGN)
        self.x = self.ids = self._out = torch.empty(0)

    def prepare(self) -> None:
        """Take this graph's place in the workspace; before ``x`` and ``ids`` are filled."""
        self._workspace.need(self._starts[-1])
        if self._version == self._workspace.version:
            return
        parts = [
            self._workspace.part(start, *shape) for start, shape in zip(self._starts[:-1], self._shapes, strict=True)
        ]
        for tensor, values in zip(self._tensors, parts[:-1], strict=True):
            _point(tensor, values.data_ptr())
        self._plan.work_data = parts[-1].data_ptr()
        self.x, self.ids, self._out = parts[0], parts[1], parts[5]
        self._version = self._workspace.version

    def compute(self, matrices: Sequence[Tensor]) -> Tensor:
        """f32[rows, used, wide], valid until the next graph is prepared.

        ``matrices``: gate, up and down of a layer, uint8[experts, rows, bytes a row], contiguous in host memory.
        """
        for tensor, values in zip(self._matrices, matrices, strict=True):
            _point(tensor, values.data_ptr())
        status = self._ggml.ggml_graph_compute(self._graph, ctypes.byref(self._plan))
        if status != 0:
            raise RuntimeError(f"ggml_graph_compute returned {status}")
        return self._out

    def close(self) -> None:
        self._ggml.ggml_free(self._context)


def _point(tensor: int, address: int) -> None:
    GgmlTensor.from_address(tensor).data = address


class ExpertGraphs:
    """Graphs by layout and size, of which the least recently used ones are given up."""

    def __init__(self, ggml: GgmlCpu, most: int = 128) -> None:
        self._ggml, self._most = ggml, most
        self._workspace = Workspace()
        self._graphs: OrderedDict[tuple[ExpertShape, int, int, int], ExpertGraph] = OrderedDict()

    def of(self, layout: ExpertShape, used: int, rows: int) -> ExpertGraph:
        """The prepared graph, with as many threads as PyTorch has: OpenMP's are shared with it."""
        key = (layout, used, rows, torch.get_num_threads())
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = ExpertGraph(self._ggml, self._workspace, *key)
            if len(self._graphs) > self._most:
                self._graphs.popitem(last=False)[1].close()
        self._graphs.move_to_end(key)
        graph.prepare()
        return graph
