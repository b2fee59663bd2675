"""Train a SentencePiece BPE model, and tokenize texts with it: python sentencepiece_job.py MODEL < TEXTS.json.

Prints the ids of each text as JSON. Runs in an environment with sentencepiece.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import sentencepiece

texts = json.load(sys.stdin)
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line for text in texts["train"] for line in text.splitlines()]),
    model_writer=model,
    vocab_size=texts["size"],
    model_type="bpe",
    byte_fallback=True,
    character_coverage=0.99,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    minloglevel=2,
)
Path(sys.argv[1]).write_bytes(model.getvalue())
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
print(json.dumps([processor.encode(text) for text in texts["probe"]]))
