"""Read folders of `compress --format safetensors` with compressed-tensors itself; print errors as JSON.

usage: compressed_tensors_job.py [FOLDER SOURCE]... FOLDER keeps every expert of SOURCE. Runs in vLLM's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import match_targets
from safetensors.torch import load_file


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def check(folder: Path, source: Path) -> dict[str, Any]:
    """``worst`` relative error by precision; ``misjudged``: modules that config.json and the files see differently."""
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    stored, original = tensors(folder), tensors(source)
    linear = torch.nn.Linear(1, 1)
    worst: dict[str, float] = {}
    misjudged = []
    for module in sorted({name.rpartition(".weight")[0] for name in stored if ".weight" in name}):
        schemes = [s for s in config.config_groups.values() if match_targets(module, linear, s.targets)]
        ignored = bool(match_targets(module, linear, config.ignore))
        packed = f"{module}.weight_packed" in stored
        if packed != (len(schemes) == 1 and not ignored):
            misjudged.append(module)
        if not packed:
            assert torch.equal(stored[f"{module}.weight"], original[f"{module}.weight"]), module
            continue
        parts = {part: stored[f"{module}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
        reader = BaseCompressor.get_value_from_registry("pack-quantized")
        values = reader.decompress(parts, schemes[0])["weight"].float()
        true = original[f"{module}.weight"].float()
        kind = f"{schemes[0].weights.num_bits} bits, groups of {schemes[0].weights.group_size}"
        worst[kind] = max(worst.get(kind, 0.0), float((values - true).norm() / true.norm()))
    return {"worst": worst, "misjudged": misjudged}


paths = list(map(Path, sys.argv[1:]))
print(json.dumps([check(folder, source) for folder, source in zip(paths[::2], paths[1::2], strict=True)]))
