"""Convert folders by llama.cpp's own converter.

python converter_job.py LLAMA_CPP JOB.json, in an environment with transformers; LLAMA_CPP is the folder of llama.cpp's
sources. The job has a list of {"folder", "out", "pre", "mtp"}: "pre" stands for what the converter knows real
tokenizers by, a hash of the tokens of a text, which no tokenizer of tests has. Prints JSON: for each what went wrong,
or null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

source = Path(sys.argv[1])
sys.path[:0] = [str(source / "gguf-py"), str(source)]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion import ModelBase, ModelType, TextModel, get_model_architecture, get_model_class  # noqa: E402


def convert(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    TextModel.get_vocab_base_pre = lambda self, tokenizer: job["pre"]
    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    kind = get_model_class(architecture)
    kind.no_mtp = kind.supports_mtp_export
    kind(folder, gguf.LlamaFileType.ALL_F32, Path(job["out"])).write()


def main(path: str) -> None:
    told: list[str | None] = []
    with torch.inference_mode():
        for job in json.loads(Path(path).read_text()):
            try:
                convert(job)
                told.append(None)
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
    print(json.dumps(told))


main(sys.argv[2])
