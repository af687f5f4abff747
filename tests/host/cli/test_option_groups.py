"""Groups of options: a dataclass is one parameter of a command, and its fields are options."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import ProviderOptions, SpaceOptions, grouped, settings_of
from esm_host.cli.options import was_given
from esm_host.extension.settings import Settings


@dataclass(frozen=True)
class Group:
    names: Annotated[list[str] | None, typer.Option("--name", help="Names.")] = None
    count: Annotated[int, typer.Option(help="A count.", rich_help_panel="Numbers")] = 3


@one_line_errors
@grouped
def command(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument()],
    group: Group,
    provider: ProviderOptions,
) -> None:
    """Say what is given."""
    given = [name for name in ("count", "tf32") if was_given(ctx, name)]
    typer.echo(f"{first} {group} {provider.tf32} {given}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "a Group(names=None, count=3) False []"),
        (
            ["a", "--count", "3", "--name", "x", "--name", "y", "--tf32"],
            "a Group(names=['x', 'y'], count=3) True ['count', 'tf32']",
        ),
    ],
)
def test_a_command_gets_its_groups(arguments: list[str], said: str) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, said)


def test_settings_are_found_by_their_options() -> None:
    @dataclass
    class Options:
        target_accuracy: float = 90.0
        unknown: int = 1

    space = SpaceOptions(batch=4, context=["past=8"])
    own = dict(vars(space))
    assert settings_of(Settings, space, Options()) == {
        "contexts": own.pop("context"),
        **own,
        "target_accuracy_percent": 90.0,
    }
