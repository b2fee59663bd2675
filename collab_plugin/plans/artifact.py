"""What a plan makes of a checkpoint: the keys and tensors of the GGUF, and so its exact bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from collab_plugin import __version__
from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.checkpoint.expert_tables import check_prunable
from collab_plugin.checkpoint.kept_experts import KEEP, SOURCE_EXPERTS, SOURCE_MODEL_ID
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_layout import Layout, TensorSpec, copy_order, layout
from collab_plugin.formats.gguf_values import MetaValue
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint

_FILE_TYPE = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q5_1": LlamaFileType.MOSTLY_Q5_1,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q2_K": LlamaFileType.MOSTLY_Q2_K,
    "Q3_K": LlamaFileType.MOSTLY_Q3_K_M,
    "Q4_K": LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_K": LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
    "IQ1_S": LlamaFileType.MOSTLY_IQ1_S,
    "IQ1_M": LlamaFileType.MOSTLY_IQ1_M,
    "IQ2_XXS": LlamaFileType.MOSTLY_IQ2_XXS,
    "IQ2_XS": LlamaFileType.MOSTLY_IQ2_XS,
    "IQ2_S": LlamaFileType.MOSTLY_IQ2_S,
    "IQ3_XXS": LlamaFileType.MOSTLY_IQ3_XXS,
    "IQ3_S": LlamaFileType.MOSTLY_IQ3_S,
    "IQ4_NL": LlamaFileType.MOSTLY_IQ4_NL,
    "IQ4_XS": LlamaFileType.MOSTLY_IQ4_XS,
}


def kept_of(info: TensorInfo, plan: Plan) -> tuple[int, ...] | None:
    """Return the source slices of an expert-indexed tensor in their new order, else None."""
    if not info.by_expert or info.layer is None:
        return None
    return plan.pruning.kept.get(info.layer)


def new_shape(info: TensorInfo, plan: Plan) -> tuple[int, ...]:
    """Shape of the tensor in the artifact (numpy order)."""
    if is_hash_table(info.name):
        return (info.shape[0], min(plan.activation.used, info.shape[1]))
    kept = kept_of(info, plan)
    return info.shape if kept is None else (len(kept), *info.shape[1:])


def artifact_metadata(checkpoint: Checkpoint, plan: Plan) -> dict[str, MetaValue]:
    """The source's keys with the plan's edits, and ours under ``collab.``."""
    meta = {k: v for k, v in checkpoint.metadata.items() if not k.startswith(("split.", "collab."))}
    # The plan's name, not that of the folder at hand: the same plan makes the same bytes anywhere.
    meta["general.name"] = MetaValue(plan.source.name, GGUFValueType.STRING)
    for key, value in plan.metadata.items():
        if value is None:
            meta.pop(key, None)
        else:
            kind = meta[key].type if key in meta else GGUFValueType.UINT32
            meta[key] = MetaValue(value, kind if kind != GGUFValueType.ARRAY else GGUFValueType.UINT32)
    meta["general.file_type"] = MetaValue(int(_file_type(checkpoint, plan)), GGUFValueType.UINT32)
    meta["general.quantization_version"] = MetaValue(2, GGUFValueType.UINT32)
    meta |= _provenance(plan) | _source_experts(checkpoint, plan)
    keys, _ = copy_order(meta, ())
    return {key: meta[key] for key in keys}


def _file_type(checkpoint: Checkpoint, plan: Plan) -> LlamaFileType:
    """The label of the type that most weights have; Ollama and llama.cpp only display it."""
    weights: Counter[str] = Counter()
    for name, tensor in plan.tensors.items():
        weights[tensor.type] += checkpoint.tensors[name].n_elements
    return _FILE_TYPE.get(weights.most_common(1)[0][0], LlamaFileType.GUESSED)


def _provenance(plan: Plan) -> dict[str, MetaValue]:
    text = GGUFValueType.STRING
    keys = {
        "collab.version": MetaValue(__version__, text),
        "collab.plan.fingerprint": MetaValue(plan_fingerprint(plan), text),
        SOURCE_MODEL_ID: MetaValue(plan.source.model_id, text),
        "collab.experts_used.original": MetaValue(plan.activation.original, GGUFValueType.UINT32),
    }
    if plan.calibration is not None and plan.calibration.text_sketch:
        keys["collab.calibration.ngrams"] = MetaValue(plan.calibration.text_sketch, text)
    for layer, kept in sorted(plan.pruning.kept.items()):
        keys[f"{KEEP}.{layer}"] = MetaValue(list(kept), GGUFValueType.ARRAY, GGUFValueType.UINT16)
    return keys


def _source_experts(checkpoint: Checkpoint, plan: Plan) -> dict[str, MetaValue]:
    """How many experts the source had, when it is an artifact itself: kept ids are of these, not of the original's."""
    if not plan.pruning.kept or "collab.version" not in checkpoint.metadata:
        return {}
    experts = max(i.shape[0] for i in checkpoint.tensors.values() if i.by_expert)
    return {SOURCE_EXPERTS: MetaValue(experts, GGUFValueType.UINT32)}


def artifact_tensors(checkpoint: Checkpoint, plan: Plan) -> list[TensorSpec]:
    """The tensors of the artifact in llama-quantize's order; CollabError when the plan names others."""
    check_names(checkpoint.tensors, plan)
    if plan.pruning.kept:
        check_prunable(checkpoint)
    _, names = copy_order((), checkpoint.tensors)
    return [
        TensorSpec(name, new_shape(checkpoint.tensors[name], plan), GGMLQuantizationType[plan.tensors[name].type])
        for name in names
    ]


def check_one_count(plan: Plan, what: str) -> None:
    """CollabError when layers keep different numbers of experts, which ``what`` ("a GGUF") has no place for."""
    if "expert-count-by-layer" in plan.requires:
        raise CollabError(
            f"the plan keeps {plan.pruning.span} experts a layer, and {what} has one number for all layers: only "
            "vLLM runs this plan (by its load format collab); for other engines plan with as many experts in "
            "every layer"
        )


def check_names(tensors: Mapping[str, TensorInfo], plan: Plan) -> None:
    other = sorted(set(tensors) ^ set(plan.tensors))
    if other:
        raise CollabError(
            f"the plan is not for this model: {len(other)} tensors differ, such as {other[0]!r}; make it again"
        )


def artifact_layout(checkpoint: Checkpoint, plan: Plan) -> Layout:
    """Exact layout of the GGUF that ``plan`` makes; depends on no tensor's values."""
    return layout(artifact_metadata(checkpoint, plan), artifact_tensors(checkpoint, plan))
