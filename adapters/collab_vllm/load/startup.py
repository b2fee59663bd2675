"""What happens before vLLM starts an engine: options and plan are checked, the configuration is pruned."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from collab_plugin.checkpoint.families.family import Family
from collab_plugin.errors import CollabError
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan
from collab_vllm.live_stats.tier_metrics import publish_tier_counts
from collab_vllm.load.check_model import check_model
from collab_vllm.load.check_options import check_artifact, check_tiers
from collab_vllm.load.counts_by_layer import check_by_layer
from collab_vllm.load.draft_model import check_draft
from collab_vllm.load.one_line_errors import one_line
from collab_vllm.load.safetensors_files import Weights, weight_files
from collab_vllm.load.vllm_config import (
    check_engine,
    check_latent_attention,
    check_parallel,
    extend_workers,
    right_rotation,
    set_experts,
)
from collab_vllm.selection.expert_selection import Selection, selection_of
from collab_vllm.selection.loader_options import LOAD_FORMAT, LoaderOptions, parse_options
from collab_vllm.selection.vllm_families import family_for_vllm

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MARK = "collab"
"""Key of ``additional_config``. vLLM hashes it for its compile cache, and every process finds it there."""


@dataclass(frozen=True)
class Prepared:
    """What a loader goes by. ``selection`` is None without a plan."""

    options: LoaderOptions
    family: Family
    plan: Plan | None
    selection: Selection | None


def check_at_startup() -> None:
    """Let vLLM check and prune its configuration as soon as it has one, before processes and memory."""
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_engine_config
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        if str(self.load_format).lower() != LOAD_FORMAT:
            return original(self, *args, **kwargs)
        with one_line():
            _read(parse_options(self.model_loader_extra_config))
        vllm_config = original(self, *args, **kwargs)
        with one_line():
            prepare(vllm_config)
        return vllm_config

    setattr(create_engine_config, MARK, True)
    EngineArgs.create_engine_config = create_engine_config


def prepare(vllm_config: VllmConfig) -> Prepared:
    """Check plan against model and put it into ``vllm_config``, once; CollabError for what does not fit."""
    options = parse_options(vllm_config.load_config.model_loader_extra_config)
    plan = _read(options)
    model_config = vllm_config.model_config
    hf = model_config.hf_text_config
    family = family_for_vllm(model_config.architectures, model_config.model)
    experts = getattr(hf, family.expert_count, 0)
    selection = None if plan is None else selection_of(plan, hf.num_hidden_layers)
    prepared = Prepared(options, family, plan, selection)
    mark = dataclasses.asdict(options) | {
        "plan": plan_fingerprint(plan) if plan else None,
        "artifact": options.artifact is not None,
        "placement": options.placement is not None,
    }
    done = vllm_config.additional_config.get(MARK)
    if done is not None:
        if done != mark:
            raise CollabError(f"{options.plan} was changed while vLLM was starting; start it again")
        return prepared
    check_draft(vllm_config)
    check_latent_attention(vllm_config)
    if plan is not None and selection is not None:
        check_parallel(vllm_config, selection)
        check_by_layer(vllm_config, family, selection)
        weights = Weights(weight_files(vllm_config.load_config, model_config))
        check_model(plan, weights, family, hf.num_hidden_layers, experts, strict=options.strict)
        set_experts(model_config, family, selection)
    check_artifact(options, plan)
    counts = selection.counts if selection else {}
    check_tiers(options, plan, vllm_config, counts or {0: experts})
    right_rotation(vllm_config, family)
    if options.replaces_experts:
        check_engine(vllm_config)
    if options.stats:
        extend_workers(vllm_config)
    if options.tiered:
        publish_tier_counts()
    vllm_config.additional_config[MARK] = mark
    return prepared


def _read(options: LoaderOptions) -> Plan | None:
    return None if options.plan is None else read_plan(options.plan)
