"""What native code prints is lost, what Python prints around it is not."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import ctypes, os
from collab_plugin.planning.allocators.quiet import quiet_stdout
libc = ctypes.CDLL("ucrtbase") if os.name == "nt" else ctypes.CDLL(None)
{before}
libc.printf(b"C before\\n")
try:
    with quiet_stdout():
        libc.printf(b"C inside\\n")
        {inside}
except ZeroDivisionError:
    pass
libc.printf(b"C after\\n")
print("after")
"""


def output(before: str = "print('before')", inside: str = "pass") -> subprocess.CompletedProcess[str]:
    code = CODE.format(before=before, inside=inside)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_only_what_is_printed_inside_is_lost() -> None:
    for inside in ("pass", "1 / 0"):
        done = output(inside=inside)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == ["C after", "C before", "after", "before"]


def test_without_standard_output_nothing_breaks() -> None:
    done = output(before="os.close(1); import sys; sys.stdout = sys.stderr")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "after\n"
