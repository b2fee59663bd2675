"""`collab-plugin plan` from the command line: what it prints, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGUFWriter
from small_models.model_bench import Bench

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.plans.plan_file import read_plan
from collab_plugin.stats.stats_file import read_stats, write_stats

PROGRESS = ("measuring quantization errors",)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def run(*arguments: object) -> Result:
    return command("plan", *arguments)


def one_line(result: Result) -> str:
    """The error's only line; exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


def _write_published_imatrix(bench: Bench, path: Path) -> Path:
    """What llama-imatrix writes: sums and counts, and keys of its own alone."""
    writer = GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, entry in bench.source.stats.imatrix.items():
        writer.add_tensor(f"{name}.in_sum2", entry.sum2)
        writer.add_tensor(f"{name}.counts", entry.count.reshape(-1, 1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_plan_is_written_and_shown(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run(
        bench.path,
        "--stats",
        bench.stats_path,
        "--budget",
        "4.5bpw",
        "--keep",
        "75%",
        "--types",
        "q4_k, Q6_K",
        "-o",
        out,
    )
    assert result.exit_code == 0, result.output
    plan = read_plan(out)
    assert f"{plan.bytes:,} bytes" in result.stdout
    assert "experts kept a layer: 12 (freq-score" in result.stdout
    assert plan.bytes <= int(4.5 * bench.topology.total_parameters / 8)
    assert plan.calibration is not None
    assert plan.calibration.file == bench.stats_path.name


def test_json_alone_on_stdout(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run(bench.path, "--stats", bench.stats_path, "--keep-types", "--keep", 12, "--json", "-o", out)
    shown, written = json.loads(result.stdout), json.loads(out.read_text())
    assert shown == {k: v for k, v in written.items() if k not in ("format", "version", "fingerprint")}


def test_diff(bench: Bench, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for keep, out in (("16", a), ("12", b)):
        assert run(bench.path, "--stats", bench.stats_path, "--keep-types", "--keep", keep, "-o", out).exit_code == 0
    shown = command("diff", a, b)
    assert shown.exit_code == 0
    assert "expert_count" in shown.stdout
    assert "kept only in A, layer 1" in shown.stdout
    values = json.loads(command("diff", a, b, "--json").stdout)["values"]
    assert values["expert_count"] == {"a": 16, "b": 12}
    assert "the plans make the same file" in command("diff", a, a).stdout


def test_published_imatrix_is_announced(bench: Bench, tmp_path: Path) -> None:
    imatrix = _write_published_imatrix(bench, tmp_path / "published.gguf")
    out = tmp_path / "plan.json"
    result = run(bench.path, "--stats", imatrix, "--keep-types", "--keep", "12", "-o", out)
    assert result.exit_code == 0, result.output
    assert "note: FREQUENCY ONLY" in result.stdout
    plan = read_plan(out)
    assert plan.pruning.criterion == "freq"
    assert plan.calibration is not None
    assert plan.calibration.frequency_only
    assert plan.calibration.tokens == 2048
    reap = run(bench.path, "--stats", imatrix, "--keep", "12", "--budget", "9MB", "--criterion", "reap", "-o", out)
    assert "criterion reap needs reap_sum, which the stats lack (imatrix of another tool)" in one_line(reap)


def test_keep_types_on_a_quantized_file(bench: Bench, tmp_path: Path) -> None:
    """Quantize to Q4_K, then prune that file: stored types stay, sizes shrink, nothing is measured."""
    quantized = tmp_path / "q4_k.gguf"
    first = bench.plan(bench.topology.total_parameters * 2, types=("Q4_K",))
    compress(bench.checkpoint, first, bench.source.stats, quantized, kernels=bench.kernels, threads=1,
             report=lambda done, total=None: None)  # fmt: skip
    out = tmp_path / "plan.json"
    result = run(quantized, "--stats", bench.stats_path, "--keep-types", "--keep", "0.5", "-o", out)
    assert result.exit_code == 0, result.output
    assert "measuring" not in result.stdout
    plan = read_plan(out)
    stored = open_gguf(quantized)
    for name, tensor in plan.tensors.items():
        info = stored.tensors[name]
        assert tensor.type == info.type.name
        assert tensor.nbytes == (info.nbytes // 2 if info.by_expert else info.nbytes)
    pruned = tmp_path / "pruned.gguf"
    compress(stored, plan, None, pruned, kernels=None, threads=1, report=lambda done, total=None: None)
    assert pruned.stat().st_size == plan.bytes
    layer, kept = next(iter(plan.pruning.kept.items()))
    name = f"blk.{layer}.ffn_up_exps.weight"
    for at, expert in enumerate(kept):
        np.testing.assert_array_equal(open_gguf(pruned).read_raw(name, expert=at), stored.read_raw(name, expert=expert))


# -- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "best"], "unknown criterion 'best'; known: auto, freq, freq-score, mass, random, reap, score"),
        (["--allocator", "greedy"], "unknown allocator 'greedy'; known: knapsack, uniform"),
        (["--base", "IQ9_X"], "unknown type 'IQ9_X'; known: IQ1_S"),
        (["--types", "Q4_K,Q9_K"], "unknown type 'Q9_K'"),
        (["--types", "Q4_K,"], "unknown type ''"),
        (["--floor", "attention=Q9_K"], "unknown type 'Q9_K'"),
        (["--floor", "attn=Q4_K"], "unknown role 'attn'; known: embedding"),
        (["--floor", "output=Q6_K", "--ceiling", "output=Q4_K"], "the floor of output (Q6_K) is above its ceiling"),
        (["--keep", "half"], "--keep 'half' is neither auto, a share"),
        (["--keep", "17"], "17 experts of 16 cannot be kept"),
        (["--experts-used", "17"], "17 experts a token cannot come from"),
        (["--keep", "4", "--experts-used", "5"], "5 experts a token cannot come from"),
    ],
)
def test_unknown_names_and_numbers(options: list[str], message: str, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run(bench.path, "--stats", bench.stats_path, "--budget", "9MB", "-o", out, *options)
    assert message in one_line(result)
    assert not out.exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("plenty", "budget 'plenty' is no size"),
        ("0GB", "budget '0GB' is zero"),
        ("1KB", "no plan holds 1,000 bytes: the smallest with "),
        (None, "--budget is missing"),
    ],
)
def test_budgets_that_cannot_be(budget: str | None, message: str, bench: Bench, tmp_path: Path) -> None:
    given = ["--budget", budget] if budget else []
    result = run(bench.path, "--stats", bench.stats_path, "-o", tmp_path / "plan.json", *given)
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--text is empty: give UTF-8 files"),
        (["--text", "none.txt"], "cannot read the text none.txt"),
        (["--text", "TEXT", "--keep-types"], "--confirm has nothing to measure with --keep-types; leave it out"),
        (["--text", "TEXT", "--engine", "nope"], "unknown engine 'nope'"),
        (["--text", "TEXT", "--budget", "0GB"], "budget '0GB' is zero"),
        (["--text", "TEXT", "--experts-used", "17"], "17 experts a token cannot come from"),
        (["--text", "TEXT", "--floor", "attn=Q4_K"], "unknown role 'attn'"),
        (["--text", "TEXT", "--keep", "17"], "17 experts of 16 cannot be kept"),
    ],
)
def test_what_cannot_be_confirmed(options: list[str], message: str, softmax: Bench, text: Path, tmp_path: Path) -> None:
    """All of it before anything runs."""
    given = [str(text if o == "TEXT" else o) for o in ["--confirm", "2", *options]]
    result = run(softmax.path, "--stats", softmax.stats_path, "--budget", "9MB", "-o", tmp_path / "plan.json", *given)
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion-option", "beta=1"], "criterion auto has no option 'beta'; it has alpha"),
        (["--criterion-option", "alpha=much"], "criterion auto: option alpha is 'much', which is not a number"),
        (["--criterion-option", "alpha=1.5"], "option alpha is 1.5, which is not between 0 and 1"),
        (["--criterion-option", "alpha=nan"], "option alpha is nan, which is not between 0 and 1"),
        (["--criterion", "reap", "--criterion-option", "alpha=1"], "criterion reap has no option 'alpha'; it has none"),
        (["--criterion", "random", "--criterion-option", "seed=1.5"], "option seed is '1.5', which is not a whole"),
        (["--criterion", "random", "--criterion-option", "seed=-1"], "option seed is -1, which is negative"),
        (["--allocator-option", "minutes=1"], "allocator knapsack has no option 'minutes'; it has seconds"),
        (["--allocator-option", "seconds=0"], "option seconds is 0.0, which is not above 0"),
        (["--allocator", "uniform", "--allocator-option", "seconds=9"], "allocator uniform has no option 'seconds'"),
    ],
)
def test_options_that_nobody_declared(options: list[str], message: str, softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--stats", softmax.stats_path, "--budget", "9MB", "-o", tmp_path / "plan.json", *options)
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["alpha", "alpha=", "=0.5"])
@pytest.mark.parametrize(
    ("option", "message"),
    [("--criterion-option", "write NAME=VALUE, such as alpha=0.2"), ("--floor", "write ROLE=TYPE, such as attention=")],
)
def test_options_without_a_value(value: str, option: str, message: str, softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--budget", "9MB", "-o", tmp_path / "plan.json", option, value)
    assert result.exit_code == 2
    assert message in result.stderr


def test_options_of_the_allocator_are_recorded(softmax: Bench, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run(
        softmax.path, "--stats", softmax.stats_path, "--budget", "5bpw", "--types", "Q4_K,Q8_0", "--keep", 16,
        "--allocator-option", "seconds=3", "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_plan(out).allocator_options == {"seconds": 3.0}


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", "²"])
def test_experts_used_is_auto_or_a_number(value: str, softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--stats", softmax.stats_path, "--budget", "9MB", "-o", tmp_path / "plan.json",
                 "--experts-used", value)  # fmt: skip
    assert result.exit_code == 2
    assert "write auto, or a number of at least 1" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--ctx", "0"], ["--confirm", "-1"], ["--confirm", "33"], ["--chunks", "0"]])
def test_numbers_out_of_range(options: list[str], softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--budget", "9MB", "-o", tmp_path / "plan.json", *options)
    assert result.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in result.stderr


def test_groups_that_do_not_divide(grouped: Bench, tmp_path: Path) -> None:
    options = ["--stats", grouped.stats_path, "--keep-types", "-o", tmp_path / "plan.json"]
    assert "10 experts do not divide into 4 groups; keep 8 or 12" in one_line(run(grouped.path, *options, "--keep", 10))
    assert "4 experts in 4 groups leave 1 a group" in one_line(run(grouped.path, *options, "--keep", 4))


def test_stats_of_another_model(softmax: Bench, grouped: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--stats", grouped.stats_path, "--budget", "9MB", "-o", tmp_path / "plan.json")
    assert "was calibrated on another model" in one_line(result)


def test_too_few_tokens(softmax: Bench, tmp_path: Path) -> None:
    stats = read_stats(softmax.stats_path)
    few = {n: dataclasses.replace(r, count=r.count // 100) for n, r in stats.routing.items()}
    write_stats(tmp_path / "few.gguf", dataclasses.replace(stats, routing=few))
    options = ["--stats", tmp_path / "few.gguf", "--keep-types", "--keep", "8", "-o", tmp_path / "plan.json"]
    assert "too few calibration tokens to prune on" in one_line(run(softmax.path, *options))
    assert run(softmax.path, *options, "--allow-few-tokens").exit_code == 0


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF at all", None])
def test_stats_that_cannot_be_read(content: bytes | None, softmax: Bench, tmp_path: Path) -> None:
    path = tmp_path / "stats.gguf"
    if content is not None:
        path.write_bytes(content)
    result = run(softmax.path, "--stats", path, "--budget", "9MB", "-o", tmp_path / "plan.json")
    assert str(path) in one_line(result)


def test_a_model_is_no_stats_file(softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--stats", softmax.path, "--budget", "9MB", "-o", tmp_path / "plan.json")
    assert "is a GGUF but no importance matrix or stats file" in one_line(result)


def test_output_folder_is_missing(softmax: Bench, tmp_path: Path) -> None:
    result = run(softmax.path, "--keep-types", "-o", tmp_path / "no" / "plan.json")
    assert "does not exist; make the folder first" in one_line(result)


def test_model_or_output_left_out(softmax: Bench) -> None:
    for arguments in ([], [softmax.path]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Missing" in result.stderr


def test_help_has_an_example() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "Example: collab-plugin plan" in result.stdout
