"""The ggml types that Ollama's Go code knows the size of; a file with any other is refused at create.

Source: fs/ggml/ggml.go, TypeSize, of Ollama v0.32.15 (the same in v0.30.0). The ternary types TQ1_0
and TQ2_0 are the ones missing that llama.cpp itself would run.
"""

from __future__ import annotations

from collab_plugin.engines.supported_types import Loader

_FLOATS = ("F64", "F32", "F16", "BF16", "MXFP4", "NVFP4")
_INTEGERS = ("I8", "I16", "I32", "I64")
_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1")
_K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K")
_I = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")

OLLAMA = Loader(
    name="ollama",
    description="types that `ollama create` accepts",
    types=frozenset((*_FLOATS, *_INTEGERS, *_BLOCKS, *_K, *_I)),
)
