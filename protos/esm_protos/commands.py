"""Command-line style of both programs: help as plain text, usage errors on one line.

Plain text loads faster than boxes and colours, and works in a pipe.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import typer
from typer._click.globals import get_current_context
from typer.core import TyperCommand, TyperGroup

from esm_protos.nearest import nearest
from esm_protos.terminal import styled

_INVALID = re.compile(r"Invalid value for '(?P<option>-[^' ]*)'[^:]*: (?P<why>Input .*)", re.DOTALL)
_CURES = (
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"give \1 or more"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"give \1 or less"),
    (re.compile(r"Input should be a valid integer.*", re.DOTALL), "give a whole number"),
    (re.compile(r"Input should be a valid number.*", re.DOTALL), "give a number"),
)
"""Messages of the parser, with their remedies."""
_NO_OPTION = re.compile(r"-[^\w-]")
"""Beginning of an argument that is no option, whatever its dash says."""
_NOT_ONE_OF = re.compile(r"'(?P<given>[^']*)' is not one of (?P<choices>.*)")


class Command(TyperCommand):
    """Command whose ``--help`` has a section for each ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)


class Commands(TyperGroup):
    """Group of such commands; a usage error prints ``error: ...`` and exits with code 2."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)
        rows = (
            (command.rich_help_panel or "Commands", (name, command.get_short_help_str(limit=100)))
            for name, command in self.commands.items()
            if isinstance(command, TyperCommand | TyperGroup) and not command.hidden
        )
        _write_sections(formatter, rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        try:
            result = super().main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except typer.TyperException as error:
            if not standalone_mode:
                raise
            no_arguments = type(error).__name__ == "NoArgsIsHelpError"  # its message is the help
            typer.echo(
                error.message if no_arguments else f"error: {one_line(error, given)}", err=True
            )
            result = error.exit_code
        except typer.Abort:
            if not standalone_mode:
                raise
            typer.echo("error: standard input has ended", err=True)
            result = 1
        if standalone_mode:
            sys.exit(result)
        return result


def one_line(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return a usage error on one line, with the nearest valid word and the help command.

    Args:
        error: Error of the parser.
        arguments: Arguments of the program, including the refused value.
    """
    options = getattr(error, "possibilities", None)
    text = error.message if options else error.format_message()
    if found := _INVALID.match(text):
        why = found["why"]
        for pattern, cure in _CURES:
            why = pattern.sub(cure, why)
        text = f"{found['option']}{_value_of(found['option'], arguments)}: {why}"
    text = " ".join(text.replace("Value error, ", "").split()).removesuffix(".")
    text = text[:1].lower() + text[1:].replace("'. Did you mean", "': did you mean")
    ctx = getattr(error, "ctx", None)
    name, hint = getattr(error, "option_name", None) or "", ""
    if ctx is not None and _NO_OPTION.match(name):
        given = next((each for each in arguments if each.startswith(name)), name)
        quoted = shlex.quote(given)
        return (
            f"{quoted} is read as an option: put -- before it, {ctx.command_path} ... -- {quoted}"
        )
    if others := _commands_with(error):
        text, hint = error.message.removesuffix("."), f"it is an option of {', '.join(others)}; "
        text = text[:1].lower() + text[1:]
    elif options:
        hint = nearest(name, options)
    elif match := _NOT_ONE_OF.search(text):
        hint = nearest(match["given"], re.findall(r"'([^']*)'", match["choices"]))
    if ctx is not None:
        hint += f"see {ctx.command_path} --help"
    return f"{text}{'' if text.endswith('?') else ':'} {hint}" if hint else text


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """Return the last value of an option after a space; empty if it has none."""
    found = ""
    for name, value in pairwise([*arguments, ""]):
        if name == option:
            found = f" {value}"
        elif name.startswith(f"{option}="):
            found = f" {name.removeprefix(f'{option}=')}"
    return found


def with_origins(text: str) -> str:
    """Return the error of the running command with the true origin of its values.

    A variable replaces the option that it set. If the error quotes only the value, the variable
    precedes it.
    """
    ctx = get_current_context(silent=True)
    if ctx is None:
        return text
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        variable = str(param.envvar)
        if source is None or source.name != "ENVIRONMENT" or variable in text:
            continue
        for option in param.opts:
            text = re.sub(rf"(?<![\w-]){re.escape(option)}(?![\w-])", variable, text)
        values = re.split(r"[,\s]+", os.environ.get(variable, ""))
        if variable not in text and any(_quotes(text, value) for value in values):
            text = f"{variable}: {text}"
    return text


def _quotes(text: str, value: str) -> bool:
    return bool(value and re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w.-])", text))


def _commands_with(error: typer.TyperException) -> list[str]:
    """Return the other commands that have the option an error calls unknown."""
    name, ctx = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if not hasattr(error, "possibilities") or name is None or ctx is None:
        return []
    root = ctx.find_root()
    if not isinstance(root.command, TyperGroup):
        return []
    commands = {each: root.command.get_command(root, each) for each in root.command.commands}
    return [
        each
        for each, command in commands.items()
        if command is not None and any(name in param.opts for param in command.params)
    ]


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    rows = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            kind = "Arguments" if param.param_type_name == "argument" else "Options"
            rows.append((getattr(param, "rich_help_panel", None) or kind, record))
    _write_sections(formatter, rows, first=("Arguments", "Options"))


def _write_sections(
    formatter: Any, rows: Iterable[tuple[str, tuple[str, str]]], first: tuple[str, ...] = ()
) -> None:
    sections: dict[str, list[tuple[str, str]]] = {name: [] for name in first}
    for name, row in rows:
        sections.setdefault(name, []).append(row)
    for name, records in sections.items():
        if records:
            with formatter.section(styled(name, "bold", sys.stdout)):
                formatter.write_dl(records)
