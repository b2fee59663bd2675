"""Read a folder of `compress --format safetensors` with compressed-tensors itself; print errors as JSON.

usage: compressed_tensors_job.py FOLDER SOURCE. FOLDER keeps every expert of SOURCE. Runs in vLLM's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils import match_targets
from safetensors.torch import load_file

folder, source = map(Path, sys.argv[1:])
config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
stored, original = (
    {name: t for path in sorted(place.glob("*.safetensors")) for name, t in load_file(path).items()}
    for place in (folder, source)
)
linear = torch.nn.Linear(1, 1)
modules = {name.rpartition(".weight")[0] for name in stored if ".weight" in name}
worst: dict[str, float] = {}
misjudged = []
for module in sorted(modules):
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
print(json.dumps({"worst": worst, "misjudged": misjudged}))
