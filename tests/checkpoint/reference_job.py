"""Run where torch is: python reference_job.py JOB.json. Logits by the reference of the conformance suite.

The job has "tokens" and "ggufs"; of each PATH.gguf PATH.reference.npy is written, float64[tokens, vocabulary].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from collab_conformance.reference.run_reference import ReferenceModel

job = json.loads(Path(sys.argv[1]).read_text())
for gguf in map(Path, job["ggufs"]):
    np.save(gguf.with_suffix(".reference.npy"), ReferenceModel(gguf).run(job["tokens"]).logits)
