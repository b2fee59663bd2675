"""The constants of docs/method.md §6 as each probed model has them, and what the others together say of it.

    python -m benchmarks.sensitivity.constants MODEL ... [--work /tmp/collab-quality] [-o benchmarks/results]

Calibrates and probes a model where WORK/NAME does not have that yet. A constant is the geometric mean over families
(models of one architecture and size are one: their geometric mean), and of a model that did not teach it over the
other families. `JUDGES` teach none. Prints both; writes constants.csv, where other models stay.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from benchmarks.quality.bench import ROOT, Bench
from collab_plugin.checkpoint.checkpoint import TensorInfo, quantizable
from collab_plugin.formats.tensor_names import Role
from collab_plugin.planning import learned_weights as law
from collab_plugin.planning.error_energy import error_energy
from collab_plugin.planning.measure.groups import part_of
from collab_plugin.planning.predictor import probed_weights

FIELDS = ("model", "family", "constant", "value")
Row = tuple[str, str, str, float]
JUDGES = ("unseen-deepseek-v3", "unseen-deep-olmoe")
"""Models that stand beside the others and teach nothing, so that they can judge what the others taught."""
ALMOST_ALL = 0.8
"""Share of the last stream from which on a layer says nothing of what later layers add."""
LEAST = 0.1
"""Of κ: a negative one, where a layer's errors count less than by their share, has no geometric mean."""


def constants(bench: Bench) -> Iterator[tuple[str, float]]:
    """Name and value of each constant that the model shows; several values of one name are one after another."""
    tensors, blocks = bench.checkpoint.tensors, bench.topology.block_count
    planning = bench.planning(bench.sensitivity)
    stats, matrix, probes = planning.stats, planning.imatrix, planning.sensitivity
    assert stats is not None and matrix is not None and probes is not None
    default = law.learned_weights(bench.checkpoint, bench.topology, stats, matrix).weights
    weights = {n: weight for n, weight in probed_weights(default, probes).items() if n in probes.probed and weight > 0}
    streams = stats.streams
    last = streams[max(streams)].after_layer
    output = weights["output.weight"]
    yield "output", output / law.logits_energy(bench.checkpoint)
    yield "embedding", weights["token_embd.weight"] / output
    downs: dict[int, float] = {}
    for info in _of(tensors.values(), weights, "expert down"):
        energy = error_energy(bench.checkpoint, info, matrix, stats.routing.get(info.layer or 0), bench.topology)
        if energy:
            stream = streams[info.layer or 0].after_layer
            downs[info.layer or 0] = weights[info.name]
            relative = weights[info.name] * stream / (energy * output)
            share = min(stream / last, 1.0)
            if info.layer == max(streams):
                yield "written", relative
            elif share < ALMOST_ALL:
                later = (relative / law.WRITTEN - share) / (1 - share)
                yield "spreads_first" if info.layer == 0 else "spreads", max(later, LEAST)
    for info in _of(tensors.values(), weights, "attention"):
        yield "attention", weights[info.name] / output * max(blocks, law.TABLE_LAYERS) / law.TABLE_LAYERS
    for info in _of(tensors.values(), weights, "expert gate/up"):
        if (info.layer or 0) in downs:
            name = "inner_last" if info.layer == max(streams) else "inner_least" if info.layer == 0 else "inner"
            yield name, weights[info.name] / downs[info.layer or 0]


def _of(tensors: Iterable[TensorInfo], weights: Mapping[str, float], part: str) -> Iterator[TensorInfo]:
    return (t for t in tensors if quantizable(t) and t.name in weights and part_of(t) == part)


def family_of(bench: Bench) -> str:
    shared = any(info.role == Role.SHARED_EXPERT for info in bench.checkpoint.tensors.values())
    shape = bench.topology
    return f"{bench.checkpoint.architecture}-{shape.block_count}x{shape.expert_count}" + ("+shared" if shared else "")


def learnt(rows: Sequence[Row], without: str = "") -> dict[str, float]:
    """Constant -> geometric mean over families but one, judges left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for model, family, name, value in rows:
        if family != without and model not in JUDGES:
            found.setdefault(name, {}).setdefault(family, []).append(math.log(value))
    return {name: math.exp(fmean(map(fmean, by_family.values()))) for name, by_family in found.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--work", type=Path, default=Path("/tmp/collab-quality"))
    p.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results")
    a = p.parse_args()
    out, names = a.output / "constants.csv", {m.name for m in a.models}
    rows: list[Row] = [row for row in _read(out) if row[0] not in names]
    for model in a.models:
        bench = Bench(model, a.work / model.name, 4, a.threads)
        found: dict[str, list[float]] = {}
        for name, value in constants(bench):
            found.setdefault(name, []).append(value)
        rows += [(model.name, family_of(bench), name, median(values)) for name, values in found.items()]
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *rows])
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """A row a constant: what each model has, judges last, what all families give, and the range without one."""
    models = sorted(dict.fromkeys(row[0] for row in rows), key=lambda model: model in JUDGES)
    every, families = learnt(rows), {row[1] for row in rows if row[0] not in JUDGES}
    heads = [f"{model} (judge)" if model in JUDGES else model for model in models]
    lines = ["| | " + " | ".join(heads) + " | all families | without one |", "|---" * (len(models) + 3) + "|"]
    for name, value in every.items():
        own = {row[0]: f"{row[3]:.3g}" for row in rows if row[2] == name}
        without = [left[name] for family in families if name in (left := learnt(rows, family))]
        lines.append(
            f"| {name} | " + " | ".join(own.get(model, "") for model in models)
            + f" | {value:.3g} | {min(without):.3g} to {max(without):.3g} |"
        )  # fmt: skip
    return "\n".join(lines)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [(r["model"], r["family"], r["constant"], float(r["value"])) for r in csv.DictReader(file)]


if __name__ == "__main__":
    main()
