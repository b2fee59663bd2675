"""Write docs/cli.md and the schemas in docs/formats from the code: python docs/write_reference.py

tests/repository/test_docs.py fails when they are not what this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from collab_conformance.pack.pack_file import pack_schema
from collab_conformance.report.report_file import report_schema

from collab_plugin.cli import main
from collab_plugin.placement.placement_file import placement_schema
from collab_plugin.plans.plan_file import plan_schema
from collab_plugin.stats.sensitivity_file import sensitivity_schema

HERE = Path(__file__).parent
ARGUMENTS = {
    "model": "the model, a file or a folder",
    "artifact": "a GGUF file, or any shard of a split one",
    "name": "a model of the server",
    "plan": "the plan, a file",
    "a": "a plan, a file",
    "b": "the plan to compare it with",
    "artifacts": "GGUF files, of split ones any shard",
    "reports": "reports of `verify --json`, files",
}


def option_row(option: click.Parameter, context: click.Context) -> str:
    """One table row: spelling with its value, what it does, default."""
    if isinstance(option, click.Argument):
        return f"| `{option.make_metavar(context)}` | {ARGUMENTS[str(option.name)]} | {_need(option)} |"
    assert isinstance(option, click.Option)
    spelling = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" `{option.make_metavar(context)}`"
    shown = option.show_default if isinstance(option.show_default, str) else option.to_info_dict()["default"]
    row = f"{spelling}{value} | {option.help or ''} | {_default(option, shown)}"
    return "| " + row.replace("|", "\\|").replace(" \\| ", " | ") + " |"


def _need(parameter: click.Parameter) -> str:
    return "required" if parameter.required else ""


def _default(option: click.Option, shown: object) -> str:
    if option.required or option.is_flag or shown is None or shown == () or "UNSET" in str(shown):
        return _need(option)
    return f"`{', '.join(map(str, shown)) if isinstance(shown, (list, tuple)) else shown}`"


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command below ``group`` with its context; groups themselves only when they also run alone."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if not isinstance(command, click.Group):
            yield command, inner
            continue
        if command.invoke_without_command:
            yield command, inner
        # Without its parameters, which would be in the paths of the commands below.
        yield from commands(command, click.Context(click.Command(name), info_name=name, parent=context))


def cli_page() -> str:
    """The whole of docs/cli.md."""
    parts = ["# Commands\n\nWritten by `docs/write_reference.py` from the code.\n"]
    for command, context in commands(main, click.Context(main, info_name="collab-plugin")):
        help_text = "\n\n".join(" ".join(p.split()) for p in (command.help or "").split("\n\n"))
        rows = [option_row(p, context) for p in command.params if p.name != "help"]
        parts.append(f"## {context.command_path}\n\n{help_text}\n")
        parts.append("| option | what it does | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def schema_text(schema: dict[str, Any]) -> str:
    """The whole of a schema's page."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    (HERE / "cli.md").write_text(cli_page())
    (HERE / "formats" / "plan.schema.json").write_text(schema_text(plan_schema()))
    (HERE / "formats" / "placement.schema.json").write_text(schema_text(placement_schema()))
    (HERE / "formats" / "sensitivity.schema.json").write_text(schema_text(sensitivity_schema()))
    (HERE / "formats" / "pack.schema.json").write_text(schema_text(pack_schema()))
    (HERE / "formats" / "report.schema.json").write_text(schema_text(report_schema()))
