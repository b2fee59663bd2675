"""The suite tested: what becomes of a target that dies, hangs, raises or computes wrongly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import odd_target
import pytest
from collab_conformance.judge.limits import LimitRule, read_limits
from collab_conformance.judge.skips import Rule
from collab_conformance.report.verify_report import Check, TargetReport
from collab_conformance.run.job import Job
from collab_conformance.run.run_target import run_target
from collab_conformance.run.verify_targets import verify
from collab_conformance.suite.suite_subjects import suite_subjects

from collab_plugin.engines.target import Device, TargetInfo
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import build_registry, plugin_manager

LIMITS = (
    LimitRule("kernels.types", "*", "at-least", 1, "a bench has types"),
    LimitRule("kernels.mul_mat*", "*", "at-most", 5e-4, "test-backend-ops"),
    LimitRule("kernels.scale.*", "*", "at-most", 2e-3, "a test"),
)
LOST = "kernels.mul_mat.F16"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin, scratch = tmp_path / "plugin", tmp_path / "scratch"
    plugin.mkdir(), scratch.mkdir()
    monkeypatch.setenv(odd_target.PATH, odd_target.installed(plugin))
    monkeypatch.setenv("COLLAB_LOAD_PLUGINS", "odd,llamacpp")

    def run(how: str, **options: object) -> TargetReport:
        info = TargetInfo(f"odd:{how}", "odd", np.__version__, Device("numpy", "cpu", "", None, None))
        job = Job(info.name, (), ("kernels",), True, 1, 0, str(scratch), ())
        return run_target(
            info,
            odd_target.OddTargets(),
            job,
            **{"limits": LIMITS, "progress": lambda *_: None, "time_limit": 60.0, **options},
        )

    return run


def by_name(report: TargetReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


def test_a_right_target_passes(run) -> None:
    seen: list[tuple[str, str, int, int]] = []
    report = run("right", progress=lambda *step: seen.append(step))
    assert report.verdict == "pass" and report.reason == ""
    assert len(report.checks) == 9, "the number of types, and four checks for either"
    assert all(check.verdict == "pass" for check in report.checks)
    assert report.figures["kernels.mul_mat_id.Q8_0"] < 1e-12
    assert report.limits["kernels.mul_mat_id.Q8_0"].value == 5e-4
    assert seen[0] == ("odd:right", "kernels.types", 0, 1)
    assert seen[-1] == ("odd:right", "kernels.scale.F16", 8, 9)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("abort", "ended by SIGABRT: GGML_ASSERT(false) failed, says the driver"),
        ("out-of-memory", "ended by SIGKILL (the machine ran out of memory"),
        ("hang", "not done within the time limit of 8 s"),
    ],
)
def test_a_target_that_dies_fails_and_keeps_what_it_measured(run, how: str, words: str) -> None:
    report = run(how, time_limit=8.0)
    checks = by_name(report)
    assert report.verdict == "fail"
    assert report.reason.startswith(f"in {LOST}: ") and words in report.reason
    assert checks[LOST].verdict == "fail" and words in checks[LOST].reason
    assert checks["kernels.mul_mat.Q8_0"].verdict == "pass", "measured before"
    assert list(checks)[-1] == LOST, "nothing is told of what was not reached"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "RuntimeError: no such pipeline"),
        ("shape", "ValueError: the engine gave a product of shape (1, 1), not (37, 34)"),
        ("nan", "not finite"),
    ],
)
def test_a_check_that_goes_wrong_fails_alone(run, how: str, words: str) -> None:
    report = run(how)
    checks = by_name(report)
    failed = {name for name, check in checks.items() if check.verdict == "fail"}
    # The factor is of all three products, so that it has no value either.
    assert failed == {LOST, "kernels.scale.F16"}
    assert words in checks[LOST].reason and LOST in report.reason
    assert report.verdict == "fail" and checks["kernels.mul_mat_id.F16"].verdict == "pass"


def test_a_scale_off_by_a_percent_fails_where_the_error_hides_it(run) -> None:
    checks = by_name(run("percent"))
    assert checks["kernels.mul_mat.Q8_0"].verdict == "pass", "NMSE 1e-4, which llama.cpp's limit lets pass"
    assert checks["kernels.scale.Q8_0"].verdict == "fail"


def test_what_is_not_offered_is_skipped_with_the_reason(run) -> None:
    report = run("not-offered")
    check = by_name(report)[LOST]
    assert (check.verdict, check.reason) == ("skipped", "no matrix products of F16 here")
    assert report.verdict == "pass"


def test_what_native_code_prints_does_not_reach_the_protocol(run) -> None:
    assert run("chatty").verdict == "pass"


def test_a_process_left_behind_is_ended_and_does_not_hold_the_suite_up(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # so that the command line tells it from others
    began = time.monotonic()
    report = run("fork", time_limit=50.0)
    assert time.monotonic() - began < 40
    assert report.verdict == "fail" and "exit code 3" in report.reason
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in left.splitlines() if f"{tmp_path}/collab-" in line]


def test_absent_hardware_is_not_run(run) -> None:
    gpu = odd_target.OddTargets().find()[1]
    job = Job(gpu.name, (), ("kernels",), True, 1, 0, "", ())
    report = run_target(gpu, odd_target.OddTargets(), job, limits=LIMITS, progress=lambda *_: None)
    assert (report.verdict, report.reason, report.checks) == ("not-run", "numpy has no GPU", ())


def test_figures_without_a_limit_make_no_target_pass(run) -> None:
    report = run("right", limits=())
    assert report.verdict == "skipped"
    assert {check.reason for check in report.checks} == {"held to no limit"}


def test_a_skipped_check_is_not_run(run) -> None:
    report = run("abort", skips=[Rule("odd:*", "kernels.mul_mat.F16", "driver bug 17"), Rule("vulkan", "*", "other")])
    checks = by_name(report)
    assert (checks[LOST].verdict, checks[LOST].reason) == ("skipped", "driver bug 17")
    assert "kernels.mul_mat_id.F16" in checks, "the target lived on"


def test_a_whole_target_is_skipped(run) -> None:
    report = run("abort", skips=[Rule("odd:abort", "*", "known to hang the machine")])
    assert (report.verdict, report.reason, report.checks) == ("skipped", "known to hang the machine", ())


def test_an_expected_failure_does_not_fail_its_target(run) -> None:
    report = run("percent", xfails=[Rule("odd:*", "kernels.scale.*", "scale bug 5")])
    check = by_name(report)["kernels.scale.Q8_0"]
    assert (check.verdict, check.expected) == ("fail", "scale bug 5")
    assert report.verdict == "pass"


def test_an_expected_failure_that_passes_fails(run) -> None:
    report = run("right", xfails=[Rule("odd:*", "kernels.scale.F16", "scale bug 5")])
    check = by_name(report)["kernels.scale.F16"]
    assert check.verdict == "fail" and check.expected is None
    assert "expected to fail (scale bug 5), but passed" in check.reason
    assert report.verdict == "fail"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(run, tmp_path: Path, end: signal.Signals) -> None:
    """`verify` in a process of its own, interrupted or ended while its child hangs."""
    script = tmp_path / "script.py"
    script.write_text(
        # A shell's background jobs ignore SIGINT, and so would this.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; import odd_target, numpy\n"
        "from collab_conformance.run.job import Job; from collab_conformance.run.run_target import run_target\n"
        "from collab_plugin.engines.target import TargetInfo\n"
        f"job = Job('odd:hang', (), ('kernels',), True, 1, 0, {str(tmp_path)!r}, ())\n"
        "def say(target, check, done, total): print(check, flush=True)\n"
        "run_target(TargetInfo('odd:hang', 'odd', '', None), odd_target.OddTargets(), job, limits=(), progress=say)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.environ[odd_target.PATH]}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    assert parent.stdout is not None
    while parent.stdout.readline().strip() != LOST.encode():
        assert parent.poll() is None
    children = subprocess.run(
        ["ps", "--ppid", str(parent.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    assert children
    parent.send_signal(end)
    assert parent.wait(20) != 0
    deadline = time.monotonic() + 20
    while any(lives(pid) for pid in children):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.1)


def lives(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_slow_target_gets_the_short_form_and_says_so(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = plugin_manager()
    manager.register(odd_target)
    registry = build_registry(manager)
    monkeypatch.setattr("collab_conformance.run.verify_targets.registry", lambda: registry)
    request.getfixturevalue("run")  # from here on the child's environment is the plugin's
    device = Device("numpy", "cpu", "software", None, None)
    subjects = suite_subjects()
    left_out = {subject.name for subject in subjects if not subject.short}
    assert left_out
    for slow, names in (("", {s.name for s in subjects}), ("takes hours", {s.name for s in subjects} - left_out)):
        report = verify(
            subjects,
            [TargetInfo("odd:right", "odd", "1", device, slow=slow)],
            levels=("artifact",),
            short=False,
            threads=1,
            seed=0,
            limits=read_limits(),
            progress=lambda *_: None,
        )
        (target,) = report.targets
        assert target.verdict == "pass"
        assert set(target.plan_fingerprint) == {check.artifact for check in target.checks} == names
        assert target.reason == ("short form: takes hours" if slow else "")


def test_a_damaged_pack_is_the_users_mistake_and_no_targets_failure(tmp_path: Path) -> None:
    subject = suite_subjects(short=True)[0]
    pack = tmp_path / "pack"
    shutil.copytree(subject.pack, pack)
    with (pack / "pack.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CollabError, match=r"is not the file that pack\.json is of"):
        verify(
            [replace(subject, pack=str(pack))], [],
            levels=("logits",), short=True, threads=1, seed=0, limits=(), progress=lambda *_: None,
        )  # fmt: skip
