"""The main job on one model, step by step: what `collab-plugin demo` and `make demo` run."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import collab_plugin as cp
from collab_plugin.cli.progress import shown
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.errors import CollabError
from collab_plugin.formats.json_document import to_plain
from collab_plugin.formats.output_path import writing

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoRequest:
    """``bpw``: bits per weight of the original parameter count, one comparison each.

    ``probe``: measure sensitivity, once a model.
    """

    model: Path
    calibration: tuple[Path, ...]
    validation: tuple[Path, ...]
    out: Path
    bpw: tuple[float, ...]
    chunks: int
    prompt: str
    threads: int
    probe: bool


@dataclass(frozen=True)
class Row:
    """One line of the final table. ``evaluation`` is against the original."""

    model: str
    variant: str
    bytes: int
    bits_per_weight: float
    evaluation: cp.Evaluation
    tokens_per_second: float


def run_demo(request: DemoRequest, say: Say) -> list[Row]:
    """Inspect, calibrate, plan, compress, evaluate and run; ``say`` gets the equivalent commands and text."""
    r, name = request, request.model.name
    with writing(r.out):
        r.out.mkdir(parents=True, exist_ok=True)
    say(f"$ collab-plugin inspect {r.model}")
    topology = cp.inspect(r.model)
    say(
        f"{topology.name}: {topology.total_parameters:,} parameters, {len(topology.moe_layers)} layers of "
        f"{topology.expert_count} experts, top-{topology.experts_used}"
    )
    stats = r.out / f"{name}.stats.gguf"
    say(f"$ collab-plugin calibrate {r.model} {_texts(r)} --chunks {r.chunks} -o {stats}")
    measured = cp.calibrate(r.model, texts=r.calibration, chunks=r.chunks, threads=r.threads, progress=shown())
    cp.write_stats(stats, measured)
    original = as_gguf(cp.open_checkpoint(r.model), r.threads, shown())
    with tempfile.TemporaryDirectory(dir=r.out) as folder:
        against = Path(folder) / "original.npy"
        cp.reference(original, against, texts=r.validation, chunks=r.chunks, threads=r.threads, progress=shown())
        rows = [_row(r, original, against, "original", topology.total_parameters)]
        sensitivity = _probe(r, stats, say)
        for bpw in r.bpw:
            # The baseline keeps every expert; ours has the same bytes.
            uniform = _variant(r, "uniform", stats, f"{bpw}bpw", say, allocator="uniform", keep="100%")
            rows.append(_row(r, uniform[0], against, f"uniform {uniform[1].base}", topology.total_parameters))
            budget = str(uniform[1].bytes)
            ours = _variant(r, "ours", stats, budget, say, experts_used="auto", sensitivity=sensitivity)
            rows.append(_row(r, ours[0], against, "ours", topology.total_parameters))
    _report(r, ours[1], stats, rows, say)
    say(f"$ collab-plugin run {r.out / name}.ours.gguf -p {r.prompt!r}")
    say(r.prompt + _generated(r, r.out / f"{name}.ours.gguf").text)
    return rows


def _texts(r: DemoRequest) -> str:
    return " ".join(f"--text {text}" for text in r.calibration)


def _probe(r: DemoRequest, stats: Path, say: Say) -> Path | None:
    """Measure sensitivity; None when that was not asked for."""
    if not r.probe:
        return None
    out = r.out / f"{r.model.name}.sensitivity.json"
    say(f"$ collab-plugin probe {r.model} --stats {stats} {_texts(r)} --experts-used auto -o {out}")
    out.unlink(missing_ok=True)  # of an earlier demo, perhaps on other texts
    cp.probe(
        r.model,
        stats=stats,
        texts=r.calibration,
        out=out,
        experts_used="auto",
        threads=r.threads,
        progress=shown(),
    )
    return out


def _variant(r: DemoRequest, variant: str, stats: Path, budget: str, say: Say, **options: Any) -> tuple[Path, cp.Plan]:
    """Plan with these ``options`` of `cp.plan` and compress one file; returns its path and plan."""
    plan_path = r.out / f"{r.model.name}.{variant}.plan.json"
    out = r.out / f"{r.model.name}.{variant}.gguf"
    shown_options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items() if value)
    say(f"$ collab-plugin plan {r.model} --stats {stats} --budget {budget}{shown_options} -o {plan_path}")
    plan = cp.plan(r.model, stats=stats, budget=budget, threads=r.threads, progress=shown(), **options)
    cp.write_plan(plan_path, plan)
    say(f"$ collab-plugin compress {r.model} --plan {plan_path} -o {out}")
    cp.compress(r.model, plan_path, out, threads=r.threads, progress=shown())
    if out.stat().st_size != plan.bytes:
        raise AssertionError(f"{out} has {out.stat().st_size} bytes, the plan says {plan.bytes}")
    return out, plan


def _row(r: DemoRequest, model: Path, against: Path, variant: str, parameters: int) -> Row:
    evaluation = cp.evaluate(
        model, against=against, texts=r.validation, chunks=r.chunks, threads=r.threads, progress=shown()
    )
    size = model.stat().st_size
    speed = _generated(r, model).tokens_per_second
    return Row(r.model.name, variant, size, size * 8 / parameters, evaluation, speed)


def _report(r: DemoRequest, plan: cp.Plan, stats: Path, rows: Sequence[Row], say: Say) -> None:
    """The page about the last plan, with its evaluation and the uniform files as rivals."""
    name = r.model.name
    evaluation, rivals, page = (r.out / f"{name}.{what}" for what in ("evaluation.json", "rivals.csv", "report.html"))
    evaluation.write_text(json.dumps(to_plain(rows[-1].evaluation)) + "\n")
    with rivals.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rival", "bytes", "mean_kld"))
        writer.writerows(
            (row.variant, row.bytes, row.evaluation.mean_kld) for row in rows if row.variant.startswith("uniform")
        )
    say(
        f"$ collab-plugin report {r.out / name}.ours.plan.json --model {r.model} --evaluation {evaluation} "
        f"--rivals {rivals} -o {page}"
    )
    facts = cp.report(plan, stats=stats, model=r.model, evaluations=[evaluation], rivals=rivals)
    try:
        cp.write_report(facts, page, progress=shown())
    except CollabError as error:  # matplotlib or Jinja2 is not installed: the demo goes on without
        say(str(error))


def _generated(r: DemoRequest, model: Path) -> cp.Generation:
    return cp.run(model, r.prompt, max_tokens=96, ctx=512, threads=r.threads)


def demo_models(root: Path) -> list[Path]:
    """The trained models of a checkout; CollabError when this is an installed wheel."""
    folder = root / "tests" / "models"
    models = sorted(path for path in folder.glob("*") if (path / "config.json").is_file())
    if not models:
        raise CollabError("the demo's models are in the project's checkout; run it there or give --model")
    return models


def demo_texts(root: Path, part: str) -> tuple[Path, ...]:
    """The committed texts of ``part`` ("calibration" or "validation"), one a domain."""
    return tuple(sorted((root / "tests" / "texts").glob(f"*.{part}.txt")))


def write_tables(rows: Sequence[Row], out: Path) -> None:
    """Write results.json and results.csv."""
    (out / "results.json").write_text(json.dumps([to_plain(row) for row in rows], indent=1) + "\n")
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "variant", "bytes", "bpw", "ppl", "mean_kld", "same_top1", "tokens_per_second"))
        for row in rows:
            e = row.evaluation
            writer.writerow(
                (
                    row.model,
                    row.variant,
                    row.bytes,
                    f"{row.bits_per_weight:.4f}",
                    f"{e.ppl:.4f}",
                    f"{e.mean_kld:.6f}",
                    f"{e.same_top1:.5f}",
                    f"{row.tokens_per_second:.1f}",
                )
            )
