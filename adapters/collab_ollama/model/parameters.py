"""The parameters of a model in Ollama: their names, kinds and sound values.

Source: api/types.go of Ollama v0.32.15 (Options, FormatParams). /api/create checks none of them: an
unknown name is only logged when the model is loaded. So they are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from collab_plugin.errors import CollabError

Value = int | float | bool | tuple[str, ...]

INTEGERS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed"}
    | {"num_predict", "top_k", "repeat_last_n"}
)
_FLOATS = frozenset(
    {"top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_SHARES = frozenset({"top_p", "min_p", "typical_p"})
_IGNORED = frozenset(
    {"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"}
    | {"mirostat", "mirostat_tau", "mirostat_eta"}
)
NAMES = (*sorted(INTEGERS | _FLOATS), "stop", "use_mmap")


def parameter(name: str, text: str) -> Value:
    """Parse ``text`` as the value of parameter ``name``; CollabError when Ollama would not take it."""
    if name == "stop":
        return (text,)
    if name == "use_mmap":
        if text.lower() not in ("true", "false"):
            raise CollabError(f"use_mmap is {text!r}, not true or false")
        return text.lower() == "true"
    _refuse_name(name)
    try:
        value: int | float = int(text) if name in INTEGERS else float(text)
    except ValueError:
        kind = "a whole number" if name in INTEGERS else "a number"
        raise CollabError(f"{name} is {text!r}, not {kind}") from None
    return _checked(name, value)


def check_parameters(parameters: Mapping[str, Value]) -> None:
    """CollabError naming the first parameter that Ollama would refuse, ignore or misread."""
    for name, value in parameters.items():
        if name == "stop":
            if not isinstance(value, tuple) or not all(value):
                raise CollabError("stop must be a list of texts, none of them empty")
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise CollabError(f"use_mmap is {value!r}, not true or false")
        else:
            _refuse_name(name)
            _checked(name, value)


def _refuse_name(name: str) -> None:
    if name in _IGNORED:
        raise CollabError(f"Ollama ignores the parameter {name}; leave it out")
    if name not in INTEGERS | _FLOATS:
        raise CollabError(f"Ollama has no parameter {name!r}; known: {', '.join(NAMES)}")


def _checked(name: str, value: Value) -> int | float:
    whole = name in INTEGERS
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise CollabError(f"{name} is {value!r}, not {'a whole number' if whole else 'a number'}")
    number = value if isinstance(value, int) else float(value)
    # Go parses 64-bit integers and 32-bit floats.
    if not math.isfinite(number) or abs(number) > (2**63 - 1 if whole else 3.4e38):
        raise CollabError(f"{name} is {value!r}: out of range")
    if name in _SHARES and not 0 <= number <= 1:
        raise CollabError(f"{name} is {value!r}, not between 0 and 1")
    if name == "temperature" and number < 0:
        raise CollabError(f"temperature is {value!r}, not at least 0")
    if name == "repeat_penalty" and number <= 0:
        raise CollabError(f"repeat_penalty is {value!r}, not above 0 (1 is none)")
    if name == "num_ctx" and number < 1:
        raise CollabError(f"num_ctx is {value!r}: a context needs at least one token")
    return number


def spelled(value: Value) -> str:
    """How a value other than ``stop`` is written in a Modelfile."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
