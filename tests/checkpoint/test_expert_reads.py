"""Reading one expert touches no other: every other page of the file is made inaccessible first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_models.hf_folder import qwen, write_folder

# Reads expert 2 of a tensor with all pages of the model's maps protected but those of that expert.
# Touching another page ends the process with SIGSEGV.
READ = """
import ctypes, mmap, sys
from pathlib import Path
import numpy as np
from collab_plugin.plugins.open_checkpoint import open_checkpoint

path, name, expert, touch = Path(sys.argv[1]), sys.argv[2], 2, int(sys.argv[3])
checkpoint = open_checkpoint(path)
if checkpoint.format == "gguf":
    first = checkpoint.read_raw(name, expert=expert)
    at, size = first.ctypes.data, first.nbytes
else:
    stored = checkpoint._sources[name].matrices[expert].parts[0].data
    at, size = stored.ctypes.data, stored.nbytes
page = mmap.PAGESIZE
low, high = at // page * page, -(-(at + size) // page) * page
libc = ctypes.CDLL(None, use_errno=True)
hidden = 0
for line in Path("/proc/self/maps").read_text().splitlines():
    if not line.endswith((".gguf", ".safetensors")):
        continue
    start, stop = (int(x, 16) for x in line.split()[0].split("-"))
    for a, b in ((start, min(stop, low)), (max(start, high), stop)):
        if a < b:
            assert libc.mprotect(ctypes.c_void_p(a), ctypes.c_size_t(b - a), 0) == 0, ctypes.get_errno()
            hidden += b - a
assert hidden > 3 * size
checkpoint.read_raw(name, expert=expert)
whole = checkpoint.read(name, expert=expert)
assert np.array_equal(checkpoint.read(name, expert=expert, rows=slice(5, 9)), whole[5:9])
print("read", flush=True)
if touch:
    checkpoint.read(name, expert=0)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="finds the maps in /proc")


def _read(path: Path, name: str, touch: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler=0", "-c", READ, str(path), name, str(int(touch))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("format_name", ["gguf", "safetensors"])
def test_one_expert_touches_no_other(format_name: str, qwen3moe: Path, tmp_path: Path) -> None:
    path = qwen3moe if format_name == "gguf" else write_folder(tmp_path / "m", *qwen())
    name = "blk.0.ffn_up_exps.weight"
    alone = _read(path, name, touch=False)
    assert (alone.returncode, alone.stdout) == (0, "read\n"), alone.stderr
    # The protection works: another expert cannot be read.
    other = _read(path, name, touch=True)
    assert other.stdout == "read\n"
    assert other.returncode < 0
