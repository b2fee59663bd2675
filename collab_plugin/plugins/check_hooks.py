"""What a plugin says it implements, held to the hooks that there are."""

from __future__ import annotations

import difflib
import inspect

import pluggy

from collab_plugin.errors import CollabError
from collab_plugin.plugins import hookspecs

PREFIX = "collab_register_"
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith(PREFIX))


class CheckedPlugins(pluggy.PluginManager):
    """Refuses a plugin of which a function would never be called, or not as it is written.

    Pluggy alone would leave out, without a word, a misspelt hook and one without the decorator.
    """

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """CollabError in one line that names the plugin and what to mend."""
        for attribute in dir(plugin):
            if problem := self._problem(plugin, attribute):
                raise CollabError(f"plugin {name or self.get_canonical_name(plugin)!r}: {problem}")
        return super().register(plugin, name)

    def _problem(self, plugin: object, attribute: str) -> str:
        marked = self.parse_hookimpl_opts(plugin, attribute)
        if marked is None and not attribute.startswith(PREFIX):
            return ""
        if attribute not in HOOKS:
            if marked and marked["optionalhook"]:  # the plugin's way to say that another version has it
                return ""
            nearest = difflib.get_close_matches(attribute, HOOKS, 1, 0)[0]
            return f"there is no hook {attribute}; did you mean {nearest}?"
        if marked is None:
            return f"{attribute} lacks the decorator @collab_plugin.hookimpl"
        arguments = ", ".join(inspect.signature(getattr(plugin, attribute)).parameters)
        return "" if arguments == "register" else f"write {attribute}(register) in place of {attribute}({arguments})"
