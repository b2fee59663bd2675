"""The text that a model's chat template makes of messages, as transformers makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collab_plugin.errors import CollabError

TODAY = "2026-01-01"
"""What templates that ask for the day are told: the same text must come out tomorrow."""


@dataclass(frozen=True)
class ChatFormat:
    """``template``: Jinja, None where the model has none. ``bos`` and ``eos``: the text of these tokens."""

    template: str | None = None
    bos: str = ""
    eos: str = ""


class ChatRenderer:
    """Renders in Jinja's sandbox: a template comes with the model, from anyone. CollabError when it is none."""

    def __init__(self, chat: ChatFormat, model: str) -> None:
        if not chat.template:
            raise CollabError(
                f"{model} has no chat template, and the text holds `messages`: give plain text, or records with `text`"
            )
        try:
            import jinja2
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise CollabError("chats need Jinja2, which renders chat templates: pip install jinja2") from None
        self._chat, self._errors = chat, jinja2.TemplateError
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _passing_generation()]
        )
        environment.filters["tojson"] = _as_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _day}
        try:
            self._template = environment.from_string(chat.template)
        except jinja2.TemplateSyntaxError as error:
            raise CollabError(
                f"the chat template of {model} is no Jinja (line {error.lineno}: {error.message})"
            ) from None

    def text(self, messages: Sequence[Mapping[str, Any]], where: str) -> str:
        """The whole chat; CollabError naming ``where`` it is when the template refuses it."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                bos_token=self._chat.bos,
                eos_token=self._chat.eos,
                add_generation_prompt=False,
            )
        except (self._errors, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            told = str(error).strip().partition("\n")[0][:120]
            raise CollabError(f"{where}: the model's chat template refuses this chat ({told}); leave it out") from None


def _passing_generation() -> type[Any]:
    """transformers' {% generation %}, which marks what is trained on: here it is passed over."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _as_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """transformers' tojson: neither HTML's nor ASCII's escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _day(form: str) -> str:
    from datetime import datetime

    return datetime.fromisoformat(TODAY).strftime(form)
