"""`collab-plugin report` from outside: page, plots, terminal, JSON, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_models.made import Made

from collab_plugin.cli.main import main

WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from collab_plugin.cli import main
main()
"""


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_page_and_plots(made: Made, tmp_path: Path) -> None:
    out, plots = tmp_path / "report.html", tmp_path / "plots"
    evaluation = tmp_path / "eval.json"
    evaluation.write_text(
        json.dumps(
            {"mean_kld": 0.5, "mean_kld_stderr": 0.01, "ppl": 9, "ppl_original": 8, "same_top1": 0.7, "tokens": 9}
        )
    )
    rivals = tmp_path / "rivals.csv"
    rivals.write_text("rival,bytes,mean_kld\nQ2_K,2000000,0.7\n")
    result = report(made.path, "--model", made.model, "--evaluation", evaluation, "--rivals", rivals,
                    "--context", "4096", "--reserve", "2GiB", "-o", out, "--plots", plots)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {p.name for p in plots.iterdir()} == {
        f"{name}.png" for name in ("importance", "bits", "memory", "front", "predicted")
    }
    text = out.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/png;base64,') == 5
    assert "context of 4,096 tokens" in text and "2,147,483,648" in text
    assert f"wrote {out}" in result.stdout
    assert not list(tmp_path.glob("*.partial"))


def test_terminal_shows_every_figure(made: Made) -> None:
    result = report(made.path)
    assert result.exit_code == 0, result.output
    for words in ("What was decided?", f"{made.plan.bytes:,}", "12 of 16 kept", "expert gate", "KV cache"):
        assert words in result.stdout, words
    for layer, kept in made.plan.pruning.kept.items():
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{layer:4} │"))
        marks = line.split("│")[1]
        assert [i for i, mark in enumerate(marks) if mark != "×"] == list(kept)


def test_json_alone_on_stdout(made: Made, tmp_path: Path) -> None:
    result = report(made.path, "--model", made.model, "--json", "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["plan"]["bytes"] == made.plan.bytes
    assert found["experts"] == 16
    assert found["memory"]["total"] == made.plan.bytes + sum(p["bytes"] for p in found["memory"]["runtime"])
    assert len(found["importance"]["scores"]) == len(made.plan.pruning.kept)
    assert (tmp_path / "page.html").is_file()


def test_stats_are_found_beside_the_plan_and_nowhere_else(made: Made, tmp_path: Path) -> None:
    alone = tmp_path / "plan.json"
    alone.write_bytes(made.path.read_bytes())
    assert json.loads(report(made.path, "--json").stdout)["importance"]["scores"] is not None
    assert json.loads(report(alone, "--json").stdout)["importance"]["scores"] is None


def test_other_stats_are_told(made: Made, tmp_path: Path) -> None:
    """The same statistics with a byte more: a file that `plan` did not read."""
    other = tmp_path / "stats.gguf"
    other.write_bytes(made.stats.read_bytes() + b"\0" * 32)
    said = json.loads(report(made.path, "--stats", other, "--json").stdout)["left_out"]
    assert any("differs from the one" in sentence for sentence in said)


def mistake(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_mistakes(made: Made, tmp_path: Path, qwen3moe: Path, deepseek2: Path) -> None:
    assert "cannot read the plan" in mistake(report(tmp_path / "none.json"))
    assert "does not exist" in mistake(report(made.path, "-o", tmp_path / "no" / "page.html"))
    assert "is a file" in mistake(report(made.path, "--plots", made.path))
    other = deepseek2 if made.plan.source.architecture == "qwen3moe" else qwen3moe
    assert "is not the plan's model" in mistake(report(made.path, "--model", other))
    assert "no importance matrix or stats file" in mistake(report(made.path, "--stats", made.model))
    assert "is no size" in mistake(report(made.path, "--reserve", "some"))
    assert "cannot read the rivals" in mistake(report(made.path, "--rivals", tmp_path / "none.csv"))
    assert "--context" in report(made.path, "--context", "0").stderr


def test_without_matplotlib(made: Made, tmp_path: Path) -> None:
    """The terminal's report works; the page says what to install."""
    tool = [sys.executable, "-c", WITHOUT, "report", str(made.path)]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*tool, "-o", str(tmp_path / "page.html")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the page and the plots need matplotlib: pip install 'collab-plugin[report]'")
    assert len(done.stderr.splitlines()) == 1


def test_terminal_loads_neither_matplotlib_nor_jinja(made: Made) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom collab_plugin.cli import main\n"
        f"assert CliRunner().invoke(main, ['report', {str(made.path)!r}]).exit_code == 0\n"
        "print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2"])
def test_plan_without_budget(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """--keep-types: nothing measured, nothing predicted, no statistics."""
    model: Path = request.getfixturevalue(name)
    plan = tmp_path / "plan.json"
    result = CliRunner().invoke(main, ["plan", str(model), "--keep-types", "-o", str(plan)])
    assert result.exit_code == 0, result.output
    result = report(plan, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No budget was given" in text and "All 4 experts of every layer stay." in text
