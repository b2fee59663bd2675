"""Carry out one job of a llama.cpp target in a process of its own, as `verify` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from collab_llamacpp.targets.llamacpp_targets import LlamaCppTargets

from collab_plugin.engines.target import KernelBench, LoadOptions, Session

Arrays = dict[str, np.ndarray]


def in_child(
    name: str, job: Mapping[str, Any], folder: Path, *, seconds: float = 240
) -> tuple[subprocess.CompletedProcess[str], Arrays]:
    """Run `main` with ``job``; how the child ended, and its arrays when it did so by itself."""
    out = folder / f"{name.replace(':', '_')}.npz"
    given = {"target": name, "out": str(out), **job}
    environment = {**os.environ, **LlamaCppTargets().environment(name)}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=environment,
    )
    if done.returncode:
        return done, {}
    with np.load(out, allow_pickle=False) as arrays:
        return done, dict(arrays)


def session_job(model: Path, tokens: Sequence[int], options: LoadOptions, **more: int) -> dict[str, Any]:
    return {"do": "session", "model": str(model), "tokens": list(tokens), "options": asdict(options), **more}


def run_session(session: Session, job: Mapping[str, Any]) -> Arrays:
    """What a session gives: logits twice, since nothing may depend on what came before; the rest where asked."""
    tokens = job["tokens"]
    found = {"logits": session.logits(tokens)}
    found |= {f"ids.{r.layer}": r.ids for r in session.routing(tokens)}
    found["again"] = session.logits(tokens)
    if not job["steps"]:
        return found
    for batch in (1, 7):
        found[f"batch.{batch}"] = session.logits(tokens, batch=batch)
    top, greedy = session.top(tokens, 3), session.greedy(tokens[: job["prompt"]], job["steps"])
    found |= {"top.ids": top.ids, "top.values": top.values}
    return found | {"greedy.ids": greedy.ids, "greedy.values": greedy.values}


def run_bench(bench: KernelBench, job: Mapping[str, Any]) -> Arrays:
    """Products of the operands in the file job["operands"], by type and number of rows."""
    found: Arrays = {"types": np.array(bench.types())}
    with np.load(job["operands"], allow_pickle=False) as operands:
        for type_name in job["types"]:
            weights = operands[f"{type_name}.weights"]
            for n in job["rows"]:
                x, ids = operands[f"x.{n}"], operands[f"ids.{n}"]
                found[f"{type_name}.{n}"] = bench.mul_mat(type_name, weights[0], x)
                if job.get("experts", True):
                    found[f"{type_name}.{n}.id"] = bench.mul_mat_id(type_name, weights, x, ids)
            found[f"{type_name}.where"] = np.array(bench.where(type_name))  # type: ignore[attr-defined]  # ours
    return found


def main(job: Mapping[str, Any]) -> None:
    target = LlamaCppTargets().open(job["target"])
    if job["do"] == "bench":
        with target.kernels() as bench:
            found = run_bench(bench, job)
    else:
        with target.load(Path(job["model"]), LoadOptions(**job["options"])) as session:
            found = run_session(session, job)
    np.savez(job["out"], **found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
