"""The child process: `python -m collab_llamacpp.calibrate.llamacpp_child_main FOLDER` carries out FOLDER/job.json.

Progress and text go to stdout as JSON lines, results to FOLDER/result.npz, a user's mistake to
FOLDER/error.txt (exit code 2), llama.cpp's log to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from collab_plugin.errors import CollabError


def main() -> int:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    from collab_llamacpp.calibrate.jobs import JOBS

    def progress(done: int, total: int) -> None:
        print(json.dumps({"done": done, "total": total}), flush=True)

    try:
        arrays = JOBS[job["do"]](job, progress)
    except CollabError as error:
        (folder / "error.txt").write_text(str(error))
        return 2
    np.savez(folder / "result.npz", **arrays)  # type: ignore[arg-type]  # keyword arrays, as documented
    return 0


if __name__ == "__main__":
    sys.exit(main())
