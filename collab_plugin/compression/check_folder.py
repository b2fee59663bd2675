"""Is a folder what its plan makes of its source? Its files and tensors; pieces are made anew and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import Any, get_args

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.folder_tensors import stored_tensors
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.compression.check_artifact import PIECE_VALUES, CheckedArtifact, drawn
from collab_plugin.compression.hf_folder import PLAN_FILE, FolderContent, FolderPrecision, companions, folder_content
from collab_plugin.compression.hf_tensors import Work, works
from collab_plugin.errors import CollabError
from collab_plugin.formats.name_list import few
from collab_plugin.formats.safetensors_header import Stored
from collab_plugin.plans.artifact import check_one_count, kept_of
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint, read_plan
from collab_plugin.plans.planned_source import as_planned
from collab_plugin.progress import Advance

_CONFIG = "config.json"


def check_folder(
    artifact: SafetensorsCheckpoint,
    plan: Plan,
    source: Checkpoint | None,
    *,
    pieces: int | None,
    seed: int,
    threads: int,
    report: Advance,
) -> CheckedArtifact:
    """What of ``artifact`` is not as ``plan`` says, as far as the plan alone tells; with its ``source`` config.json,
    names, shapes, dtypes and copied files too, and ``pieces`` of tensors, drawn with ``seed`` (None: all, whole).

    Raises CollabError for a plan of another source, and for a source that is no Hugging Face folder.
    """
    check_one_count(plan, "a config.json")
    problems = _against_plan(artifact, plan)
    held, _ = stored_tensors(artifact.files)
    if source is None:
        return CheckedArtifact(artifact.address, len(held), 0, 0, tuple(problems))
    if not isinstance(source, SafetensorsCheckpoint):
        raise CollabError(f"{source.address} is no Hugging Face folder, and {artifact.address} can be made of one only")
    as_planned(source, plan)
    content, differing = _nearest(held, source, plan)
    work = list(works(content.outputs))
    problems += differing or _other_files(artifact, source, content)
    if differing:  # whose bytes would be compared with those of something else
        return CheckedArtifact(artifact.address, len(held), len(work), 0, tuple(problems))
    chosen = work if pieces is None else list(_pieces(work, pieces, seed))

    report(0, len(chosen))
    with ThreadPoolExecutor(threads) as pool:
        told = pool.map(lambda piece: _differing(piece, held), chosen)
        for done, (piece, names) in enumerate(zip(chosen, told, strict=True), 1):
            problems += [f"{name}, rows {piece.start} to {piece.stop - 1}: other bytes than planned" for name in names]
            report(done)
    return CheckedArtifact(artifact.address, len(held), len(work), len(chosen), tuple(problems))


def _against_plan(artifact: SafetensorsCheckpoint, plan: Plan) -> list[str]:
    found = []
    beside = artifact.path / PLAN_FILE
    if not beside.is_file():
        found.append(f"it has no {PLAN_FILE}, so it does not say what plan it was made by")
    elif plan_fingerprint(read_plan(beside)) != plan_fingerprint(plan):
        found.append("it was made by another plan")
    meta, arch = artifact.metadata, artifact.architecture
    wanted = {f"{arch}.expert_count": plan.pruning.expert_count, **plan.metadata}
    found += [
        f"{_CONFIG} says {key} is {meta[key].value}, the plan says {value}"
        for key, value in wanted.items()
        if value is not None and key in meta and meta[key].value != value
    ]
    if missing := sorted(set(plan.tensors) - set(artifact.tensors)):
        found.append(f"{len(missing)} tensors are missing: {few(missing)}")
    if more := sorted(set(artifact.tensors) - set(plan.tensors)):
        found.append(f"{len(more)} tensors are not in the plan: {few(more)}")
    for name in sorted(set(plan.tensors) & set(artifact.tensors)):
        info = artifact.tensors[name]
        kept = kept_of(info, plan)
        if kept is not None and info.shape[0] != len(kept):
            found.append(f"{name} has {info.shape[0]} experts, the plan keeps {len(kept)}")
    return found


def _nearest(held: Mapping[str, Stored], source: SafetensorsCheckpoint, plan: Plan) -> tuple[FolderContent, list[str]]:
    """What is planned at the precision that the folder is nearest to, and which tensors differ from that."""
    found = []
    for precision in get_args(FolderPrecision):
        content = folder_content(source, plan, precision)
        found.append((content, _other_tensors(held, content)))
    return min(found, key=lambda each: len(each[1]))


def _other_tensors(held: Mapping[str, Stored], content: FolderContent) -> list[str]:
    wanted = {tensor.name: tensor for tensor in content.tensors}
    return [
        *(f"{name} is missing" for name in sorted(set(wanted) - set(held))),
        *(f"{name} is not what the plan makes of the source" for name in sorted(set(held) - set(wanted))),
        *(
            f"{name} is {held[name].dtype} {held[name].shape}, {tensor.dtype} {tensor.shape} is planned"
            for name, tensor in wanted.items()
            if name in held and (held[name].dtype, held[name].shape) != (tensor.dtype, tensor.shape)
        ),
    ]


def _other_files(artifact: SafetensorsCheckpoint, source: SafetensorsCheckpoint, content: FolderContent) -> list[str]:
    """config.json by its keys, and what is copied by its bytes."""
    have: dict[str, Any] = load_json(artifact.path / _CONFIG)
    keys = sorted(key for key in {*have, *content.config} if have.get(key, ...) != content.config.get(key, ...))
    found = [f"{_CONFIG} has another {key} than the plan makes of the source" for key in keys]
    for path in companions(source.path):
        copy = artifact.path / path.name
        if not copy.is_file():
            found.append(f"{path.name} is missing")
        elif copy.read_bytes() != path.read_bytes():
            found.append(f"{path.name} is not the source's")
    return found


def _pieces(work: Sequence[Work], count: int, seed: int) -> Iterator[Work]:
    """``count`` pieces, of few rows where a tensor has many."""
    random = np.random.default_rng(seed)
    for index in drawn([each.output.name for each in work], count, random):
        each = work[index]
        rows = max(1, PIECE_VALUES // max(prod(each.output.shape[1:]), 1))
        height = each.stop - each.start
        if height <= rows or len(each.output.shape) == 1 or each.output.one_row:
            yield each
            continue
        start = each.start + int(random.integers(height - rows + 1))
        yield replace(each, start=start, stop=start + rows)


def _differing(work: Work, held: Mapping[str, Stored]) -> list[str]:
    """Tensors whose bytes are not what ``work`` makes."""
    found = []
    for name, offset, values in work.pieces():
        made = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        start = held[name].start + offset
        if not np.array_equal(held[name].file.read(start, start + made.size), made):
            found.append(name)
    return list(dict.fromkeys(found))
