"""A Hugging Face folder to a BF16 GGUF by llama.cpp's own converter: convert_job.py CONVERTER FOLDER OUT

Run in an environment with torch and transformers. The converter knows tokenizers by a hash of the tokens of a text, and
the small tokenizer here is none of them: it is told a name.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(converter: Path, folder: Path, out: Path) -> None:
    sys.path[:0] = [str(converter / "gguf-py"), str(converter)]
    import gguf
    import torch
    from conversion import (  # type: ignore[import-not-found]  # llama.cpp's
        ModelBase,
        ModelType,
        TextModel,
        get_model_architecture,
        get_model_class,
    )

    torch.set_num_threads(1)
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    kind = get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT))
    kind.no_mtp = kind.supports_mtp_export
    kind.set_vocab = TextModel._set_vocab_gpt2
    with torch.inference_mode():
        kind(folder, gguf.LlamaFileType.MOSTLY_BF16, out).write()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
