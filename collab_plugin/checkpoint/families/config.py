"""config.json of a Hugging Face folder, read with transformers' defaults and with every key accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from collab_plugin.errors import CollabError

# Keys that change nothing a trained model computes, or that are read elsewhere (token ids: the tokenizer's files).
_WITHOUT_EFFECT = frozenset(
    (
        *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits"),
        *("initializer_range", "attention_dropout", "chunk_size_feed_forward", "is_encoder_decoder", "problem_type"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "tie_word_embeddings"),
        *("router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp", "router_jitter_noise"),
        *("quantization_config", "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "max_window_layers"),
    )
)


class Config:
    """Checked access to config.json: a key that is left out has its default, if transformers has one for it.

    ``defaults`` are those of transformers' config class. An ill-typed key, and a missing one without a default, is a
    CollabError. `unread` lists what nobody asked for.
    """

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values, self.where, self.defaults = values, where, defaults or {}
        self._asked: set[str] = set()

    def get(self, key: str) -> Any:
        """The value, transformers' default where the key is left out, None where there is none."""
        self._asked.add(key)
        return self.values.get(key, self.defaults.get(key))

    def integer(self, key: str) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise CollabError(f"{self.where} has {key} = {str(value)[:40]!r}, not a whole number")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise CollabError(f"{self.where} has {key} = {str(value)[:40]!r}, not a number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise CollabError(f"{self.where} has {key} = {str(value)[:40]!r}, neither true nor false")
        return value

    def kinds(self, key: str, known: Sequence[str]) -> list[str] | None:
        """A list with one of the words ``known`` for each layer; None where the key is left out or null."""
        told, count = self.get(key), self.integer("num_hidden_layers")
        if told is None:
            return None
        if not isinstance(told, list) or len(told) != count or not set(map(str, told)) <= set(known):
            raise CollabError(f"{self.where} has {key} that are not {' or '.join(known)} for each of {count} layers")
        return list(told)

    def unread(self) -> list[str]:
        """Keys that nobody asked for and that are not known to be without effect."""
        return sorted(set(self.values) - self._asked - _WITHOUT_EFFECT)
