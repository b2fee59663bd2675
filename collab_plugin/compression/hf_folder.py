"""Carry out a plan on a Hugging Face folder: a pruned folder that other engines load; whole or none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint
from collab_plugin.checkpoint.identity import fingerprint
from collab_plugin.checkpoint.safetensors import INDEX, SafetensorsCheckpoint
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.compression.gguf_file import peak_memory
from collab_plugin.compression.hf_config import pruned_config
from collab_plugin.compression.hf_precision import precisions, quantization_config
from collab_plugin.compression.hf_tensors import Work, outputs, works
from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import sync_folder
from collab_plugin.formats.safetensors_layout import SafetensorsTensor, Shard, shards_of
from collab_plugin.plans.artifact import check_names, check_one_count
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import write_plan
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

    ``bits_per_weight`` is 8 x ``bytes`` over the original's parameters, pruned ones included.
    """

    path: str
    bytes: int
    bits_per_weight: float
    files: int
    seconds: float
    peak_memory: int


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
    Raises CollabError for a source that is no Hugging Face folder, a plan of another source or with its own number
    of experts in each layer, an ``out`` that exists, a full disk, values that are not finite.
    """
    check_one_count(plan, "a config.json")
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        raise CollabError(
            f"{checkpoint.path} is a {checkpoint.format.upper()} file: `format` safetensors prunes Hugging Face "
            "folders; give the original, and a plan made of it"
        )
    if fingerprint(checkpoint) != plan.source.fingerprint:
        raise CollabError(
            f"the plan was made for another checkpoint than {checkpoint.path} "
            f"({plan.source.name}, {plan.source.fingerprint[:19]}...); make it again"
        )
    check_names(checkpoint.tensors, plan)
    _refuse(checkpoint, out)
    start = time.monotonic()
    blocks = precisions(checkpoint, plan) if precision == "plan" else None
    todo = list(outputs(checkpoint, plan, blocks))
    tensors = [tensor for output in todo for tensor in output.tensors()]
    shards = shards_of(tensors, shard_bytes)
    total = sum(shard.total for shard in shards)
    matrices = [o.name for o in todo if o.quantizable]
    quantization = quantization_config(blocks, matrices) if blocks is not None else None
    config = pruned_config(checkpoint, plan, load_json(checkpoint.path / "config.json"), quantization)
    if blocks is not None and quantization is None:
        config.pop("quantization_config", None)  # FP8 was widened and nothing else is quantized
    with _finished(out) as part:
        _copy_companions(checkpoint.path, part)
        _write_json(part / "config.json", config)
        write_plan(part / PLAN_FILE, plan)
        if len(shards) > 1:
            _write_json(part / INDEX, _index(tensors, shards))
        with _open(part, shards, total) as handles:
            _run(list(works(todo)), shards, handles, threads, report)
    weights = plan.source.parameters
    return CompressedFolder(str(out), total, total * 8 / weights, len(shards), time.monotonic() - start, peak_memory())


def _refuse(checkpoint: SafetensorsCheckpoint, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise CollabError(f"{out} exists; name a folder that does not")
    if not out.parent.is_dir():
        raise CollabError(f"{out.parent} does not exist; make the folder first")
    if checkpoint.path.resolve() in (out.parent.resolve(), *out.parent.resolve().parents):
        raise CollabError(f"{out} lies in the source folder; the source is never written to")


@contextmanager
def _finished(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that gets its name when the body succeeds, and is removed when it fails."""
    part = out.with_name(out.name + ".partial")
    lock = out.with_name(out.name + ".lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CollabError(f"cannot write {out}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CollabError(f"another run is writing {out}; wait for it or stop it") from None
        try:
            if out.exists():
                raise CollabError(f"another run has just written {out}")
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            part.mkdir()
            yield part
            sync_folder(part)
            part.rename(out)
            sync_folder(out.parent)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CollabError(f"no space for {out}: free some and run the same command again") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _copy_companions(source: Path, part: Path) -> None:
    """Copy what belongs to the model beside its weights; links are followed, as a download cache has them."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED or path.stem.lower().startswith(_LICENCES)
        if wanted and path.is_file() and path.name not in ("config.json", INDEX, PLAN_FILE):
            with (part / path.name).open("wb") as file:
                file.write(path.read_bytes())
                file.flush()
                os.fsync(file.fileno())


def _write_json(path: Path, value: object) -> None:
    with path.open("w") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _index(tensors: list[SafetensorsTensor], shards: list[Shard]) -> dict[str, object]:
    table = {name: shard.file for shard in shards for name in shard.offsets}
    return {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": dict(sorted(table.items()))}


@contextmanager
def _open(part: Path, shards: list[Shard], total: int) -> Iterator[list[int]]:
    """The shards' files at their full size with their headers; synced when the body succeeds."""
    free = shutil.disk_usage(part).free
    if total > free:
        raise CollabError(f"no space in {part.parent}: {total:,} bytes are needed and {free:,} are free")
    handles: list[int] = []
    try:
        for shard in shards:
            handle = os.open(part / shard.file, os.O_RDWR | os.O_CREAT, 0o644)
            handles.append(handle)
            os.ftruncate(handle, shard.total)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, shard.total)
            os.pwrite(handle, shard.header, 0)
        yield handles
        for handle in handles:
            os.fsync(handle)
    finally:
        for handle in handles:
            os.close(handle)


def _run(todo: list[Work], shards: list[Shard], handles: list[int], threads: int, report: Advance) -> None:
    """Carry out ``todo`` in ``threads``; the first error ends it."""
    places = {
        name: (handle, offset)
        for shard, handle in zip(shards, handles, strict=True)
        for name, offset in shard.offsets.items()
    }

    def one(work: Work) -> int:
        for name, offset, values in work.pieces():
            handle, at = places[name]
            at += offset
            view = memoryview(np.ascontiguousarray(values).data).cast("B")
            while view:
                count = os.pwrite(handle, view, at)
                view, at = view[count:], at + count
        return work.values

    done, total, waiting = 0, sum(work.values for work in todo), iter(todo)
    report(0, total)
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[int]] = set()
        try:
            while True:
                while len(running) < 2 * threads and (work := next(waiting, None)) is not None:
                    running.add(pool.submit(one, work))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += future.result()
                    report(done)
        finally:
            for future in running:
                future.cancel()
