"""Whether llama.cpp can render a chat template: with one that it cannot, a model does not even load."""

from __future__ import annotations

import re

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

# What Jinja has and llama.cpp's own engine lacks (common/jinja/parser.cpp:100-214).
_UNKNOWN = (
    nodes.Import,
    nodes.FromImport,
    nodes.Include,
    nodes.Extends,
    nodes.Block,
    nodes.With,
    nodes.ScopedEvalContextModifier,
)


class _Generation(Extension):
    """transformers' {% generation %}, which llama.cpp passes over."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def why_not_rendered(template: str) -> str | None:
    """Return why llama.cpp cannot parse a Jinja template, None when nothing speaks against it."""
    try:
        tree = jinja2.Environment(extensions=[loopcontrols, _Generation]).parse(template)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    for node in tree.find_all(_UNKNOWN):
        return f"line {node.lineno}: llama.cpp has no {type(node).__name__} statement"
    return "llama.cpp has no raw statement" if re.search(r"{%[-+]?\s*raw\b", template) else None
