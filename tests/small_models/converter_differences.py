"""How the GGUF that we make of a folder differs from the one that llama.cpp's converter makes."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint

# Names and labels for people, which the converter makes of the folder's name and of what it counted; the type of a
# file, which is the plan's; and a size that the tokenizer's list tells.
_ALWAYS = ("general.file_type", "general.name", "general.quantization_version", "general.size_label", ".vocab_size")
# What was FP8 is BF16 here, which holds it exactly; what was whole numbers of four bits has the same codes here.
_KINDS = ("types.BF16-is-Q8_0", "types.Q4_0-is-F32")


def converter_differences(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    """Keys and tensors that only one has, or that differ. Vectors that the converter writes as a matrix of one row
    count as equal, and so do values within a millionth, which are computed (ssm_a)."""
    found = []
    for key in sorted(set(ours.metadata) | set(theirs.metadata)):
        if not key.endswith(_ALWAYS) and ours.metadata.get(key) != theirs.metadata.get(key):
            found.append(key)
    for name in sorted(set(ours.tensors) | set(theirs.tensors)):
        if name not in ours.tensors or name not in theirs.tensors:
            found.append(f"{name} ({'converter' if name in theirs.tensors else 'here'} only)")
            continue
        mine, other = ours.tensors[name], theirs.tensors[name]
        values = ours.read(name)
        kinds = f"types.{mine.type.name}-is-{other.type.name}"
        if kinds in _KINDS:
            worst = float(np.abs(values - theirs.read(name).reshape(values.shape)).max())
            same = worst <= np.abs(values).max() / 100
            found += [kinds] * (kinds not in found) if same else [f"{name} (values)"]
        elif mine.type != other.type or values.size != mine.n_elements or mine.n_elements != other.n_elements:
            found.append(f"{name} ({mine.type.name} {mine.shape} here, {other.type.name} {other.shape} there)")
        elif not np.allclose(values, theirs.read(name).reshape(values.shape), rtol=1e-6, atol=0):
            found.append(f"{name} (values)")
    return found
