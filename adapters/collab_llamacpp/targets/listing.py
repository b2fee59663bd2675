"""The child process that lists devices: `python -m collab_llamacpp.targets.listing FOLDER [BACKEND]`.

Prints one JSON object; a driver may abort this process. ``BACKEND``: a library to load first, where backends
are not linked in.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from collab_llamacpp.native.ggml import Ggml

_TYPES = ("cpu", "gpu", "igpu", "accelerator", "meta")


class _Feature(ctypes.Structure):
    """ggml_backend_feature (ggml-backend.h)."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def features(lib: Ggml, device: int) -> list[str]:
    """Instruction sets and options that the device's backend was compiled for."""
    function = lib.procedure(device, "ggml_backend_get_features", ctypes.POINTER(_Feature), ctypes.c_void_p)
    if function is None:
        return []
    listed = function(lib.ggml_backend_dev_backend_reg(device))
    found = []
    for i in range(1000):
        if not listed or not listed[i].name:
            break
        name, value = listed[i].name.decode(), listed[i].value.decode()
        found.append(name if value == "1" else f"{name}={value}")
    return found


def describe(lib: Ggml, device: int) -> dict[str, Any]:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return {
        "backend": lib.backend_of(device),
        "name": lib.ggml_backend_dev_name(device).decode(),
        "description": lib.ggml_backend_dev_description(device).decode().strip(),
        "type": _TYPES[lib.ggml_backend_dev_type(device)],
        "memory": total.value,
        "features": features(lib, device),
    }


def main() -> int:
    lib = Ggml(Path(sys.argv[1]))
    loaded = [bool(lib.ggml_backend_load(path.encode())) for path in sys.argv[2:]]
    listed = {
        "version": lib.ggml_version().decode(),
        "commit": lib.ggml_commit().decode(),
        "loaded": all(loaded),
        "backends": lib.backends(),
        "devices": [describe(lib, device) for device in lib.devices()],
    }
    print(json.dumps(listed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
