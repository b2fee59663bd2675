"""Make the suite's models, plans and packs: python conformance/make_suite.py [FOLDER] [--only [NAME ...]]

--only without a name writes the manifest alone.

Needs the extras llamacpp (it quantizes) and verify (the reference computes the packs), about two minutes. The
plans are set by hand, so that every type that `plan` offers is met, in experts and in plain matrices; importance
is uniform. The same sources, kernels and processor make the same GGUF bytes; a processor whose compiler joins
multiplications and additions in another way may round a few scales differently.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from collab_conformance.pack.make_pack import make_pack
from collab_conformance.pack.pack_file import read_document
from collab_conformance.pack.prompts import default_prompts
from collab_conformance.suite.manifest import HERE, MANIFEST, Suite, SuiteArtifact

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo, quantizable
from collab_plugin.cli.progress import shown
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.formats.ggml_types import fallback, tensor_bytes, without_imatrix
from collab_plugin.formats.json_document import to_plain
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import artifact_layout, new_shape
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Activation, GroupPolicy, Plan, Pruning, TensorPlan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.plugins.manager import first_kernels
from collab_plugin.plugins.open_checkpoint import open_checkpoint
from collab_plugin.progress import track, untold
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.stats.stats import ImatrixEntry, Stats

MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"


@dataclass(frozen=True)
class Recipe:
    """``experts`` and ``plain``: types dealt out in turn to expert tensors and to other matrices. ``kept`` of the
    32 experts, ``used`` a token. ``given``: tensors by name with a type of their own."""

    name: str
    about: str
    model: str
    experts: tuple[str, ...]
    plain: tuple[str, ...]
    kept: int
    used: int
    groups: GroupPolicy
    short: bool
    given: Mapping[str, str] = field(default_factory=dict)


RECIPES = (
    Recipe(
        "qwen3moe-k", "Qwen3-MoE of 8 experts in K types, top-4", "tiny-qwen3moe",
        ("Q2_K", "Q4_K", "Q3_K", "Q5_K", "Q6_K"), ("Q4_K", "Q3_K", "Q6_K", "Q2_K", "Q5_K"), 8, 4, "none", True,
    ),
    Recipe(
        "qwen3moe-iq", "Qwen3-MoE of 16 experts in 1- and 2-bit types, top-4", "tiny-qwen3moe",
        ("IQ2_XS", "IQ1_S", "IQ2_XXS", "IQ1_M", "IQ2_S"), ("IQ2_S", "IQ2_XS", "IQ1_M", "IQ2_XXS", "IQ1_S"),
        16, 4, "none", False,
    ),
    Recipe(
        "deepseek-groups", "DeepSeek-V3 of 8 experts in 4 groups of 2, 3- and 4-bit IQ types, top-3",
        "tiny-deepseek-v3", ("IQ3_S", "IQ4_XS", "IQ3_XXS", "IQ4_NL"), ("IQ4_XS", "IQ3_XXS", "IQ4_NL", "IQ3_S"),
        8, 3, "balanced", True,
    ),
    Recipe(
        "deepseek-legacy", "DeepSeek-V3 of 4 experts, groups disbanded, 32-blocks and floats, top-2",
        "tiny-deepseek-v3", ("Q4_0", "Q8_0", "Q5_0", "F16", "Q5_1", "Q4_0", "BF16", "Q5_0", "Q5_1"),
        ("Q4_0", "Q5_0", "Q8_0", "Q5_1"), 4, 2, "disband", False,
        {"blk.1.attn_q_a.weight": "F16", "blk.2.attn_q_a.weight": "BF16", "output.weight": "Q4_0",
         "token_embd.weight": "Q4_0"},
    ),
)  # fmt: skip


def plan_of(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """The recipe as a plan for ``checkpoint``."""
    arch = checkpoint.architecture
    metadata: dict[str, int | None] = {f"{arch}.expert_count": recipe.kept, f"{arch}.expert_used_count": recipe.used}
    if recipe.groups == "disband":
        metadata |= {f"{arch}.expert_group_count": None, f"{arch}.expert_group_used_count": None}
    plan = copy_plan(checkpoint)
    plan = dataclasses.replace(
        plan,
        pruning=Pruning("given", {}, "none", recipe.groups, recipe.kept, kept_ids(recipe, checkpoint), None),
        activation=Activation(plan.activation.original, recipe.used, "given"),
        metadata=metadata,
        allocator="given",
        notes=(recipe.about, *plan.notes),
    )
    types = types_of(recipe, checkpoint)
    tensors = {
        name: TensorPlan(types[name], tensor_bytes(types[name], new_shape(info, plan)), None)
        for name, info in checkpoint.tensors.items()
    }
    plan = dataclasses.replace(plan, tensors=tensors)
    total = artifact_layout(checkpoint, plan).total
    parameters = plan.source.parameters
    return dataclasses.replace(plan, bytes=total, bits_per_weight=total * 8 / parameters)


def kept_ids(recipe: Recipe, checkpoint: Checkpoint) -> dict[int, tuple[int, ...]]:
    """As many of each run of neighbours (so of each group), others in each layer: a wrong slice shows."""
    layers = {i.layer: i.shape[0] for i in checkpoint.tensors.values() if i.role == Role.EXPERT and i.layer is not None}
    step = {layer: experts // recipe.kept for layer, experts in layers.items()}
    return {n: tuple(i * step[n] + (i + n) % step[n] for i in range(recipe.kept)) for n in sorted(layers)}


def types_of(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, str]:
    """Types dealt out in the order of names; what may not be quantized stays, embeddings have no importance."""
    found, dealt = {}, {True: 0, False: 0}
    for name, info in sorted(checkpoint.tensors.items()):
        if not quantizable(info):
            found[name] = info.type.name
            continue
        choices = recipe.experts if info.by_expert else recipe.plain
        kind = choices[dealt[info.by_expert] % len(choices)]
        dealt[info.by_expert] += 1
        kind = recipe.given.get(name, kind)
        found[name] = fallback(without_imatrix(kind) if info.role == Role.EMBEDDING else kind, info.shape[-1])
    return found


def uniform_stats(checkpoint: Checkpoint) -> Stats:
    """Ones for every column of every matrix: types that need an importance vector get a flat one."""

    def entry(info: TensorInfo) -> ImatrixEntry:
        outer = info.shape[0] if len(info.shape) == 3 else 1
        # Experts have an entry each, MLA's heads one for all (stats.ImatrixEntry).
        slices, width = (outer, info.shape[-1]) if info.by_expert else (1, outer * info.shape[-1])
        return ImatrixEntry(np.ones((slices, width), np.float32), np.ones(slices, np.float32))

    entries = {name: entry(info) for name, info in checkpoint.tensors.items() if quantizable(info)}
    return Stats(routing={}, imatrix=entries, tokens=0, chunk_size=0)


def build(recipe: Recipe, folder: Path, kernels: Kernels) -> None:
    """Write plan.json and the GGUF into ``folder``."""
    checkpoint = open_checkpoint(MODELS / recipe.model)
    plan = plan_of(recipe, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder / "plan.json", plan)
    out = folder / f"{recipe.name}.gguf"
    compress(checkpoint, plan, uniform_stats(checkpoint), out, kernels=kernels, threads=2, report=untold)


def record(recipe: Recipe, folder: Path) -> None:
    """Write the pack of the GGUF in ``folder``."""
    gguf = folder / f"{recipe.name}.gguf"
    with track(shown(), f"recording {recipe.name}", unit="tokens") as report:
        make_pack(gguf, default_prompts(gguf), folder / "pack", report=report)


def main() -> None:
    """Make everything, the manifest last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    parser.add_argument("--only", nargs="*", default=[r.name for r in RECIPES], metavar="NAME")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - {r.name for r in RECIPES}:
        parser.error(f"no artifact {min(unknown)}")
    folder: Path = arguments.folder
    kernels = first_kernels()
    made = []
    for recipe in RECIPES:
        place = folder / recipe.name
        if recipe.name in arguments.only:
            build(recipe, place, kernels)
            record(recipe, place)
        document = read_document(place / "pack")
        made.append(
            SuiteArtifact(
                recipe.name, recipe.about, recipe.model, document.artifact.bytes, document.artifact.sha256,
                document.tensors_sha256, recipe.short,
            )
        )  # fmt: skip
    suite = Suite(kernels.version(), tuple(made))
    write_bytes(folder / MANIFEST, (json.dumps(to_plain(suite), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
