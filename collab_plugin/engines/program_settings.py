"""Where programs of other projects are, as the user says it: in an environment variable, or in a settings file.

The file is `settings.toml` in the user's configuration folder (docs/install.md); its table `[programs]` has a text for
each key. Adapters look at what is installed when neither says anything.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.errors import CollabError


@dataclass(frozen=True)
class Setting:
    """``key`` in the file's table `[programs]`; the environment variable ``variable`` goes before it."""

    key: str
    variable: str

    def how_to_give(self) -> str:
        """For messages: how the user says it."""
        return f"set {self.variable}, or {self.key} under [programs] in {settings_file()}"


@dataclass(frozen=True)
class Configured:
    """What the user said, and what to call the place in messages ("COLLAB_VLLM", "vllm_python in FILE")."""

    value: str
    source: str


def settings_file() -> Path:
    """Return the path of settings.toml, which need not be there: $XDG_CONFIG_HOME/collab-plugin on Linux."""
    import platformdirs  # not at the top: children in other environments import this module, and ask for nothing

    return platformdirs.user_config_path("collab-plugin", appauthor=False) / "settings.toml"


def configured(setting: Setting) -> Configured | None:
    """Return what the variable says, else the file, else None; CollabError for a file that cannot be understood."""
    if value := os.environ.get(setting.variable):
        return Configured(value, setting.variable)
    path = settings_file()
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CollabError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CollabError(f"{path} is no TOML: {error}") from None
    programs = found.get("programs", {})
    if not isinstance(programs, dict):
        raise CollabError(f"{path}: [programs] must be a table")
    value = programs.get(setting.key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise CollabError(f"{path}: {setting.key} under [programs] must be a path in quotes")
    return Configured(value, f"{setting.key} in {path}")
