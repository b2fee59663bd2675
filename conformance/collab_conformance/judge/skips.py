"""Files of skips and expected failures: one rule a line, owned by the backend's maintainer.

    # TARGET-GLOB CHECK-GLOB  # reason
    llamacpp:vulkan:*  kernels.*.IQ1_M       # no such pipeline before Mesa 25, mesa/mesa#1234
    *                  tiny-*/behaviour.kv_*  # the backend has no such cache

A check glob is held against "name" and "artifact/name". Page: docs/conformance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Rule:
    """Globs over the target's name and the check (`job.named`), and why."""

    target: str
    check: str
    reason: str


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read a file of rules; CollabError naming file and line of one without two globs or a reason."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CollabError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return tuple(_rule(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.partition("#")[0].strip())


def _rule(line: str, where: str) -> Rule:
    globs, _, reason = line.partition("#")
    words = globs.split()
    if len(words) != 2:
        raise CollabError(f"{where}: expected TARGET-GLOB CHECK-GLOB  # reason")
    if not reason.strip():
        raise CollabError(f"{where}: a reason is needed after the globs, behind #")
    return Rule(words[0], words[1], reason.strip())


def for_target(rules: Sequence[Rule], target: str) -> tuple[Rule, ...]:
    """The rules that are about this target."""
    return tuple(rule for rule in rules if fnmatchcase(target, rule.target))
