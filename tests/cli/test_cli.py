"""The command line from outside: exit codes, one line for each mistake, JSON alone, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_models.random_moe import imagined_stats
from small_models.random_moe import write_qwen3moe as write_random_qwen3moe
from small_models.tiny_moe import some_stats

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import COMMANDS, main
from collab_plugin.stats.stats_file import write_stats

TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")
TRAINED = Path(__file__).parents[1] / "models" / "tiny-qwen3moe"
PROGRESS = ("measuring quantization errors", "compressing", "calibrating", "evaluating", "converting")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOOL, *map(str, arguments)], capture_output=True, text=True, check=False)


def in_process(*arguments: object) -> Result:
    """The same without a start, which takes 0.7 seconds; a mistake's process is in test_plan_for_a_program."""
    return CliRunner().invoke(main, [*map(str, arguments)])


def mistake(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), stderr
    return lines[0]


@pytest.fixture(scope="module")
def stats(qwen3moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "stats.gguf"
    write_stats(path, some_stats(open_gguf(qwen3moe)))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: collab-plugin {command}" in result.output


def test_help_imports_no_adapter() -> None:
    code = (
        "import sys\nfrom collab_plugin.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n"
        "    heavy = {'httpx', 'scipy', 'gguf', 'llama_cpp', 'numpy', 'collab_ollama.server.client'}\n"
        "    print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ollama" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.skipif(os.name == "nt", reason="children's times are not told on Windows")
def test_help_is_instant() -> None:
    """In seconds of a core, which other work on the machine lengthens little; the best of three."""

    def seconds() -> float:
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.native
def test_plan_for_a_program(qwen3moe: Path, stats: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ("plan", qwen3moe, "--stats", stats, "--budget", "7bpw", "-o", out, "--threads", 1)
    done = run(*arguments, "--for", "steam")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown program 'steam'; known: ollama" in mistake(done.stderr)
    done = run(*arguments, "--for", "ollama", "--types", "Q4_K,Q8_0")
    assert done.returncode == 0, done.stderr
    assert {tensor["type"] for tensor in json.loads(out.read_text())["tensors"].values()} == {"F32", "Q4_K", "Q8_0"}


@pytest.mark.native
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "3bpw", "--criterion", "wisdom"), "unknown criterion 'wisdom'; known: "),
        (("--budget", "3bpw", "--allocator", "greed"), "unknown allocator 'greed'; known: "),
        (("--budget", "3bpw", "--types", "Q9_Z"), "Q9_Z"),
        (("--budget", "1000", "--keep", "4"), "raise --budget"),
        (("--budget", "much"), "much"),
    ],
)
def test_plan_refuses_in_one_line(
    options: tuple[str, ...], words: str, qwen3moe: Path, stats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    done = in_process("plan", qwen3moe, "--stats", stats, "-o", out, "--threads", 1, *options)
    assert done.exit_code == 2, done.stderr
    assert words in mistake(done.stderr)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "nowhere.gguf"),
        ("compress", "nowhere.gguf", "--plan", "nowhere.json", "-o", "out.gguf"),
        ("evaluate", "nowhere.gguf", "--against", "nowhere.gguf", "--text", "nowhere.txt"),
        ("run", "nowhere.gguf", "-p", "Once"),
        ("calibrate", "nowhere.gguf", "--text", "nowhere.txt", "-o", "stats.gguf"),
        ("diff", "nowhere.json", "nowhere.json"),
        ("plan", "nowhere.gguf", "--budget", "9MB", "-o", "plan.json"),
        ("probe", "nowhere.gguf", "--stats", "nowhere.gguf", "--text", "nowhere.txt", "-o", "sensitivity.json"),
    ],
)
def test_missing_file_is_named(arguments: tuple[str, ...]) -> None:
    done = in_process(*arguments)
    assert done.exit_code == 2, done.stderr
    assert "nowhere" in mistake(done.stderr)


def test_unknown_engine(qwen3moe: Path) -> None:
    done = in_process("run", qwen3moe, "-p", "Once", "--engine", "steam")
    assert done.exit_code == 2
    assert mistake(done.stderr).startswith("error: unknown engine 'steam'; known: ")


@pytest.mark.native
def test_json_is_alone_on_stdout(qwen3moe: Path, stats: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.gguf"
    types = ("--types", "Q8_0,Q4_K")
    for arguments in (
        ("inspect", qwen3moe),
        ("plan", qwen3moe, "--stats", stats, "--budget", "7bpw", *types, "-o", plan, "--threads", 1),
        ("compress", qwen3moe, "--plan", plan, "--stats", stats, "-o", out, "--threads", 1),
        ("run", out, "-p", "a", "-n", 2, "--ctx", 64, "--threads", 1),
        ("plugins",),
    ):
        done = run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    assert out.stat().st_size == json.loads(plan.read_text())["bytes"]


@pytest.mark.slow
def test_the_solver_says_nothing_on_stdout(tmp_path: Path) -> None:
    """At this budget HiGHS repairs a solution, which it tells on stdout whatever its options are."""
    model, stats = write_random_qwen3moe(tmp_path / "model.gguf"), tmp_path / "stats.gguf"
    write_stats(stats, imagined_stats(open_gguf(model)))
    done = run(
        "plan", model, "--stats", stats, "--budget", 2743193, "-o", tmp_path / "plan.json", "--threads", 1, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] <= 2743193


@pytest.mark.slow
def test_ctrl_c_leaves_no_output(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.gguf"
    # IQ4_XS is slow to write and needs no tables: seconds in which to interrupt.
    done = run("plan", TRAINED, "--types", "IQ4_XS", "--keep", "32", "-o", plan, "--budget", "100MB", "--threads", 1)
    assert done.returncode == 0, done.stderr
    command = [*TOOL, "compress", str(TRAINED), "--plan", str(plan), "-o", str(out)]
    with subprocess.Popen(
        [*command, "--threads", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Python ignores SIGINT when its parent did, as shells do for what they start in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "compressing ...\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 2, stderr
    assert mistake(stderr).startswith("error: interrupted")
    assert stdout == ""
    assert not out.exists()
    again = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert out.stat().st_size == json.loads(plan.read_text())["bytes"]
