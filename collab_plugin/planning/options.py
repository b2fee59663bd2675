"""Options that a criterion or an allocator declares, and the values that a user gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from collab_plugin.errors import CollabError

OptionValue = float | int | str


@dataclass(frozen=True)
class Option:
    """One option: ``--criterion-option NAME=VALUE`` or ``--allocator-option NAME=VALUE``.

    ``default`` also says the type: a float, an int or a str. ``check(value)`` returns what is wrong with a value
    of that type, such as "is not between 0 and 1", or None.
    """

    name: str
    default: OptionValue
    help: str
    check: Callable[[OptionValue], str | None] | None = None


def option_values(options: Sequence[Option], given: Mapping[str, OptionValue], owner: str) -> dict[str, OptionValue]:
    """Every option's value: the given one, read as the option's type, or its default.

    ``owner``, such as "criterion freq-score", is named in errors. Raises CollabError for an unknown option and for
    a value of another type or that ``check`` refuses.
    """
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise CollabError(f"{owner} has no option {name!r}; {have}")
    return {name: _value(option, given.get(name, option.default), owner) for name, option in known.items()}


def _value(option: Option, given: OptionValue, owner: str) -> OptionValue:
    kind = type(option.default)
    about = f"({option.help}; default {option.default})"
    try:
        value = given if isinstance(given, kind) else kind(given)
        if isinstance(given, float) and kind is int and given != value:
            raise ValueError
    except (ValueError, OverflowError):
        what = {float: "a number", int: "a whole number"}.get(kind, "text")
        raise CollabError(f"{owner}: option {option.name} is {given!r}, which is not {what} {about}") from None
    if option.check is not None and (wrong := option.check(value)):
        raise CollabError(f"{owner}: option {option.name} is {value}, which {wrong} {about}")
    return value
