"""A tokenizer.json as Gemma-4's: BPE on text whose spaces are marked, bytes for what is no token."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from tokenizers.models import BPE
from tokenizers.normalizers import Replace as ReplaceIn
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer

from collab_plugin.checkpoint.compare_tokens import PROBE

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|channel>"]


def write_marked_tokenizer(folder: Path, size: int) -> list[Path]:
    """tokenizer.json and tokenizer_config.json with ``size`` tokens, trained on the probe texts."""
    made = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = ReplaceIn(" ", "▁")
    made.pre_tokenizer = Split(Regex(r"[^\n]+|[\n]+"), "isolated")  # as long as merges are learnt: none holds both
    spare = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *spare], show_progress=False)
    made.train_from_iterator([text[: len(text) * 2 // 3] for text in PROBE], trainer)
    made.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse()])
    data = json.loads(made.to_str())
    data["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in SPECIAL]
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"<unused{index}>": index for index in range(len(vocabulary), size)}
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
        "pad_token": "<pad>", "extra_special_tokens": {"channel": "<|channel>"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for path, content in zip(paths, (data, told), strict=True):
        path.write_text(json.dumps(content))
    return paths
