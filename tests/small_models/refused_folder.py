"""A folder that is refused, by the call and by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint


def refused(folder: Path) -> str:
    """The one line of an error, which the command prints and nothing else."""
    with pytest.raises(CollabError) as error:
        open_checkpoint(folder)
    message = str(error.value)
    assert "\n" not in message
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines() == [f"error: {' '.join(message.split())}"]
    return message
