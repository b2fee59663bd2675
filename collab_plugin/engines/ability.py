"""Whether an engine can do a job, known before any work is done."""

from __future__ import annotations

from typing import get_args

from collab_plugin.engines.engine import Ability, Engine
from collab_plugin.errors import CollabError

WORDS: dict[Ability, str] = {
    "calibrate": "calibrate",
    "trace": "record a routing trace",
    "reference": "write references to compare with",
    "evaluate": "compare models on text",
    "disturb": "disturb a running model",
    "sample": "sample what experts compute",
    "generate": "generate text",
    "serve": "serve models to tasks",
    "measure": "measure this machine",
    "place": "place experts",
}
FORMATS = {"gguf": "GGUF files", "safetensors": "folders of safetensors"}


def check_able(engine: Engine, ability: Ability) -> None:
    """CollabError saying what the engine can do when that is not ``ability``."""
    if ability in engine.abilities:
        return
    able = [WORDS[each] for each in get_args(Ability) if each in engine.abilities and each != "reference"]
    can = f"it can {_list(able)}" if able else "it runs no models"
    raise CollabError(f"engine {engine.name!r} cannot {WORDS[ability]}: {can}; choose another (see `plugins`)")


def check_reads(engine: Engine, checkpoint_format: str, what: object) -> None:
    """CollabError saying what the engine reads when that is not ``checkpoint_format``; ``what`` has it."""
    if checkpoint_format not in engine.reads:
        raise CollabError(
            f"engine {engine.name!r} runs {_list([_plural(each) for each in engine.reads])}, and {what} is in the "
            f"format {checkpoint_format}; choose another engine (see `plugins`)"
        )


def _plural(checkpoint_format: str) -> str:
    return FORMATS.get(checkpoint_format, f"models in the format {checkpoint_format}")


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
