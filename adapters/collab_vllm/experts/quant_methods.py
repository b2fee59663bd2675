"""How the routed experts of a layer are held and computed: at a GGUF's types, in tiers, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.utils.torch_utils import direct_register_custom_op

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, row_bytes
from collab_vllm.experts.ggml.dequantize import dequantize
from collab_vllm.experts.gguf_blocks import PARTS, ArtifactBlocks, Matrices
from collab_vllm.experts.grouped import grouped_experts
from collab_vllm.experts.host.expert_graph import Layout
from collab_vllm.experts.host.ggml_cpu import ggml_cpu
from collab_vllm.experts.host.host_kernel import HostKernel
from collab_vllm.experts.tiers import Tiered

_LAYERS: dict[str, RoutedExperts] = {}
"""By name, for the operation below: a compiled graph carries names, not modules."""


class _Grouped(FusedMoEMethodBase):
    """Computes with ``host`` where there is one, else with `grouped_experts`; subclasses hold the weights and answer
    `matrices`."""

    host: HostKernel | None = None

    def matrices(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig | None:
        return None

    @property
    def is_monolithic(self) -> bool:
        return False

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        return torch.ops.vllm.collab_grouped_experts(x, topk_weights, topk_ids, layer.layer_name)


class GgufExperts(_Grouped):
    """Experts at the types of an artifact's ``layer``, dequantized when a token chose them."""

    def __init__(self, moe: FusedMoEConfig, types: Mapping[str, Matrices], hot: Sequence[int] | None) -> None:
        super().__init__(moe)
        self.types, self.hot = types, hot

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        check_supported(layer)
        wide, narrow = hidden_size, intermediate_size_per_partition
        for part, (rows, columns) in zip(PARTS, ((narrow, wide), (narrow, wide), (wide, narrow)), strict=True):
            kind = self.types[part].type
            if columns % TYPES[kind].block:
                raise CollabError(
                    f"{layer.layer_name}: {columns} columns a rank are no multiple of {kind}'s {TYPES[kind].block}; "
                    "choose a smaller --tensor-parallel-size"
                )
            # In host memory until it is known which stay there.
            device = "cpu" if self.hot is not None else None
            shape = (num_experts, rows, row_bytes(kind, columns))
            blocks = nn.Parameter(torch.empty(shape, dtype=torch.uint8, device=device), requires_grad=False)
            layer.register_parameter(f"{part}_blocks", blocks)
        _LAYERS[layer.layer_name] = layer

    def fill(self, layer: RoutedExperts, artifact: ArtifactBlocks, block: int) -> None:
        """Copy this rank's share of the artifact's blocks."""
        count = layer.intermediate_size_per_partition
        start = self.moe.moe_parallel_config.tp_rank * count
        for part in PARTS:
            blocks = getattr(layer, f"{part}_blocks").data
            for expert in range(self.types[part].experts):
                local = layer._map_global_expert_id_to_local_expert_id(expert)
                if local >= 0:
                    read = artifact.columns if part == "down" else artifact.rows
                    blocks[local].copy_(torch.from_numpy(read(block, part, expert, start, count)))

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        whole = {part: getattr(layer, f"{part}_blocks").data for part in PARTS}
        self.stores = _stores(layer, whole, self.hot, "{}_blocks")
        ggml = ggml_cpu() if self.hot is None and layer.gate_blocks.device.type == "cpu" else None
        if ggml is not None:
            gate, up, down = (self.types[part].type for part in PARTS)
            layout = Layout(len(whole["up"]), layer.hidden_size, whole["up"].shape[1], (gate, up, down))
            self.host = HostKernel(ggml, layout, list(whole.values()))
        else:
            self.matrices(0, torch.float32)  # compiles, so that no request waits for it

    def matrices(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, down = (
            dequantize(store.of(expert), self.types[part].type).to(dtype) for part, store in self.stores.items()
        )
        return gate, up, down


class TieredExperts(_Grouped, UnquantizedFusedMoEMethod):
    """Unquantized experts: ``hot`` on the device, the others in host memory."""

    def __init__(self, moe: FusedMoEConfig, hot: Sequence[int]) -> None:
        UnquantizedFusedMoEMethod.__init__(self, moe)
        self.hot = hot

    def create_weights(self, layer: RoutedExperts, *args: Any, **kwargs: Any) -> None:
        check_supported(layer)
        with torch.device("cpu"):
            UnquantizedFusedMoEMethod.create_weights(self, layer, *args, **kwargs)
        _LAYERS[layer.layer_name] = layer

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        whole = {"w13": layer.w13_weight.data, "w2": layer.w2_weight.data}
        self.stores = _stores(layer, whole, self.hot, "{}_weight")

    def matrices(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        gate, up = self.stores["w13"].of(expert).to(dtype).chunk(2)
        return gate, up, self.stores["w2"].of(expert).to(dtype)


class _Resident:
    """All experts on the device."""

    def __init__(self, whole: Tensor) -> None:
        self.of = whole.__getitem__


def _stores(
    layer: RoutedExperts, whole: Mapping[str, Tensor], hot: Sequence[int] | None, parameter: str
) -> dict[str, Tiered | _Resident]:
    """A store a matrix; with tiers the layer's parameters become the hot experts alone."""
    if hot is None:
        return {name: _Resident(tensor) for name, tensor in whole.items()}
    local = [place for e in hot if (place := layer._map_global_expert_id_to_local_expert_id(e)) >= 0]
    device = torch.device(layer.moe_config.device)
    stores = {name: Tiered(tensor, local, device) for name, tensor in whole.items()}
    for name, store in stores.items():
        setattr(layer, parameter.format(name), nn.Parameter(store.hot, requires_grad=False))
    return dict(stores)


def check_supported(layer: RoutedExperts) -> None:
    """CollabError for experts that `grouped_experts` does not compute."""
    moe = layer.moe_config
    plain = layer.activation == MoEActivation.SILU and not moe.has_bias and layer.swiglu_limit is None
    if not plain or layer.apply_router_weight_on_input:
        raise CollabError(
            f'options "artifact" and "hot" need SwiGLU experts without biases or limits; {layer.layer_name} '
            "has others: leave them out"
        )


def _grouped(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    layer = _LAYERS[layer_name]
    method = layer.quant_method
    if method.host is not None:  # on a processor, where vLLM knows no expert parallelism
        return method.host.compute(x, topk_weights, topk_ids).to(x.dtype)
    ids = topk_ids if layer._expert_map is None else layer._expert_map[topk_ids.to(torch.int64)]
    return grouped_experts(x, topk_weights, ids, layer.local_num_experts, lambda e: method.matrices(e, x.dtype))


def _grouped_fake(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    return torch.empty_like(x)


direct_register_custom_op(op_name="collab_grouped_experts", op_func=_grouped, fake_impl=_grouped_fake)
