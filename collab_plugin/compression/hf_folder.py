"""Carry out a plan on a Hugging Face folder: a pruned folder that other engines load; whole or none."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.folder_tensors import INDEX
from collab_plugin.checkpoint.safetensors import SafetensorsCheckpoint
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.compression.gguf_file import source_state
from collab_plugin.compression.hf_config import pruned_config
from collab_plugin.compression.hf_precision import precisions, quantization_config
from collab_plugin.compression.hf_tensors import Output, Work, outputs, works
from collab_plugin.compression.journal import Journal, checksum
from collab_plugin.compression.journaled_work import JournaledWork
from collab_plugin.compression.peak_memory import peak_memory
from collab_plugin.compression.whole_output import SizedFile, allocate, check_space, sized_file, whole_output
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_synced
from collab_plugin.formats.output_path import check_output_folder, writing
from collab_plugin.formats.safetensors_layout import SafetensorsTensor, Shard, shards_of
from collab_plugin.formats.tensor_names import is_hash_table
from collab_plugin.plans.artifact import check_names, check_one_count
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint, write_plan
from collab_plugin.plans.planned_source import as_planned
from collab_plugin.progress import Advance

SHARD_BYTES = 5 * 10**9  # as transformers cuts
PLAN_FILE = "collab_plan.json"
# Copied from the source: tokenizers, templates, generation settings, licences, and code that config.json may name.
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_LICENCES = ("license", "licence", "notice")

FolderPrecision = Literal["plan", "original"]


@dataclass(frozen=True)
class CompressedFolder:
    """What was written: bytes of all safetensors files, seconds, and the largest resident memory in bytes.

    ``bits_per_weight`` is 8 x ``bytes`` over the original's parameters, pruned ones included. ``resumed_tiles`` of
    ``tiles`` pieces of work were done by an earlier run.
    """

    path: str
    bytes: int
    bits_per_weight: float
    files: int
    seconds: float
    peak_memory: int
    tiles: int = 0
    resumed_tiles: int = 0


def compress_folder(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path,
    *,
    precision: FolderPrecision,
    threads: int,
    report: Advance,
    shard_bytes: int = SHARD_BYTES,
) -> CompressedFolder:
    """Write the folder that ``plan`` makes of a Hugging Face folder to ``out``, which may not exist yet.

    ``precision`` "original" keeps the stored values bit for bit; "plan" quantizes as hf_precision.py says.
    Peak memory: threads x a few times 32 MiB (a tile as float32 and what it becomes) plus a constant.
    An interrupted run leaves ``out``.partial and ``out``.journal, and the same call goes on there.
    Raises CollabError for a source that is no Hugging Face folder, a plan of another source or with its own number
    of experts in each layer, an ``out`` that exists, a full disk, values that are not finite.
    """
    check_one_count(plan, "a config.json")
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        raise CollabError(
            f"{checkpoint.address} is a {checkpoint.format.upper()} file: `format` safetensors prunes Hugging Face "
            "folders; give the original, and a plan made of it"
        )
    if plan.pruning.kept and any(is_hash_table(name) for name in checkpoint.tensors):
        raise CollabError(
            f"{checkpoint.path} has layers that take experts from a table of tokens; pruned, it is written as GGUF only"
        )
    as_planned(checkpoint, plan)
    _refuse(checkpoint, out)
    start = time.monotonic()
    content = folder_content(checkpoint, plan, precision)
    shards = shards_of(content.tensors, shard_bytes)
    total = sum(shard.total for shard in shards)
    state = source_state(checkpoint)
    header = hashlib.sha256(b"".join(shard.header for shard in shards)).hexdigest()
    job = f"{plan_fingerprint(plan)} {precision} {header} {state}"
    with _unfinished(out, shards, job) as (part, journal):
        for path in companions(checkpoint.path):
            _write(part / path.name, path.read_bytes())
        _write_json(part / "config.json", content.config)
        write_plan(part / PLAN_FILE, plan)
        if len(shards) > 1:
            _write_json(part / INDEX, _index(content.tensors, shards))
        pieces = list(works(content.outputs))
        with _open(part, out, shards, fresh=not journal.done) as files:
            resumed = _run(pieces, shards, files, journal, threads, report)
            if source_state(checkpoint) != state:
                raise CollabError(
                    f"{checkpoint.path} was changed while it was read, so nothing that was written is trusted: run "
                    "the same command again"
                )
    weights = plan.source.parameters
    return CompressedFolder(
        str(out), total, total * 8 / weights, len(shards), time.monotonic() - start, peak_memory(), len(pieces), resumed
    )


@dataclass(frozen=True)
class FolderContent:
    """What a plan makes of a folder: its ``config``.json and, of each stored matrix, what becomes of it."""

    config: dict[str, Any]
    outputs: list[Output]

    @property
    def tensors(self) -> list[SafetensorsTensor]:
        """Of all files, in their order."""
        return [tensor for output in self.outputs for tensor in output.tensors()]


def folder_content(checkpoint: SafetensorsCheckpoint, plan: Plan, precision: FolderPrecision) -> FolderContent:
    """What `compress_folder` writes; CollabError for a plan of other tensors."""
    check_names(checkpoint.tensors, plan)
    blocks = precisions(checkpoint, plan) if precision == "plan" else None
    made = list(outputs(checkpoint, plan, blocks))
    matrices = [o.name for o in made if o.quantizable]
    quantization = quantization_config(blocks, matrices) if blocks is not None else None
    config = pruned_config(checkpoint, plan, load_json(checkpoint.path / "config.json"), quantization)
    if blocks is not None and quantization is None:
        config.pop("quantization_config", None)  # FP8 was widened and nothing else is quantized
    return FolderContent(config, made)


def _refuse(checkpoint: SafetensorsCheckpoint, out: Path) -> None:
    check_output_folder(out)
    if checkpoint.path.resolve() in (out.parent.resolve(), *out.parent.resolve().parents):
        raise CollabError(f"{out} lies in the source folder; the source is never written to")


@contextmanager
def _unfinished(out: Path, shards: list[Shard], job: str) -> Iterator[tuple[Path, Journal]]:
    """A folder beside ``out`` that gets its name when the body succeeds, with the shards of an earlier run of the same
    ``job`` or empty, and the journal of what is in them."""
    path = out.with_name(out.name + ".journal")
    with whole_output(out, done_with=path) as part:
        if out.exists():
            raise CollabError(f"another run has just written {out}")
        sizes = {part / shard.file: shard.total for shard in shards}
        with Journal.open(path, job, sizes) as journal:
            with writing(out):
                for found in part.iterdir() if journal.done else ():
                    if found not in sizes:
                        found.unlink()
                if not journal.done:
                    shutil.rmtree(part, ignore_errors=True)
                    part.mkdir()
            try:
                check_space(out.parent, 0 if journal.done else sum(sizes.values()))
            except CollabError:
                shutil.rmtree(part, ignore_errors=True)
                path.unlink(missing_ok=True)
                raise
            yield part, journal


def companions(source: Path) -> Iterator[Path]:
    """What belongs to the model beside its weights and is copied; links are followed, as a download cache has them."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED or path.stem.lower().startswith(_LICENCES)
        if wanted and path.is_file() and path.name not in ("config.json", INDEX, PLAN_FILE):
            yield path


def _write_json(path: Path, value: object) -> None:
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON has escaped and UTF-8 has not
        data = (json.dumps(value, indent=2) + "\n").encode()
    _write(path, data)


def _write(path: Path, data: bytes) -> None:
    with writing(path, len(data)):
        write_synced(path, data)


def _index(tensors: list[SafetensorsTensor], shards: list[Shard]) -> dict[str, object]:
    table = {name: shard.file for shard in shards for name in shard.offsets}
    return {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": dict(sorted(table.items()))}


@contextmanager
def _open(part: Path, out: Path, shards: list[Shard], *, fresh: bool) -> Iterator[list[SizedFile]]:
    """The shards' files at their full size with their headers; synced when the body succeeds."""
    with ExitStack() as stack:
        files = [stack.enter_context(sized_file(part / shard.file, out)) for shard in shards]
        for file, shard in zip(files, shards, strict=True):
            if fresh:
                allocate(file, out, shard.total, shard.header)
            else:
                file.write(0, memoryview(shard.header))
        yield files


def _run(
    todo: list[Work], shards: list[Shard], files: list[SizedFile], journal: Journal, threads: int, report: Advance
) -> int:
    """Carry out of ``todo`` what is not done, in ``threads``; the first error ends it. How many were done already."""
    places = {
        name: (file, offset)
        for shard, file in zip(shards, files, strict=True)
        for name, offset in shard.offsets.items()
    }

    def written(index: int) -> str:
        """Checksum of what the files have where the piece belongs."""
        found = checksum(b"")
        for name, at, size in todo[index].spans():
            file, start = places[name]
            found = checksum(file.read(start + at, size), found)
        return found

    def one(index: int) -> str:
        for name, offset, values in todo[index].pieces():
            file, start = places[name]
            file.write(start + offset, memoryview(np.ascontiguousarray(values).data).cast("B"))
        return written(index)

    for index, expected in list(journal.done.items()):
        if index >= len(todo) or written(index) != expected:
            del journal.done[index]
    resumed = len(journal.done)

    def sync() -> None:
        for file in files:
            file.sync()

    JournaledWork(one, [work.values for work in todo], sync, journal, report).all(threads)
    return resumed
