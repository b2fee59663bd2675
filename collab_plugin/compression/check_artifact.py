"""Is a GGUF what its plan makes of its source? Keys, shapes, bytes; pieces of tensors are made anew and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from collab_plugin.checkpoint.checkpoint import Bytes, Checkpoint
from collab_plugin.checkpoint.gguf import GgufCheckpoint
from collab_plugin.checkpoint.kept_experts import kept_experts
from collab_plugin.compression.prepare_kernels import prepare
from collab_plugin.compression.shards import Shards
from collab_plugin.compression.tiles import Tile, tile_bytes, tiles_of
from collab_plugin.formats.name_list import few
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.plans.artifact import artifact_layout, artifact_metadata, check_one_count, kept_of, new_shape
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint
from collab_plugin.plans.planned_source import as_planned
from collab_plugin.progress import Advance
from collab_plugin.quantize.kernels import Kernels
from collab_plugin.repair.one_blas_thread import one_blas_thread
from collab_plugin.repair.repaired_checkpoint import RepairedCheckpoint
from collab_plugin.repair.rounding import Rounding
from collab_plugin.repair.samples import BlockSamples
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.match_model import match_model
from collab_plugin.stats.stats import Stats

PIECE_VALUES = 2**17
"""Weights of a piece at most, but for one row that is longer."""


@dataclass(frozen=True)
class CheckedArtifact:
    """``problems``: what is not as planned, one sentence each; none: all that was looked at is right.

    ``compared`` of ``tiles`` were held against the source in a piece of each or whole; 0 without a source.
    """

    path: str
    tensors: int
    tiles: int
    compared: int
    problems: tuple[str, ...]


def check_against_plan(artifact: GgufCheckpoint, plan: Plan) -> tuple[str, ...]:
    """What of ``artifact`` is not as ``plan`` says, as far as the plan alone tells."""
    check_one_count(plan, "a GGUF")
    meta, arch = artifact.metadata, artifact.architecture
    found = []
    made_by = meta.get("collab.plan.fingerprint")
    if made_by is None or made_by.value != plan_fingerprint(plan):
        found.append("it was made by another plan" if made_by else "it names no plan that it was made by")
    if kept_experts(meta) != dict(sorted(plan.pruning.kept.items())):
        found.append("it names other kept experts than the plan")
    found += [
        f"{key} is {meta[key].value if key in meta else 'missing'}, the plan says {value}"
        for key, value in {f"{arch}.expert_count": plan.pruning.expert_count, **plan.metadata}.items()
        if value is not None and (key not in meta or meta[key].value != value)
    ]
    found += [
        f"{key} is there, and the plan removes it" for key, v in plan.metadata.items() if v is None and key in meta
    ]
    if missing := sorted(set(plan.tensors) - set(artifact.tensors)):
        found.append(f"{len(missing)} tensors are missing: {few(missing)}")
    if more := sorted(set(artifact.tensors) - set(plan.tensors)):
        found.append(f"{len(more)} tensors are not in the plan: {few(more)}")
    for name in sorted(set(plan.tensors) & set(artifact.tensors)):
        info, wanted = artifact.tensors[name], plan.tensors[name].type
        if info.type.name != wanted:
            found.append(f"{name} is {info.type.name}, the plan says {wanted}")
        kept = kept_of(info, plan)
        if kept is not None and info.shape[0] != len(kept):
            found.append(f"{name} has {info.shape[0]} experts, the plan keeps {len(kept)}")
    files = artifact.shards()
    if len(files) == 1 and files[0].size != plan.bytes:
        found.append(f"it has {files[0].size:,} bytes, the plan says {plan.bytes:,}")
    return tuple(found)


def check_against_source(
    artifact: GgufCheckpoint,
    source: Checkpoint,
    plan: Plan,
    stats: Stats | None,
    samples: BlockSamples | None,
    *,
    kernels: Kernels | None,
    pieces: int | None,
    seed: int,
    threads: int,
    report: Advance,
) -> CheckedArtifact:
    """`check_against_plan`, and keys, shapes, header and padding as ``plan`` makes them of ``source``; then ``pieces``
    of tensors, drawn with ``seed``, are quantized anew and compared byte by byte (None: every tile, whole).

    Raises CollabError for a plan of another source.
    """
    source = as_planned(source, plan)
    if stats is not None:
        stats = match_model(stats, source, "the plan's stats file").stats
    problems = [*check_against_plan(artifact, plan)] or [
        *_other_keys(artifact, source, plan),
        *_other_shapes(artifact, source, plan),
    ]
    tiles = tiles_of(source, plan, artifact_layout(source, plan).offsets)
    if problems:  # whose bytes would be compared with those of something else
        return CheckedArtifact(artifact.address, len(artifact.tensors), len(tiles), 0, tuple(problems))
    problems += _other_frame(artifact, source, plan)
    imatrix = ImportanceMatrix.of(stats, plan.calibration.borrow if plan.calibration else 0.0)
    chosen = tiles if pieces is None else list(_pieces(tiles, source, pieces, seed))
    if samples is not None:
        rounding = Rounding(source, plan, imatrix, kernels)
        source = RepairedCheckpoint(source, plan, samples, rounding, threads=threads)
    prepare(plan, source, kernels)

    def differs(tile: Tile) -> bool:
        made = tile_bytes(source, plan, tile, imatrix, kernels)
        return not np.array_equal(made.reshape(-1), _held(artifact, plan, tile).reshape(-1))

    report(0, len(chosen))
    with one_blas_thread(samples is not None), ThreadPoolExecutor(threads) as pool:
        for done, (tile, wrong) in enumerate(zip(chosen, pool.map(differs, chosen), strict=True), 1):
            if wrong:
                problems.append(_place(tile, plan))
            report(done)
    return CheckedArtifact(artifact.address, len(artifact.tensors), len(tiles), len(chosen), tuple(problems))


def _other_keys(artifact: GgufCheckpoint, source: Checkpoint, plan: Plan) -> list[str]:
    wanted = artifact_metadata(source, plan)
    have = artifact.metadata
    missing = sorted(set(wanted) - set(have))
    # Of another version of this program all else may be the same.
    shared = sorted(set(wanted) & set(have) - {"collab.version"})
    differing = [key for key in shared if have[key].packed != wanted[key].packed]
    more = sorted(set(have) - set(wanted))
    return [
        *(f"{key} is missing" for key in missing),
        *(f"{key} is not what the plan makes of the source" for key in differing),
        *(f"{key} is neither the source's nor the plan's" for key in more),
    ]


def _other_shapes(artifact: GgufCheckpoint, source: Checkpoint, plan: Plan) -> list[str]:
    wanted = {name: new_shape(info, plan) for name, info in source.tensors.items()}
    return [
        f"{name} has shape {info.shape}, {wanted[name]} is planned"
        for name, info in artifact.tensors.items()
        if name in wanted and info.shape != wanted[name]
    ]


def _other_frame(artifact: GgufCheckpoint, source: Checkpoint, plan: Plan) -> list[str]:
    """Header, order of tensors and padding of a single file; those of a split one depend on where it was cut."""
    files, wanted = artifact.shards(), artifact_layout(source, plan)
    if len(files) > 1 or artifact.metadata["collab.version"] != artifact_metadata(source, plan)["collab.version"]:
        return []
    if files[0].size != wanted.total:
        return [f"it has {files[0].size:,} bytes, {wanted.total:,} are planned"]
    same = all(files[0].read(at, at + len(data)).tobytes() == data for at, data in Shards((wanted,), (0,)).fixed())
    return [] if same else ["its header, or what lies between tensors, is not what the plan makes of the source"]


def _pieces(tiles: Sequence[Tile], source: Checkpoint, count: int, seed: int) -> Iterator[Tile]:
    """``count`` pieces of tiles: half of them spread over tensors, half over all tiles, which mostly are experts'."""
    random = np.random.default_rng(seed)
    for index in drawn([tile.tensor for tile in tiles], count, random):
        tile = tiles[index]
        rows = max(1, PIECE_VALUES // source.tensors[tile.tensor].shape[-1])
        height = tile.stop - tile.start
        if height <= rows or len(source.tensors[tile.tensor].shape) == 1 or is_hash_table(tile.tensor):
            yield tile
            continue
        start = tile.start + int(random.integers(height - rows + 1))
        yield dataclasses.replace(tile, start=start, stop=start + rows)


def drawn(owners: Sequence[str], count: int, random: np.random.Generator) -> list[int]:
    """Numbers of ``count`` pieces, ascending, half of them spread over tensors; ``owners``: the tensor of each."""
    by_owner: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        by_owner.setdefault(owner, []).append(index)
    names = random.permutation(len(by_owner))
    of_owners = [int(random.choice(list(by_owner.values())[i])) for i in names]
    over_all = [int(i) for i in random.permutation(len(owners))]
    order = dict.fromkeys(i for pair in zip(of_owners, over_all, strict=False) for i in pair)
    return sorted([*dict.fromkeys([*order, *over_all])][:count])


def _held(artifact: GgufCheckpoint, plan: Plan, tile: Tile) -> Bytes:
    """The bytes that ``artifact`` has where ``tile`` belongs."""
    info = artifact.tensors[tile.tensor]
    if len(info.shape) == 1:
        return artifact.read_raw(tile.tensor)
    expert = _new_index(artifact, plan, tile)
    height = info.shape[0] if expert is None else info.shape[1] if len(info.shape) > 2 else 1
    rows = slice(tile.start, min(tile.stop, height))
    if expert is not None and len(info.shape) == 2:  # a router's row
        return artifact.read_raw(tile.tensor, rows=slice(expert, expert + 1))
    return artifact.read_raw(tile.tensor, expert=expert, rows=rows)


def _new_index(artifact: GgufCheckpoint, plan: Plan, tile: Tile) -> int | None:
    if tile.expert is None:
        return None
    kept = kept_of(artifact.tensors[tile.tensor], plan)
    return tile.expert if kept is None else kept.index(tile.expert)


def _place(tile: Tile, plan: Plan) -> str:
    expert = "" if tile.expert is None else f", expert {tile.expert} of the source"
    rows = f"rows {tile.start} to {tile.stop - 1}"
    return f"{tile.tensor}{expert}, {rows}: other bytes than {plan.tensors[tile.tensor].type} of the source"
