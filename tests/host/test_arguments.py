"""Names of arguments in the messages of code that commands and Python share."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import esm_host
from esm_host.arguments import argument, in_python, of_agent, on_command_line
from esm_host.cli.app import app

PACKAGE = Path(esm_host.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# A command to paste, or an option of another program.
COMMAND = re.compile(r"esm-host |esm-agent |its agent with|with --force|git lfs|model\.onnx|dask")
WITH_OPTIONS = ("cli/", "report/", "arguments.py")
"""Modules that may name options: commands, reports (they copy commands), the table of options."""


def options() -> set[str]:
    found: set[str] = set()

    def add(command: object) -> None:
        for parameter in command.params:  # type: ignore[attr-defined]
            found.update(name for name in parameter.opts if name.startswith("--"))
        for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
            add(command.get_command(None, name))  # type: ignore[attr-defined]

    add(typer.main.get_command(app))
    return found


def texts(node: ast.AST) -> Iterator[str]:
    """Yield each string, also in parts; not the two forms of ``either``."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "either":
        return
    if isinstance(node, ast.JoinedStr):
        parts = [each.value if isinstance(each, ast.Constant) else "{}" for each in node.values]
        yield "".join(map(str, parts))
        for each in node.values:
            if not isinstance(each, ast.Constant):
                yield from texts(each)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def modules() -> list[str]:
    paths = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
    return [path for path in paths if not path.startswith(WITH_OPTIONS)]


def test_code_below_the_commands_names_no_option() -> None:
    known = options()
    assert {"--protocol", "--resume", "--parallel"} <= known
    named = [
        (module, text)
        for module in modules()
        for text in texts(ast.parse((PACKAGE / module).read_text()))
        if known.intersection(OPTION.findall(text)) and not COMMAND.search(text)
    ]
    assert named == []


@pytest.mark.parametrize(
    ("name", "option"),
    [("run_order", "--protocol"), ("unit", "--unit"), ("max_time_s", "--max-time")],
)
def test_a_name_is_an_argument_in_python_and_an_option_in_commands(name: str, option: str) -> None:
    text = f"{argument(name)} 1 is wrong"
    assert in_python(text) == f"{name} 1 is wrong"
    assert on_command_line(text) == f"{option} 1 is wrong"


@pytest.mark.parametrize(
    ("told", "python", "command"),
    [
        (
            "loading took longer than 5 s: give a longer load timeout",
            "give a longer load_timeout_s",
            "give a longer --load-timeout",
        ),
        (
            "one inference took longer than 5 s: give a longer timeout",
            "give a longer timeout_s",
            "give a longer --timeout",
        ),
        (
            "1 of 2 nodes did not run on QNN: Neg; allow fallback to measure the model anyway",
            "give allow_fallback to measure the model anyway",
            "give --allow-fallback to measure the model anyway",
        ),
    ],
)
def test_messages_of_agents_name_the_arguments(told: str, python: str, command: str) -> None:
    assert in_python(of_agent(told)).endswith(python)
    assert on_command_line(of_agent(told)).endswith(command)
    assert of_agent("the model is broken") == "the model is broken"
