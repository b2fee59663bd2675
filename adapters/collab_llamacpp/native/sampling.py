"""From logits to text: the sampler, and the bytes of a token."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as llama

from collab_llamacpp.native.model import LoadedModel


def sampler(temperature: float, seed: int) -> Any:
    """A sampler chain: greedy at temperature 0. Free it with llama_sampler_free."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    if temperature > 0:
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(temperature))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
    else:
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
    return chain


def piece(session: LoadedModel, token: int) -> bytes:
    """The bytes a token stands for; control tokens as they are written."""
    buffer = ctypes.create_string_buffer(256)
    size = llama.llama_token_to_piece(session.vocab, token, buffer, len(buffer), 0, True)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama.llama_token_to_piece(session.vocab, token, buffer, len(buffer), 0, True)
    return bytes(buffer.raw[: max(size, 0)])
