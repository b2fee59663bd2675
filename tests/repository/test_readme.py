"""The commands of README.md, run as they are written, in order, in one folder; in this process, because ggml makes the
tables of its smallest types once a process, in 18 seconds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from collab_plugin.cli import main

ROOT = Path(__file__).parents[2]
TEXTS = {
    "english.txt": "english.calibration.txt",
    "code.txt": "python.calibration.txt",
    "held-out.txt": "english.validation.txt",
}
PIECE = 8_000


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("collab-plugin ")]


@pytest.mark.slow
def test_commands_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(ROOT / "tests" / "models" / "tiny-qwen3moe")
    for name, source in TEXTS.items():
        text = (ROOT / "tests" / "texts" / source).read_bytes()[:PIECE].decode(errors="ignore")
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = commands()
    assert {"inspect", "calibrate", "plan", "compress", "evaluate", "run"} <= {line.split()[1] for line in found}
    for line in found:
        arguments = shlex.split(line)[1:]
        if arguments[0] not in ("inspect", "plugins", "report", "diff"):
            arguments += ["--threads", "1"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
