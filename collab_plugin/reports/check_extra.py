"""The page and the plots need matplotlib and Jinja2, which the core does not bring."""

from __future__ import annotations

from importlib.util import find_spec

from collab_plugin.errors import CollabError

NEEDS = {"matplotlib": "matplotlib", "jinja2": "Jinja2"}


def check_extra() -> None:
    """CollabError naming what is missing and how to install it."""
    missing = [name for module, name in NEEDS.items() if find_spec(module) is None]
    if missing:
        raise CollabError(f"the page and the plots need {' and '.join(missing)}: pip install 'collab-plugin[report]'")
