"""Everything that these tests do with vLLM in one process, because its import takes 15 seconds.

usage: shared_job.py FOLDER MODELS OTHER, see mistakes_job.py; prints JSON lines. Runs in vLLM's environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import families_job
import mistakes_job


def main(folder: Path, models: Path, other: Path) -> None:
    os.environ["VLLM_MLA_DISABLE"] = "1"
    mistakes_job.main(folder, models, other)
    del os.environ["VLLM_MLA_DISABLE"]
    families_job.main(folder / "families")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
