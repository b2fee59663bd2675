"""What ``--model-loader-extra-config`` may say to the load format ``collab``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from collab_plugin.errors import CollabError
from collab_plugin.placement.builtin_policies import MOST_SELECTED

LOAD_FORMAT = "collab"
DEFAULT_POLICY = MOST_SELECTED.name
_HOW = "--model-loader-extra-config"
Misses = Literal["auto", "host", "copy"]
"""Experts that are not on the device are computed by the processor, or copied, or whichever is faster."""
MISSES: tuple[Misses, ...] = get_args(Misses)


@dataclass(frozen=True)
class LoaderOptions:
    """Documented in docs/vllm.md.

    ``plan``: the plan file; None keeps every expert. ``artifact``: the GGUF that `compress` made of the plan;
    expert weights are its blocks. ``stats``: count what the router selects. ``strict``: refuse a model whose router
    weights are not those of the plan.

    ``placement``: the document that says which experts are on the device and by which policy they move. ``hot`` in its
    place: as many experts a layer, chosen by the placement policy ``policy``. With neither all are on the device.
    ``misses``: how experts that are not there are served. ``interval``: steps after which a dynamic policy rearranges.
    """

    plan: Path | None = None
    artifact: Path | None = None
    stats: bool = False
    hot: int | None = None
    policy: str = DEFAULT_POLICY
    strict: bool = True
    placement: Path | None = None
    misses: Misses = "auto"
    interval: int = 16

    @property
    def tiered(self) -> bool:
        """Some experts are in host memory alone."""
        return self.hot is not None or self.placement is not None

    @property
    def replaces_experts(self) -> bool:
        """True when something needs `CollabRoutedExperts` (experts/routed_experts.py) in place of vLLM's layer."""
        return self.artifact is not None or self.stats or self.tiered


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
        hot=None if given.get("hot") is None else _count(given, "hot", "a number of experts", 1),
        policy=_name(given, "policy", DEFAULT_POLICY),
        strict=_flag(given, "strict", True),
        placement=_path(given, "placement"),
        misses=_misses(given),
        interval=_count(given, "interval", "a number of steps", LoaderOptions.interval),
    )
    if options.placement is not None and options.hot is not None:
        raise CollabError('options "placement" and "hot" both choose the hot experts; give one of them')
    if {"misses", "interval"} & set(given) and not options.tiered:
        raise CollabError(
            'options "misses" and "interval" are for experts in host memory; give "placement" or "hot" too'
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


def _count(given: Mapping[str, object], name: str, what: str, default: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CollabError(f'option "{name}" is {value!r}, not {what}')
    return value


def _misses(given: Mapping[str, object]) -> Misses:
    value = given.get("misses", "auto")
    found = next((one for one in MISSES if one == value), None)
    if found is None:
        raise CollabError(f'option "misses" is {value!r}; known: {", ".join(MISSES)}')
    return found
