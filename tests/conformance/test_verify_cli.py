"""`verify` from outside: what it lists, refuses in one line, and where its report goes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import odd_target
import pytest
from click.testing import CliRunner
from collab_conformance.cli.verify import LEVEL_NAMES
from collab_conformance.judge.fidelity import BEYOND, CLASSES, NOT_GRADED, grade
from collab_conformance.report.report_file import read_report, write_report
from collab_conformance.report.verify_report import LEVELS
from collab_conformance.suite.suite_subjects import suite_subjects
from hand_reports import ABSENT, ALL, PASSED, report

import collab_plugin as cp
from collab_plugin.cli import main
from collab_plugin.formats.file_hash import file_sha256

ROOT = Path(__file__).parents[2]
TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")


def verify(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*TOOL, "verify", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)


def mistake(*arguments: object, **environment: str) -> str:
    """The one line that it is refused with, told by a process when it has an ``environment`` of its own."""
    if environment:
        done = verify(*arguments, **environment)
        code, stderr, stdout = done.returncode, done.stderr, done.stdout
    else:
        result = CliRunner().invoke(main, ["verify", *map(str, arguments)])
        code, stderr, stdout = result.exit_code, result.stderr, result.stdout
    assert code == 2, stderr + stdout
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert stdout == ""
    return line


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with odd_target's targets alone."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    path = odd_target.installed(folder)
    return {"PYTHONPATH": path, odd_target.PATH: path, "COLLAB_LOAD_PLUGINS": "odd,conformance"}


def test_levels_are_those_of_the_report() -> None:
    assert LEVEL_NAMES == LEVELS


def test_help_shows_options_commands_and_an_example() -> None:
    result = CliRunner().invoke(main, ["verify", "--help"])
    assert result.exit_code == 0
    for text in ("--suite", "--against", "merge", "pack", "Example: collab-plugin verify"):
        assert text in result.output
    for name in ("pack", "merge"):
        result = CliRunner().invoke(main, ["verify", name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main verify {name} [OPTIONS]")
        assert f"Example: collab-plugin verify {name}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to verify: give an ARTIFACT, or --suite"),
        (("--json",), "nothing to verify"),
        (("nowhere.gguf",), "nowhere.gguf does not exist"),
        (("--threads", "1", "nowhere.gguf"), "nowhere.gguf does not exist"),
        (("--suite", "here.gguf"), "--suite verifies the suite's own models"),
        (("--suite", "--against", "pack"), "--against holds one ARTIFACT"),
        (("here.gguf", "--original", "x"), "--original and --text go together"),
        (("here.gguf", "--text", "x"), "--original and --text go together"),
        (("--suite", "--original", "x", "--text", "y"), "--original is the original of an ARTIFACT"),
        (("here.gguf", "here.gguf"), "the same file name"),
        (("--suite", "--json", "out.gguf"), "a report's name ends in .json"),
        (("--suite", "--junit", "nowhere/x.xml"), "nowhere does not exist"),
        (("--suite", "--html", "."), ". is a folder"),
        (("--suite", "--skips", "nowhere"), "cannot read nowhere"),
        (("--suite", "--placement", "p.json"), "--placement is for one ARTIFACT"),
        (("--list", "--junit", "x.xml"), "--list makes no report"),
        (("merge", "nowhere.json", "-o", "x.html"), "cannot read the report nowhere.json"),
        (("pack", "here.gguf", "-o", "."), ". exists"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.gguf").write_bytes(b"GGUF")
    assert says in mistake(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.gguf"]


def test_a_target_that_nobody_offers() -> None:
    said = mistake("--suite", "--target", "nowhere", COLLAB_LOAD_PLUGINS="conformance")
    assert "no target is called 'nowhere'; known: " in said


def test_a_json_file_cannot_take_a_models_place(tmp_path: Path) -> None:
    model = tmp_path / "out.gguf"
    model.write_bytes(b"GGUF and more")
    assert "put --json last" in mistake("--json", model)
    assert model.read_bytes() == b"GGUF and more"


def test_list_needs_no_engine() -> None:
    done = verify("--list", COLLAB_LOAD_PLUGINS="conformance")
    assert (done.returncode, done.stdout.startswith("no target: no plugin")) == (0, True)
    done = verify("--list", "--json", COLLAB_LOAD_PLUGINS="conformance")
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_list_says_what_is_here_and_why_others_are_not(odd: dict[str, str]) -> None:
    done = verify("--list", **odd)
    assert done.returncode == 0, done.stderr
    here, absent = (line for line in done.stdout.splitlines() if "odd:" in line)
    assert "numpy (cpu)" in here
    assert np.__version__ in here
    assert "numpy has no GPU" in absent
    found = json.loads(verify("--list", "--json", **odd).stdout)
    assert [(info["name"], info["absent"]) for info in found] == [("odd:right", None), ("odd:gpu", "numpy has no GPU")]
    assert [i["name"] for i in json.loads(verify("--list", "--json", "--target", "odd:r*", **odd).stdout)] == [
        "odd:right"
    ]


def test_list_of_the_installed_engines() -> None:
    done = verify("--list", "--json")
    assert done.returncode == 0, done.stderr
    names = [info["name"] for info in json.loads(done.stdout)]
    assert "llamacpp:cpu" in names
    assert "ollama" in names


def test_list_without_ollama_says_so(tmp_path: Path) -> None:
    done = verify("--list", "--json", COLLAB_LOAD_PLUGINS="conformance,ollama", COLLAB_OLLAMA=str(tmp_path / "none"))
    (info,) = json.loads(done.stdout)
    assert (info["name"], info["device"]) == ("ollama", None)
    assert "which is no program; give the path of Ollama's" in info["absent"]


def test_merge_writes_one_page_of_many_machines(tmp_path: Path) -> None:
    paths = []
    for name, whole in (("a", ALL), ("b", report(PASSED, machine="another")), ("c", report(ABSENT, machine="third"))):
        paths.append(tmp_path / f"{name}.json")
        write_report(paths[-1], whole)
    page = tmp_path / "matrix.html"
    done = verify("merge", *paths, "-o", page, "--json")
    assert done.returncode == 0, done.stderr
    assert [r["passed"] for r in json.loads(done.stdout)["reports"]] == [False, True, False]
    text = page.read_text()
    assert "another" in text
    assert "third" in text
    done = verify("merge", *paths, "-o", page)
    assert "no target was run; 1 not run" in done.stdout


def test_merge_refuses_a_report_that_flatters_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_report(path, ALL)
    path.write_text(path.read_text().replace('"value": 0.7', '"value": 0.0001').replace('"fail"', '"pass"'))
    assert "'pass', but" in mistake("merge", path, "-o", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.native
def test_suite_on_a_target_and_where_its_report_goes(odd: dict[str, str], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("report.json", "junit.xml", "report.html")]
    files = (x for pair in zip(("--json", "--junit", "--html"), paths, strict=True) for x in pair)
    run = ("--suite", "--short", "--level", "kernels", "--threads", 1)
    done = verify(*run, "--target", "odd", *files, **odd)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 targets that were run pass; 1 not run" in done.stdout
    found = read_report(paths[0])
    assert [(target.name, target.verdict) for target in found.targets] == [
        ("odd:right", "pass"),
        ("odd:gpu", "not-run"),
    ]
    assert found.short
    assert ET.parse(paths[1]).getroot().get("failures") == "0"
    assert "numpy has no GPU" in paths[2].read_text()
    # Alone on stdout, and no green without a target that was run.
    done = verify(*run, "--target", "odd:gpu", "--json", **odd)
    assert done.returncode == 1
    assert json.loads(done.stdout)["targets"][0]["verdict"] == "not-run"


@pytest.mark.native
def test_files_of_skips_and_expected_failures(odd: dict[str, str], tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    run = ("--suite", "--short", "--level", "kernels", "--threads", 1, "--target", "odd:right", "--json")
    rules.write_text("odd:*  *  # under repair\n")
    done = verify(*run, "-", "--skips", rules, **odd)
    (target,) = json.loads(done.stdout)["targets"]
    assert (done.returncode, target["verdict"], target["reason"]) == (1, "skipped", "under repair")
    rules.write_text("odd:right  kernels.mul_mat.F16  # mended long ago\n")
    done = verify(*run, "-", "--xfails", rules, **odd)
    (target,) = json.loads(done.stdout)["targets"]
    assert (done.returncode, target["verdict"]) == (1, "fail")
    assert "mended long ago" in target["reason"]
    rules.write_text("odd:right  kernels.mul_mat.F16\n")
    assert "a reason is needed" in mistake(*run, "-", "--skips", rules, **odd)


SUBJECT = suite_subjects(short=True)[0]
ARTIFACT = Path(SUBJECT.artifact)
ONE = ("--threads", 1, "--target", "llamacpp:cpu")
ALONE = {"COLLAB_LOAD_PLUGINS": "conformance,llamacpp"}  # other engines are asked for their devices, too


@pytest.mark.native
def test_an_artifact_is_verified_under_a_placement(tmp_path: Path) -> None:
    """Its name and hash are in the report; one that was made for another artifact fails in a line."""
    document = tmp_path / "placement.json"
    placed = cp.place(ARTIFACT, tiers=["gpu=1105MB", "ram=1GB"]).placement
    assert set(placed.tensors.tiers.values()) == {"gpu", "ram"}
    cp.write_placement(document, placed)
    run = (ARTIFACT, "--against", SUBJECT.pack, "--placement", document, *ONE, "--short")
    done = verify(*run, "--level", "logits", "--level", "text", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    (target,) = json.loads(done.stdout)["targets"]
    assert target["versions"]["placement"] == f"placement.json, lfu-steady, sha256 {file_sha256(document)}"
    other = dataclasses.replace(placed, artifact=dataclasses.replace(placed.artifact, bytes=1))
    cp.write_placement(document, other)
    done = verify(*run, "--level", "text", "--json")
    assert done.returncode == 1
    assert "the placement is for another model" in json.loads(done.stdout)["targets"][0]["reason"]
    document.write_text("{}")
    assert "is not a placement file" in mistake(*run)


@pytest.mark.slow
def test_a_pack_of_a_target_is_a_yardstick(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    done = verify("pack", ARTIFACT, "-o", pack, *ONE, "--json", **ALONE)
    assert done.returncode == 0, done.stderr
    assert "llama_" not in done.stderr
    made = json.loads(done.stdout)
    assert made["recorder"]["kind"] == "engine"
    assert made["recorder"]["name"].startswith("llamacpp:cpu")
    # Held to itself: not a bit differs.
    done = verify(ARTIFACT, "--against", pack, *ONE, "--level", "artifact", "--level", "text", "--json", **ALONE)
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    figures = {check["name"]: check["value"] for check in target["checks"]}
    assert figures["text.parted"] == figures["text.broken"] == figures["artifact.sha256"] == 0
    # Another file is not what was recorded.
    other = tmp_path / "other.gguf"
    other.write_bytes(ARTIFACT.read_bytes() + b"\0")
    done = verify(other, "--against", pack, *ONE, "--level", "artifact", "--json", **ALONE)
    assert done.returncode == 1
    assert "artifact.sha256" in json.loads(done.stdout)["targets"][0]["reason"]
    assert "exists; name a folder that does not" in mistake("pack", ARTIFACT, "-o", pack)


@pytest.mark.native
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("llamacpp:cpu*", "names "),
        ("odd", "no target is called 'odd'"),
        ("llamacpp:metal" if sys.platform != "darwin" else "llamacpp:cuda", "cannot be run here"),
    ],
)
def test_a_pack_is_of_one_target_that_is_here(target: str, says: str, tmp_path: Path) -> None:
    assert says in mistake("pack", ARTIFACT, "-o", tmp_path / "pack", "--target", target, **ALONE)
    assert not (tmp_path / "pack").exists()


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch_a_pack_is_asked_for(tmp_path: Path) -> None:
    """Told alone: before targets are looked for or a prompt is read."""
    for arguments, instead in (
        ((ARTIFACT, *ONE), "--against"),
        (("pack", ARTIFACT, "-o", tmp_path / "pack"), "--target"),
    ):
        done = verify(*arguments)
        assert done.returncode == 2
        said = done.stderr.splitlines()
        assert len(said) == 1, done.stderr
        assert said[0].startswith("error: the reference needs PyTorch")
        assert instead in said[0]
    assert not (tmp_path / "pack").exists()


@pytest.mark.slow
def test_fidelity_is_beside_the_verdict(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "tests" / "texts" / "english.validation.txt").read_text("utf-8")[:8000])
    subject = suite_subjects(short=True)[0]
    original = ROOT / "tests" / "models" / "tiny-qwen3moe"
    run = (subject.artifact, "--against", subject.pack, *ONE, "--level", "artifact")
    done = verify(*run, "--original", original, "--text", text, "--json", **ALONE)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["fidelity"]
    # A quarter of the experts is left, and bits are counted over the original's weights.
    assert 1 < found["bits_per_weight"] < 2
    assert found["mean_kld"] > 5 * found["mean_kld_stderr"] > 0
    assert found["grade"] == NOT_GRADED
    other = ROOT / "tests" / "models" / "tiny-deepseek-v3"
    done = verify(*run, "--original", other, "--text", text, **ALONE)
    assert done.returncode == 2
    assert "not its original" in done.stderr.splitlines()[-1]


def test_grades() -> None:
    assert [grade(kld, 0, 4.5) for kld in (0.001, 0.0055, 0.0108, 0.031, 0.103, 0.33, 0.81)] == [
        *(kind.name for kind in CLASSES),
        BEYOND,
    ]
    assert grade(0.05, 0.01, 4.5) == "like IQ3_M", "two standard errors are added"
    assert grade(0.0, 0.0, 1.99) == NOT_GRADED
    page = (ROOT / "docs" / "conformance.md").read_text()
    for kind in CLASSES:
        assert f"| {kind.name} | {kind.most} |" in page
