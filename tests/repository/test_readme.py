"""The commands of README.md, run as they are written, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")
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
def test_commands_of_the_readme_work(tmp_path: Path) -> None:
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
        done = subprocess.run([*TOOL, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
