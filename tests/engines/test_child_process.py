"""Whatever a child does is one line or a traceback here, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_child import Odd

from collab_plugin.engines.child_process import ChildProgram, complaint, run, start
from collab_plugin.errors import CollabError

HERE = Path(__file__).parent
PROGRAM = ChildProgram("odd_child", "the odd child", environment={"PYTHONPATH": str(HERE)})


def _lines() -> tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]:
    lines: list[dict[str, Any]] = []
    return lines, lines.append


def test_lines_and_arrays_come_back() -> None:
    lines, keep = _lines()
    end = run(PROGRAM, Odd("count", 3), keep)
    assert lines == [{"done": i, "total": 3} for i in (1, 2, 3)]
    assert end.why == ""
    assert end.result("count")["squares"].tolist() == [0, 1, 4]


def test_no_arrays() -> None:
    assert run(PROGRAM, Odd("echo")).result("echo") == {}


def test_child_hears_what_it_is_told() -> None:
    with start(PROGRAM, Odd("echo", 2)) as child:
        for word in ("one", "zwölf"):
            child.tell({"word": word})
            assert child.hear(60) == {"heard": word}
        assert child.hear(60) is None
        assert child.wait().code == 0
        child.tell({"word": "too late"})


def test_what_it_prints_is_the_log() -> None:
    lines, keep = _lines()
    end = run(PROGRAM, Odd("print"), keep)
    assert lines == [{"stdin": ""}]
    assert sorted(end.log.split("\n")) == ["", "nor this", "not for the parent"]


def test_users_mistake() -> None:
    end = run(PROGRAM, Odd("mistake"))
    with pytest.raises(CollabError, match=r"^the odd child cannot do that: mend ä$"):
        end.result("err")
    assert end.why == "the odd child cannot do that: mend ä"


def test_bug_is_shown_whole() -> None:
    end = run(PROGRAM, Odd("bug"))
    with pytest.raises(RuntimeError, match=r"(?s)the child process of the odd child failed \(exit code 1\).*KeyError"):
        end.result("err")
    assert end.why == "ended with exit code 1: KeyError: 'a bug'"


@dataclass(frozen=True)
class Even:
    way: str


def test_job_of_another_kind_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        run(PROGRAM, Even("count")).result("err")


def test_ill_typed_job_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match=r"the job is not a Odd: \$.number is 'many', not int"):
        run(PROGRAM, Odd("count", "many")).result("err")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, ("SIGKILL", " (the machine ran out of memory, or someone killed it)")),
        (signal.SIGBUS, ("SIGBUS", " (the disk is full, or a file was cut short meanwhile)")),
        (signal.SIGSEGV, ("SIGSEGV", "")),
        (signal.SIGRTMIN + 1, (f"signal {signal.SIGRTMIN + 1}", "")),
    ],
)
def test_signals(number: int, says: tuple[str, str]) -> None:
    end = run(PROGRAM, Odd("signal", int(number)))
    with pytest.raises(CollabError) as caught:
        end.result("do odd things")
    assert str(caught.value) == f"the odd child was ended by {says[0]} while it tried to do odd things{says[1]}"
    assert end.why == f"ended by {says[0]}{says[1]}"


def test_abort_says_what_the_log_says() -> None:
    end = run(PROGRAM, Odd("abort"))
    with pytest.raises(CollabError, match=r"ended by SIGABRT while it tried to x: GGML_ASSERT\(false\) failed$"):
        end.result("x")
    assert end.why == "ended by SIGABRT: GGML_ASSERT(false) failed"


def test_exit_code_with_its_last_line() -> None:
    assert run(PROGRAM, Odd("exit", 3)).why == "ended with exit code 3: said at last"


def test_half_a_line_is_no_line() -> None:
    lines, keep = _lines()
    assert run(PROGRAM, Odd("half line"), keep).why == ""
    assert lines == []


def test_a_pipe_that_is_held_open_is_not_waited_for() -> None:
    began = time.monotonic()
    assert run(PROGRAM, Odd("holds pipe")).code == 0
    assert time.monotonic() - began < 30


def test_time_limit() -> None:
    pids: list[int] = []
    end = run(PROGRAM, Odd("family"), lambda line: pids.extend(line["pids"]), limit=5)
    assert end.code is None
    assert end.why == "not done within the time limit of 5 s"
    assert str(end.failure("wait")) == "the odd child took more than 5 s to wait, and was ended"
    _wait_gone(pids)


def test_interruption_leaves_nobody() -> None:
    pids: list[int] = []

    def interrupt(line: dict[str, Any]) -> None:
        pids.extend(line["pids"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(PROGRAM, Odd("family"), interrupt)
    _wait_gone(pids)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_child_and_what_it_started_end_with_us(how: signal.Signals) -> None:
    code = (
        "from odd_child import Odd; from collab_plugin.engines.child_process import ChildProgram, run;"
        "run(ChildProgram('odd_child', 'odd'), Odd('family'), lambda line: print(*line['pids'], flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
    _wait_gone(pids)


def _wait_gone(pids: list[int]) -> None:
    assert pids
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Zombies do not: who inherits them collects them when it likes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_python_that_is_not_there(tmp_path: Path) -> None:
    program = ChildProgram("odd_child", "vLLM", python=(str(tmp_path / "python"),))
    with pytest.raises(CollabError, match=r"vLLM cannot be started as .*python: No such file or directory"):
        run(program, Odd("count"))


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(PROGRAM, Odd("signal", int(signal.SIGKILL))).code == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("", ""),
        ("all is well\n", ""),
        (
            "error: first\nllama: error loading model: bad magic\nfailed to load\n",
            "llama: error loading model: bad magic",
        ),
        ("Traceback\n  File x\nValueError: a thing\n", "ValueError: a thing"),
        ("it failed\nit failed again\n", "it failed"),
        (f"error: {'x' * 400}", f"error: {'x' * 293}"),
    ],
)
def test_complaint(log: str, says: str) -> None:
    assert complaint(log) == says


def test_arrays_keep_their_types() -> None:
    assert run(PROGRAM, Odd("count", 2)).result("count")["squares"].dtype == np.int64
