"""Commands run on mutants in children that are forked, limited in time and memory, and judged from outside.

A command ends well when its exit code is 0, or 2 with one line of error, and it leaves nothing under the output's name
in the second case.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.formats.json_document import from_plain
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan import Plan
from collab_plugin.plans.plan_file import plan_fingerprint, write_plan
from collab_plugin.stats.sensitivity import GroupProbe, PruningProbe, Sensitivity
from collab_plugin.stats.sensitivity_file import write_sensitivity
from collab_plugin.stats.stats import ImatrixEntry, LayerRouting, Stats
from collab_plugin.stats.stats_file import write_stats
from small_models.few_bits import few_bits
from small_models.hf_folder import qwen, write_folder
from small_models.imatrix_files import write_imatrix
from small_models.mutants import mutant
from small_models.odd_gguf import EXPERTS, keys, tensors, values, write
from small_models.tiny_moe import write_qwen3moe

SECONDS, MEMORY = 30, 2 * 2**30
OUT, FOLDER = "out", "out-folder"
F32 = np.float32


@dataclass(frozen=True)
class Subject:
    """A file that is changed and the commands that read it; "{}" stands for the mutant, names are of the base folder.

    ``header``: bytes from the start that are changed. ``inside``: the name of the file where ``file`` is a folder.
    """

    name: str
    file: str
    kind: str
    commands: tuple[tuple[str, ...], ...]
    header: int = 2**20
    inside: str = ""
    repair: Callable[[bytes], bytes] = lambda data: data


@dataclass(frozen=True)
class Trial:
    """How one command ended. ``verdict``: "read" or "refused" when well, else what was wrong."""

    subject: str
    seed: int
    command: str
    verdict: str
    seconds: float
    said: str

    @property
    def well(self) -> bool:
        return self.verdict in ("read", "refused")


def write_base(folder: Path) -> Path:
    """The files that mutants are made of, and what commands read beside them."""
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "th", "é", "<|end|>"],
        "tokenizer.chat_template": "{{ messages }}",
    }
    groups = {"expert_group_count": 2, "expert_group_used_count": 1, "expert_shared_count": 0, "context_length": 64}
    bias = {"blk.0.exp_probs_b.bias": values(EXPERTS)}
    model = write(
        folder / "model.gguf", tensors() | bias, keys("deepseek2", **groups) | vocabulary, architecture="deepseek2"
    )
    split = write(folder / "split.gguf", tensors(), keys() | vocabulary, split=4)
    assert not split.exists()
    checkpoint = open_gguf(model)
    count = np.array([90, 20, 70, 60])
    entries = {
        name: ImatrixEntry(np.ones((EXPERTS, info.shape[-1]), F32), count.astype(F32))
        if "exps" in name
        else ImatrixEntry(np.ones((1, info.shape[-1]), F32), np.array([120], F32))
        for name, info in checkpoint.tensors.items()
        if name.startswith("blk") and len(info.shape) > 1 and "inp" not in name
    }
    routing = {0: LayerRouting(120, count, count / 2, count * 3.0)}
    stats = Stats(
        routing=routing,
        imatrix=entries,
        tokens=120,
        chunk_size=60,
        datasets=("a.txt",),
        model_id=model_id(checkpoint),
        engine="imagined",
        text_sketch=np.arange(9, dtype=np.uint64),
    )
    write_stats(folder / "stats.gguf", stats)
    write_imatrix(folder / "imatrix.gguf", entries)
    write_plan(folder / "plan.json", copy_plan(checkpoint))
    every = tuple(name for name in checkpoint.tensors if "exps" in name)
    sensitivity = Sensitivity(
        model_id=model_id(checkpoint), stats_sha256=file_sha256(folder / "stats.gguf"), texts=("a.txt",),
        text_sha256="ab" * 32, ctx=60, windows=2, level_windows=2, tokens=60, tokens_run=120, engine="imagined",
        groups=(GroupProbe(every, 0.1, 0.02, 0.001),),
        prunings=(PruningProbe("freq-score groups=disband", 2, 2, 0.1, 0.01),),
    )  # fmt: skip
    write_sensitivity(folder / "sensitivity.json", sensitivity)
    config, stored = qwen()
    hf = write_folder(folder / "hf", config, stored, shards=2)
    write_plan(folder / "hf-plan.json", copy_plan(open_safetensors(hf)))
    bits, _ = few_bits(folder / "bits", "nvfp4")
    write_plan(folder / "bits-plan.json", copy_plan(open_safetensors(bits)))
    return folder


def with_fingerprint(data: bytes) -> bytes:
    """A changed plan with the fingerprint of what it says now, so that more than the fingerprint is looked at."""
    try:
        document = json.loads(data)
        members = {k: v for k, v in document.items() if k not in ("format", "version", "fingerprint")}
        document["fingerprint"] = plan_fingerprint(from_plain(Plan, members))
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except (CollabError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return data


PRUNE = ("--keep", "50%", "--groups", "disband", "--keep-types", "--allow-few-tokens", "-o", OUT)
_GGUF = (
    ("inspect", "{}", "--json"),
    ("plan", "{}", "--keep-types", "--keep", "100%", "-o", OUT),
    ("plan", "{}", "--stats", "stats.gguf", *PRUNE),
    ("compress", "{}", "--plan", "plan.json", "-o", OUT),
)
_HF = (
    ("inspect", "{}", "--json"),
    ("compress", "{}", "--plan", "hf-plan.json", "-o", OUT),
    ("compress", "{}", "--plan", "hf-plan.json", "--format", "safetensors", "--precision", "original", "-o", FOLDER),
)
_BITS = (_HF[0], ("compress", "{}", "--plan", "bits-plan.json", "-o", OUT))
_PLAN = (
    ("compress", "model.gguf", "--plan", "{}", "-o", OUT),
    ("diff", "plan.json", "{}"),
    ("report", "{}", "--json"),
)
_STATS = (
    ("plan", "model.gguf", "--stats", "{}", *PRUNE),
    ("plan", "model.gguf", "--stats", "{}", "--keep-types", "--allow-few-tokens", "-o", OUT),
)
SUBJECTS = (
    Subject("GGUF header", "model.gguf", "bytes", _GGUF, 1700),
    Subject("GGUF shard", "split-00002-of-00002.gguf", "bytes", (("inspect", "{}"),), 500),
    Subject("safetensors header", "hf", "safetensors", _HF, inside="model-00001-of-00002.safetensors"),
    Subject("config.json", "hf", "json", _HF, inside="config.json"),
    Subject("safetensors header, NVFP4", "bits", "safetensors", _BITS, inside="model.safetensors"),
    Subject("config.json, NVFP4", "bits", "json", _BITS, inside="config.json"),
    Subject("index", "hf", "json", _HF[:2], inside="model.safetensors.index.json"),
    Subject("tokenizer.json", "hf", "json", _HF[:2], inside="tokenizer.json"),
    Subject("tokenizer_config.json", "hf", "json", _HF[:2], inside="tokenizer_config.json"),
    Subject("imatrix", "imatrix.gguf", "bytes", _STATS, 1200),
    Subject("stats", "stats.gguf", "bytes", _STATS, 2000),
    Subject("plan", "plan.json", "json", _PLAN),
    Subject("plan, signed anew", "plan.json", "json", _PLAN, repair=with_fingerprint),
    Subject(
        "sensitivity",
        "sensitivity.json",
        "json",
        (("plan", "model.gguf", "--stats", "stats.gguf", "--sensitivity", "{}", *PRUNE),),
    ),
)


def native_subject(base: Path) -> Subject:
    """A model that llama.cpp runs in the child process of its own, its header changed; written into ``base``."""
    write_qwen3moe(base / "runs.gguf")
    (base / "words.txt").write_text("the quick brown fox jumps over a dog. " * 9)
    commands = (
        ("run", "{}", "-p", "the", "-n", "1", "--ctx", "64", "--threads", "1"),
        ("calibrate", "{}", "--text", "words.txt", "--ctx", "64", "--threads", "1", "-o", OUT),
    )
    return Subject("GGUF run by llama.cpp", "runs.gguf", "bytes", commands, 6900)


def run_all_unchanged(base: Path, work: Path) -> None:
    """Run every command on the files as they are, in this process: all succeed, and children need import nothing."""
    for subject in SUBJECTS:
        for command in subject.commands:
            _lay_out(base, subject, work, lambda data: data)
            here = Path.cwd()
            os.chdir(work)
            try:
                done = CliRunner().invoke(main, _arguments(subject, command))
            finally:
                os.chdir(here)
            assert done.exit_code == 0, (subject.name, command, done.output)
            clear(work)


def _lay_out(base: Path, subject: Subject, work: Path, change: Callable[[bytes], bytes]) -> None:
    """Links to the base files in ``work``, and the file or folder of ``subject`` with its file changed."""
    for path in base.iterdir():
        (work / path.name).symlink_to(path)
    source, at = base / subject.file, work / _name(subject)
    if subject.inside:
        at.mkdir()
        for path in source.iterdir():
            if path.name != subject.inside:
                (at / path.name).symlink_to(path)
        source, at = source / subject.inside, at / subject.inside
    at.unlink(missing_ok=True)
    at.write_bytes(change(source.read_bytes()))


def _name(subject: Subject) -> str:
    """A shard keeps its name, so that the others are found."""
    return subject.file if "-of-" in subject.file else f"mutant{Path(subject.file).suffix}"


def _arguments(subject: Subject, command: Sequence[str]) -> list[str]:
    return [_name(subject) if word == "{}" else word for word in command]


def try_mutant(base: Path, subject: Subject, seed: int, work: Path) -> Trial:
    """Make the mutant ``seed`` of ``subject`` in the empty folder ``work``, run one of its commands on it, judge."""
    command = subject.commands[seed % len(subject.commands)]
    _lay_out(base, subject, work, lambda data: subject.repair(mutant(data, subject.kind, seed, subject.header)))
    arguments = _arguments(subject, command)
    start = time.monotonic()
    status = _in_a_child(lambda: _run(arguments), work)
    trial = Trial(subject.name, seed, " ".join(command), "", time.monotonic() - start, "")
    said = (work / "stderr").read_text("utf-8", "replace") if (work / "stderr").exists() else ""
    return replace(trial, verdict=_verdict(status, said, work), said=said[-2000:])


def clear(work: Path) -> None:
    """Empty the folder again."""
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _run(arguments: Sequence[str]) -> int:
    try:
        main(list(arguments), prog_name="collab-plugin")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _in_a_child(call: Callable[[], int], work: Path) -> int | str:
    """The exit code of ``call`` in a child with its streams in ``work``, or how it ended otherwise."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(work)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = call()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _verdict(status: int | str, said: str, work: Path) -> str:
    if isinstance(status, str):
        return status
    if "Traceback" in said or status not in (0, 2):
        return "traceback"
    if not status:
        return "read"
    errors = [line for line in said.splitlines() if line.startswith(("error:", "Error:"))]
    if len(errors) != 1 or said.splitlines()[-1] != errors[0]:
        return "more than a line"
    return "output left" if (work / OUT).exists() or (work / FOLDER).exists() else "refused"
