"""What several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[
    str,
    typer.Option(help="'local', host:port, or a name from devices.toml.", envvar="ESM_DEVICE"),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Give up (exit code 75) if somebody else uses the device."),
]


def printable(text: str) -> str:
    """Without what would move a terminal's cursor: the text is others'."""
    return "".join(c if c.isprintable() else "?" for c in text)
