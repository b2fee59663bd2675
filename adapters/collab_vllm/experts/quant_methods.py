"""How the routed experts of a layer are held and computed: at a GGUF's types, in tiers, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.utils.torch_utils import direct_register_custom_op

from collab_plugin.errors import CollabError
from collab_plugin.formats.ggml_types import TYPES, row_bytes
from collab_vllm.experts.counters import real_tokens
from collab_vllm.experts.gguf_blocks import PARTS, ArtifactBlocks, Matrices
from collab_vllm.experts.host.expert_graph import ExpertShape
from collab_vllm.experts.host.ggml_cpu import ggml_cpu
from collab_vllm.experts.host.host_kernel import HostKernel
from collab_vllm.experts.host.huge_pages import host_bytes
from collab_vllm.experts.hot import TierStart
from collab_vllm.experts.on_device import DeviceExperts
from collab_vllm.experts.tiering.tier_counts import TierCounts
from collab_vllm.experts.tiering.tiered_layer import TieredLayer
from collab_vllm.selection.loader_options import LoaderOptions

_LAYERS: dict[str, RoutedExperts] = {}
"""By name, for the operation below: a compiled graph carries names, not modules."""
_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Holder(Protocol):
    """Holds the experts of a layer and computes with them."""

    def compute(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs, [tokens, wide]; ids below 0 are other ranks'."""
        ...


class _Held(FusedMoEMethodBase):
    """Computes with its ``holder``, which subclasses make of the loaded weights. ``tiers``: which experts are on the
    device at first; None: all."""

    holder: Holder
    tiers: TierStart | None
    options: LoaderOptions

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig | None:
        return None

    @property
    def is_monolithic(self) -> bool:
        return False

    @property
    def hot(self) -> list[int] | None:
        """Those of this rank's experts that are on the device now; None: all."""
        return self.holder.resident.experts if isinstance(self.holder, TieredLayer) else None

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        return torch.ops.vllm.collab_routed_experts(x, topk_weights, topk_ids, layer.layer_name)

    def hold(self, layer: RoutedExperts, types: Sequence[str], matrices: Sequence[Tensor]) -> None:
        """Make the holder; ``matrices``: gate, up, down, uint8[experts, rows, bytes a row]. With tiers the layer's
        parameters become the places on the device alone."""
        gate, up, down = types
        experts, narrow, _ = matrices[1].shape
        layout = ExpertShape(experts, layer.hidden_size, narrow, (gate, up, down))
        ggml = ggml_cpu()
        if self.tiers is not None:
            here = [
                e for e in range(layer.global_num_experts) if layer._map_global_expert_id_to_local_expert_id(e) >= 0
            ]
            tiered = TieredLayer(
                layout,
                matrices,
                self.tiers.resident_set(here),
                torch.device(layer.moe_config.device),
                ggml,
                self.options.misses,
                self.options.interval,
                TierCounts(layer.moe_config.moe_parallel_config.tp_rank),
                real_tokens,
            )
            self.holder = tiered
            _set_parameters(layer, tiered.slots)
        elif ggml is not None and matrices[0].device.type == "cpu":
            self.holder = HostKernel(ggml, layout, matrices)
        else:
            self.holder = DeviceExperts(types, matrices)


class GgufExperts(_Held):
    """Experts at the types of an artifact's layer."""

    def __init__(
        self,
        moe: FusedMoEConfig,
        types: Mapping[str, Matrices],
        tiers: TierStart | None,
        options: LoaderOptions,
    ) -> None:
        super().__init__(moe)
        self.types, self.tiers, self.options = types, tiers, options

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
            shape = (num_experts, rows, row_bytes(kind, columns))
            # With tiers all of them stay in host memory, and some are on the device too.
            hosted = self.tiers is not None or torch.get_default_device().type == "cpu"
            blocks = host_bytes(shape) if hosted else torch.empty(shape, dtype=torch.uint8)
            layer.register_parameter(f"{part}_blocks", nn.Parameter(blocks, requires_grad=False))
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
        matrices = [getattr(layer, f"{part}_blocks").data for part in PARTS]
        self.hold(layer, [self.types[part].type for part in PARTS], matrices)


class TieredExperts(_Held, UnquantizedFusedMoEMethod):
    """Unquantized experts in tiers."""

    def __init__(self, moe: FusedMoEConfig, tiers: TierStart, options: LoaderOptions) -> None:
        UnquantizedFusedMoEMethod.__init__(self, moe)
        self.tiers, self.options = tiers, options

    def create_weights(self, layer: RoutedExperts, *args: Any, **kwargs: Any) -> None:
        check_supported(layer)
        with torch.device("cpu"):
            UnquantizedFusedMoEMethod.create_weights(self, layer, *args, **kwargs)
        _LAYERS[layer.layer_name] = layer

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        kind = _PLAIN[layer.w13_weight.dtype]
        gate, up = layer.w13_weight.data.chunk(2, dim=1)
        matrices = [_as_bytes(part) for part in (gate, up, layer.w2_weight.data)]
        del layer.w13_weight, layer.w2_weight
        self.hold(layer, (kind, kind, kind), matrices)


def _as_bytes(values: Tensor) -> Tensor:
    """A copy, uint8[experts, rows, bytes a row]."""
    experts, rows, columns = values.shape
    stored = host_bytes((experts, rows, columns * values.dtype.itemsize))
    stored.view(values.dtype).copy_(values)
    return stored


def _set_parameters(layer: RoutedExperts, slots: Sequence[Tensor]) -> None:
    for part, tensor in zip(PARTS, slots, strict=True):
        setattr(layer, f"{part}_blocks", nn.Parameter(tensor, requires_grad=False))


def check_supported(layer: RoutedExperts) -> None:
    """CollabError for experts that are not computed here."""
    moe = layer.moe_config
    plain = layer.activation == MoEActivation.SILU and not moe.has_bias and layer.swiglu_limit is None
    if not plain or layer.apply_router_weight_on_input:
        raise CollabError(
            'options "artifact", "hot" and "placement" need SwiGLU experts without biases or limits; '
            f"{layer.layer_name} has others: leave them out"
        )


def _routed(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    layer = _LAYERS[layer_name]
    ids = topk_ids if layer._expert_map is None else layer._expert_map[topk_ids.to(torch.int64)]
    return layer.quant_method.holder.compute(x, topk_weights, ids).to(x.dtype)


def _routed_fake(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    return torch.empty_like(x)


direct_register_custom_op(op_name="collab_routed_experts", op_func=_routed, fake_impl=_routed_fake)
