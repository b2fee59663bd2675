"""A plan in vLLM's configuration: fewer experts before anything is constructed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.errors import CollabError
from collab_vllm.selection.expert_selection import Selection

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

_ROTARY = "rotary_embedding"
_EXTENSION = "collab_vllm.live_stats.worker_extension.CollabWorker"


def set_experts(model_config: ModelConfig, family: Family, selection: Selection) -> None:
    """Write counts and groups where model classes, and vLLM's own cache of them, read them."""
    set_count(model_config, family, selection.count)
    for config in _configs(model_config):
        config.num_experts_per_tok = selection.used
        if selection.groups is not None and hasattr(config, "n_group"):
            config.n_group = selection.groups
        if selection.groups_used is not None and hasattr(config, "topk_group"):
            config.topk_group = selection.groups_used
    # Filled when ModelConfig is made, and the only thing that get_num_experts() looks at.
    model_config.model_arch_config.num_experts = selection.count
    model_config.model_arch_config.num_experts_per_token = selection.used


def set_count(model_config: ModelConfig, family: Family, count: int) -> None:
    """Write the number of experts where model classes read it."""
    for config in _configs(model_config):
        setattr(config, family.expert_count, count)


def _configs(model_config: ModelConfig) -> list[Any]:
    configs = [model_config.hf_text_config]
    if model_config.hf_config is not model_config.hf_text_config and hasattr(
        model_config.hf_config, "num_experts_per_tok"
    ):
        configs.append(model_config.hf_config)
    return configs


def check_parallel(vllm_config: VllmConfig, selection: Selection) -> None:
    """CollabError when the experts that stay cannot be spread over the ranks."""
    from vllm.platforms import current_platform

    parallel = vllm_config.parallel_config
    tensor, data = parallel.tensor_parallel_size, parallel.data_parallel_size
    if parallel.enable_expert_parallel:
        ranks = tensor * data
        for count in sorted({selection.count, *selection.counts.values()}):
            held = count + parallel.eplb_config.num_redundant_experts
            if held % ranks:
                raise CollabError(
                    f"{held} experts a layer do not divide among {ranks} expert-parallel ranks; "
                    "keep a multiple of them, or choose other --tensor-parallel-size and --data-parallel-size"
                )
        if current_platform.is_cpu():
            # CPUUnquantizedExperts drops the expert map and reads past its weights: the worker dies.
            raise CollabError(
                "vLLM's kernels for processors know no expert parallelism; leave out --enable-expert-parallel"
            )
        return
    if tensor > selection.fewest:
        raise CollabError(
            f"--tensor-parallel-size {tensor} is more than the {selection.fewest} experts that stay in a layer, "
            "which vLLM's model classes refuse"
        )
    config = vllm_config.model_config.hf_text_config
    width = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 0)
    if width % tensor:
        raise CollabError(f"--tensor-parallel-size {tensor} does not divide the experts' width of {width}")


def right_rotation(vllm_config: VllmConfig, family: Family) -> bool:
    """Turn off vLLM's rotary kernel where it is wrong: interleaved, on processors.

    Found with vLLM 0.32.0's CPU build: the 3-D queries of MLA come out wrong from position 1 on, and its
    kernel writes beside strided keys. PyTorch's own operations are right. Returns whether it was turned off.
    """
    from vllm.platforms import current_platform

    if not (family.interleaved_rope and current_platform.is_cpu()):
        return False
    ops = vllm_config.compilation_config.custom_ops
    if f"+{_ROTARY}" in ops:
        raise CollabError(
            f'vLLM\'s {_ROTARY} kernel is wrong for this family on processors; take "+{_ROTARY}" out of custom_ops'
        )
    if f"-{_ROTARY}" not in ops:
        ops.append(f"-{_ROTARY}")
    return True


def check_latent_attention(vllm_config: VllmConfig) -> None:
    """CollabError where vLLM would fail at the first request: MLA of a size that it has no kernel for."""
    from vllm.platforms import current_platform

    config = vllm_config.model_config
    if not (config.use_mla and current_platform.is_cpu()):
        return
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    sizes = CPUMLABackend.get_supported_head_sizes()
    if config.get_head_size() not in sizes:
        raise CollabError(
            f"vLLM runs latent attention of size {sizes[0]} on processors, this model has {config.get_head_size()}; "
            "set VLLM_MLA_DISABLE=1 in the environment"
        )
    import torch
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    asked = vllm_config.attention_config.backend
    if torch.cpu._is_amx_tile_supported() and config.dtype != torch.bfloat16 and asked != AttentionBackendEnum.CPU_MLA:
        raise CollabError(
            f"vLLM's latent attention for processors with AMX computes in bfloat16, not {str(config.dtype)[6:]}; give "
            "--attention-backend CPU_MLA"
        )


def check_engine(vllm_config: VllmConfig) -> None:
    """CollabError where a CUDA graph would replay what has to be decided anew for each batch, or experts move."""
    from vllm.config import CUDAGraphMode

    if vllm_config.parallel_config.enable_eplb:
        raise CollabError(
            'options "artifact", "stats", "hot" and "placement" do not work with --enable-eplb; leave one of them out'
        )

    if vllm_config.compilation_config.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise CollabError(
            'options "artifact", "stats", "hot" and "placement" decide for each batch anew, which CUDA graphs cannot: '
            """give --enforce-eager, or --compilation-config '{"cudagraph_mode": "NONE"}'"""
        )


def extend_workers(vllm_config: VllmConfig) -> None:
    """Let workers answer `collab_routing`."""
    parallel = vllm_config.parallel_config
    if parallel.worker_extension_cls not in ("", _EXTENSION):
        raise CollabError(f'option "stats" extends vLLM\'s workers, and so does {parallel.worker_extension_cls}')
    parallel.worker_extension_cls = _EXTENSION
