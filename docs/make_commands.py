"""Write docs/commands.md: every command and option, read from the programs themselves.

Run it as `python docs/make_commands.py`.
"""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from typer.main import get_command
from typer.utils import get_params_from_function

from client_sdk.cli import app as device
from server.cli.main import app as operator

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).with_name("commands.md")
_HEAD: Final = """\
<!-- Written by docs/make_commands.py. Do not edit. -->
# Commands

Two programs: `lamella` for the operator, `lamella-device` on a device. Every command has `--help`.

An expected error is one sentence on stderr. Exit codes: 0 for success, 1 when something did not work,
2 when the command itself was written wrongly, 130 after Ctrl-C.
Commands with `--json` print JSON alone on stdout, for programs.
"""
# What a person types for a click type.
_KINDS: Final = {
    "text": "TEXT",
    "integer": "NUMBER",
    "integer range": "NUMBER",
    "float": "NUMBER",
    "float range": "NUMBER",
    "path": "PATH",
    "file": "FILE",
    "directory": "FOLDER",
}


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_group(get_command(app)) for app in (operator, device))


def commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group with its full name, such as `lamella base import`."""
    if not isinstance(group, click.Group):
        yield name, group
        return
    for part, command in group.commands.items():
        if command.hidden:  # another name for one that is shown
            continue
        yield from commands(command, f"{name} {part}")


def options(command: click.Command) -> Iterator[str]:
    """Every argument and option as a person types it, such as `RUN_ID` or `--model`."""
    for parameter in command.params:
        yield from (_argument(parameter),) if isinstance(parameter, click.Argument) else parameter.opts


def _group(program: click.Command) -> str:
    name = program.name or ""
    parts = [f"\n## {name}\n\n{program.help}\n"]
    parts += [_command(full_name, command) for full_name, command in commands(program, name)]
    return "".join(parts)


def _command(name: str, command: click.Command) -> str:
    arguments = [_argument(p) for p in command.params if isinstance(p, click.Argument)]
    needed = [f"{p.opts[0]} {_value(p)}" for p in command.params if isinstance(p, click.Option) and p.required]
    usage = " ".join([name, *needed, "[OPTIONS]" * (len(command.params) > len(arguments) + len(needed)), *arguments])
    text = f"\n### {name}\n\n{_one_line(command.help)}\n\n```\n{usage.replace('  ', ' ').strip()}\n```\n"
    rows = "".join(_row(parameter, _help(command, parameter)) for parameter in command.params)
    return text + (f"\n| | default | meaning |\n|---|---|---|\n{rows}" if rows else "")


def _help(command: click.Command, parameter: click.Parameter) -> str:
    """What the command's function says: click 8.5 forgets the help of an argument that typer gives it."""
    if command.callback is None:
        return ""
    told = get_params_from_function(inspect.unwrap(command.callback))[parameter.name or ""].default
    return str(told.help or "")


def _row(parameter: click.Parameter, help_text: str) -> str:
    if isinstance(parameter.envvar, str):
        help_text += f" Also `{parameter.envvar}`."
    if parameter.multiple:
        help_text += " May be given several times." * ("repeatable" not in help_text)
    if isinstance(parameter, click.Argument):
        shown = f"`{_argument(parameter)}`"
    else:
        shown = f"`{_cell(' '.join([parameter.opts[0], _value(parameter)]).strip())}`"
    return f"| {shown} | {_default(parameter)} | {_cell(help_text)} |\n"


def _argument(parameter: click.Parameter) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _value(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(getattr(choice, "value", choice)) for choice in parameter.type.choices)
    return parameter.metavar or _KINDS[parameter.type.name]


def _default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "**required**"
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    unset = is_flag or parameter.default in {None, ""}
    return "" if unset else f"`{parameter.default}`"


def _one_line(text: str | None) -> str:
    """Help text with its paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
