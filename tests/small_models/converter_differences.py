"""How the GGUF that we make of a folder differs from the one that llama.cpp's converter makes."""

from __future__ import annotations

import numpy as np

from collab_plugin.checkpoint.checkpoint import Checkpoint

# Names and labels for people, which the converter makes of the folder's name and of what it counted; the type of a
# file, which is the plan's; and a size that the tokenizer's list tells.
_ALWAYS = ("general.file_type", "general.name", "general.quantization_version", "general.size_label", ".vocab_size")


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
        if mine.type != other.type or values.size != mine.n_elements or mine.n_elements != other.n_elements:
            found.append(f"{name} ({mine.type.name} {mine.shape} here, {other.type.name} {other.shape} there)")
        elif not np.allclose(values, theirs.read(name).reshape(values.shape), rtol=1e-6, atol=0):
            found.append(f"{name} (values)")
    return found
