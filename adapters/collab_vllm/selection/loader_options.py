"""What ``--model-loader-extra-config`` may say to the load format ``collab``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.errors import CollabError
from collab_plugin.placement.builtin_policies import MOST_SELECTED

LOAD_FORMAT = "collab"
DEFAULT_POLICY = MOST_SELECTED.name
_HOW = "--model-loader-extra-config"


@dataclass(frozen=True)
class LoaderOptions:
    """Documented in docs/vllm.md.

    ``plan``: the plan file; None keeps every expert. ``artifact``: the GGUF that `compress` made of the plan;
    expert weights are its blocks, dequantized when they are used. ``stats``: count what the router selects.
    ``hot``: experts a layer on the device, the others in host memory; None: all on the device. ``policy``: the
    placement policy that chooses them. ``strict``: refuse a model whose router weights are not those of the plan.
    """

    plan: Path | None = None
    artifact: Path | None = None
    stats: bool = False
    hot: int | None = None
    policy: str = DEFAULT_POLICY
    strict: bool = True

    @property
    def replaces_experts(self) -> bool:
        """True when something needs `CollabRoutedExperts` (experts/routed_experts.py) in place of vLLM's layer."""
        return self.artifact is not None or self.stats or self.hot is not None


KNOWN = tuple(field.name for field in dataclasses.fields(LoaderOptions))


def parse_options(given: object) -> LoaderOptions:
    """Check the JSON object of ``--model-loader-extra-config``; CollabError naming the known options."""
    if not isinstance(given, Mapping):
        raise CollabError(f'{_HOW} is {str(given)[:60]!r}, not a JSON object like {{"plan": "plan.json"}}')
    unknown = [str(key) for key in given if key not in KNOWN]
    if unknown:
        raise CollabError(
            f"load format {LOAD_FORMAT} does not know the option {unknown[0]!r}; known: {', '.join(KNOWN)}"
        )
    if not given:
        raise CollabError(f'load format {LOAD_FORMAT} needs a plan: {_HOW} \'{{"plan": "plan.json"}}\'')
    options = LoaderOptions(
        plan=_path(given, "plan"),
        artifact=_path(given, "artifact"),
        stats=_flag(given, "stats", False),
        hot=_count(given.get("hot")),
        policy=_name(given, "policy", DEFAULT_POLICY),
        strict=_flag(given, "strict", True),
    )
    if "policy" in given and options.hot is None:
        raise CollabError('option "policy" chooses the hot experts; give "hot", their number, too')
    if options.artifact is not None and options.plan is None:
        raise CollabError('option "artifact" needs the plan that it was made of; give "plan" too')
    return options


def _path(given: Mapping[str, object], name: str) -> Path | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise CollabError(f'option "{name}" is {value!r}, not the path of a file')
    return Path(value)


def _name(given: Mapping[str, object], name: str, default: str) -> str:
    value = given.get(name, default)
    if not isinstance(value, str) or not value:
        raise CollabError(f'option "{name}" is {value!r}, not a name')
    return value


def _flag(given: Mapping[str, object], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise CollabError(f'option "{name}" is {value!r}, neither true nor false')
    return value


def _count(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CollabError(f'option "hot" is {value!r}, not a number of experts')
    return value
