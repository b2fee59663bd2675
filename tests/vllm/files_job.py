"""Write a safetensors file of every dtype, and read whole tensors and rows back; print those that came out wrong.

usage: files_job.py FOLDER. Runs in vLLM's environment. Judged by the safetensors package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from collab_vllm.load.safetensors_files import DTYPES, Weights
from collab_vllm.selection.expert_selection import Part
from safetensors import safe_open
from safetensors.torch import save_file

ROWS = (5, 2, 3, 0)


def main(path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        name: torch.randint(2 if name == "BOOL" else 256, (6, 40), dtype=torch.uint8).view(dtype)
        for name, dtype in DTYPES.items()
    }
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 3)
    save_file(tensors, path)
    weights = Weights([path])
    wrong, expected_bytes = [], 0
    with safe_open(path, framework="pt") as judge:
        for rows in (None, ROWS):
            found = dict(weights.parts(lambda name, rows=rows: Part(name, None if name == "empty" else rows)))
            for name in tensors:
                whole = judge.get_tensor(name)
                want = whole if rows is None or name in ("scalar", "empty") else whole[list(rows)]
                expected_bytes += want.nbytes
                if not same(found[name], want):
                    wrong.append(name)
    print(json.dumps({"wrong": wrong, "counted": weights.read_bytes == expected_bytes, "dtypes": sorted(DTYPES)}))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bits, because NaN is among them and FP8 has no equality."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.reshape(-1).view(torch.uint8).equal(other.contiguous().reshape(-1).view(torch.uint8))


main(Path(sys.argv[1]) / "all.safetensors")
