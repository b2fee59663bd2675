"""Commands whose JSON and files are recorded: what a change of the code's shape may not change.

`python tests/behaviour/commands.py` records anew; a difference then shows in the diff, and wants a reason.
Everything here goes through the command line and through gguf-py alone, so that it says nothing of the code's shape.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from gguf import GGUFReader, GGUFWriter

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
TRAINED = HERE.parent / "models" / "tiny-deepseek-v3"
# What differs from run to run, machine to machine or release to release.
_VOLATILE = {"versions", "seconds", "peak_memory", "path", "output", "written"}
Record = dict[str, Any]

PLANS: dict[str, tuple[str, ...]] = {
    "default": ("--budget", "2.7bpw"),
    "kept": ("--keep", "75%", "--budget", "2.2bpw"),
    "searched": ("--budget", "1.9bpw", "--experts-used", "auto", "--criterion", "mass", "--order", "importance"),
    "varied": ("--keep", "75%", "--layers", "varied", "--budget", "2.6bpw"),
    "uniform": ("--allocator", "uniform", "--keep", "100%", "--budget", "3.5bpw"),
    "limits": ("--floor", "attention=Q6_K", "--ceiling", "output=Q5_K", "--base", "IQ2_S", "--budget", "3.2bpw"),
    "random": ("--criterion", "random", "--criterion-option", "seed=7", "--keep", "50%", "--budget", "2.4bpw"),
    "alpha": ("--criterion-option", "alpha=0.2", "--keep", "50%", "--budget", "2.4bpw", "--borrow", "0"),
    "ollama": ("--for", "ollama", "--budget", "4.3bpw"),
    "keep-types": ("--keep-types", "--keep", "50%"),
}
GROUPED: dict[str, tuple[str, ...]] = {"disbanded": ("--groups", "disband", "--keep", "50%", "--budget", "2.5bpw")}
COMPRESSED = ("default", "kept", "searched", "keep-types")


def run(*arguments: object) -> Any:
    """What the command prints with --json."""
    from collab_plugin.cli import main

    done = CliRunner().invoke(main, [str(a) for a in (*arguments, "--json")])
    if done.exit_code:
        raise AssertionError(f"{arguments}: {done.output}") from done.exception
    return json.loads(done.stdout)


def same(value: Any, folder: Path) -> Any:
    """``value`` without what varies: floats to 6 digits, paths without their folder."""
    if isinstance(value, dict):
        return {k: same(v, folder) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list):
        return [same(v, folder) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


def write_stats(model: Path, path: Path) -> Path:
    """Statistics of an imagined calibration, as docs/formats/stats.md has them, of a GGUF made with every expert."""
    rng = np.random.default_rng(5)
    reader = GGUFReader(model)
    experts = next(int(t.shape[-1]) for t in reader.tensors if t.name.endswith("ffn_up_exps.weight"))
    writer = GGUFWriter(path, "", use_temp_file=False)
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["imagined.txt"])
    writer.add_uint32("imatrix.chunk_count", 8)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_uint32("collab.stats.version", 1)
    writer.add_uint64("collab.stats.tokens", 4096)
    writer.add_string("collab.stats.engine", "imagined")
    writer.add_string("collab.stats.model_id", "")
    top_k = 4
    popularity: dict[int, Any] = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] != "blk" or not tensor.name.endswith(".weight") or len(tensor.shape) < 2 or "_inp" in tensor.name:
            continue
        layer, n = int(parts[1]), int(tensor.shape[0])
        if "_exps" in tensor.name:
            if layer not in popularity:
                share = rng.dirichlet(np.full(experts, 1.5))
                popularity[layer] = np.maximum(np.rint(share * 4096 * top_k), 1)
            count = popularity[layer].astype(np.float32)
            sums = (rng.gamma(1.0, 1.0, (experts, n)) * count[:, None]).astype(np.float32)
        else:
            slices = int(tensor.shape[2]) if len(tensor.shape) == 3 else 1
            count = np.full(1, 4096, np.float32)
            sums = (rng.gamma(1.0, 1.0, (1, n * slices)) * 4096).astype(np.float32)
        writer.add_tensor(f"{tensor.name}.in_sum2", sums)
        writer.add_tensor(f"{tensor.name}.counts", count.reshape(-1, 1))
    for layer, count in sorted(popularity.items()):
        weight = count * rng.uniform(0.1, 0.5, experts)
        rows = np.stack([count, weight, weight * rng.gamma(4.0, 1.0, experts)])
        high = rows.astype(np.float32)
        writer.add_tensor(f"blk.{layer}.collab_router", np.concatenate([high, (rows - high).astype(np.float32)], 1))
        writer.add_uint64(f"collab.stats.layer_tokens.{layer}", 4096)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def digests(path: Path) -> Record:
    """Of a GGUF: its header and its data apart; of a folder: every file."""
    if path.is_dir():
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(path.iterdir())}
    data = path.read_bytes()
    start = min(int(t.data_offset) for t in GGUFReader(path).tensors)
    return {
        "bytes": len(data),
        "tensors": struct.unpack("<Q", data[8:16])[0],
        "header": hashlib.sha256(data[:start]).hexdigest(),
        "data": hashlib.sha256(data[start:]).hexdigest(),
    }


def records(name: str, model: Path, folder: Path) -> Iterator[tuple[str, Record]]:
    """(case, what it gave) for one model; ``folder`` is for files."""
    yield f"{name}.inspect", same(run("inspect", model), folder)
    gguf = model
    if model.is_dir():
        # A file with every tensor as it is stored: what statistics are imagined of.
        whole = folder / "whole.json"
        run("plan", model, "--keep-types", "-o", whole)
        run("compress", model, "--plan", whole, "-o", folder / "whole.gguf")
        gguf = folder / "whole.gguf"
        yield f"{name}.whole", digests(gguf)
    stats = write_stats(gguf, folder / f"{name}.stats.gguf")
    plans = PLANS | (GROUPED if "deepseek" in name else {})
    for case, options in plans.items():
        plan = folder / f"{name}.{case}.json"
        made = run("plan", model, "--stats", stats, "--allow-few-tokens", *options, "-o", plan)
        yield f"{name}.plan.{case}", same(made, folder)
        if case in COMPRESSED:
            out = folder / f"{name}.{case}.gguf"
            told = run("compress", model, "--plan", plan, "--threads", 1, "-o", out)
            yield f"{name}.compress.{case}", same(told, folder) | {"digests": digests(out)}
        if case == "kept" and model.is_dir():
            out = folder / f"{name}.{case}"
            told = run("compress", model, "--plan", plan, "--format", "safetensors", "-o", out)
            yield f"{name}.folder.{case}", same(told, folder) | {"digests": digests(out)}
        if case == "default":
            yield f"{name}.report", same(run("report", plan, "--model", model), folder)
    a, b = (folder / f"{name}.{case}.json" for case in ("default", "kept"))
    yield f"{name}.diff", same(run("diff", a, b), folder)


def models(folder: Path) -> dict[str, Path]:
    from small_models.random_moe import write_deepseek2, write_qwen3moe

    return {
        "random-qwen3moe": write_qwen3moe(folder / "random-qwen3moe.gguf"),
        "random-deepseek2": write_deepseek2(folder / "random-deepseek2.gguf"),
        "tiny-deepseek-v3": TRAINED,
    }


def record() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, model in models(folder).items():
            for case, found in records(name, model, folder):
                (RECORDED / f"{case}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
                print(case)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    record()
