"""``esm-agent pair`` and ``esm-agent tokens``: who may use this agent from elsewhere."""

from __future__ import annotations

import contextlib
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from esm_agent.one_line import one_line_errors
from esm_protos.addresses import check_host, join
from esm_protos.messages import DEFAULT_PORT

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="ESM_AGENT_CONFIG",
        help="Folder of tokens and certificate.",
        show_default="~/.config/esm-agent",
    ),
]

tokens = typer.Typer(help="See and revoke the tokens of workstations.", no_args_is_help=True)


@one_line_errors
def pair(
    name: Annotated[
        str | None,
        typer.Argument(help="What to call the workstation.", show_default="host1, host2, ..."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the workstation reaches this device, without a port.",
            show_default="a guess",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port that the workstation reaches.", min=1, max=65535)
    ] = DEFAULT_PORT,
    renew_certificate: Annotated[
        bool,
        typer.Option(
            "--renew-certificate",
            help="Make a new certificate: every workstation has to be paired again.",
        ),
    ] = False,
    config: Config = None,
) -> None:
    """Let a workstation in. Prints the line to paste there; it cannot be shown again.

    A running agent lets it in at once, but has to be started again for a new certificate.

    Example: esm-agent pair laptop --address 192.168.1.20
    """
    from esm_agent.door.certificate import (
        dates,
        fingerprint,
        keep_certificate,
        make_certificate,
        own_certificate,
    )
    from esm_agent.door.tokens import TokenFile, config_folder

    try:
        where = check_host(address) if address else _guessed_address()
    except ValueError as error:
        raise typer.BadParameter(f"{error}, without a port", param_hint="--address") from None
    folder = config_folder(config)
    own = own_certificate(folder)
    new = None
    if own is None or renew_certificate or dates(own[0])[1] < datetime.now(UTC):
        new = make_certificate()  # before the token, which would be lost if this failed
    name, token = TokenFile(folder).add(name)
    if new is not None:
        keep_certificate(folder, *new)
        if own is not None:
            typer.echo(
                "a new certificate: start esm-agent serve again, pair every other workstation "
                "again, and revoke their old tokens",
                err=True,
            )
    certificate, _ = new or own or (b"", b"")
    typer.echo(
        f"'{name}' may come in (esm-agent tokens revoke {name} ends that); paste this on the "
        "workstation, once:",
        err=True,
    )
    print(
        f"esm-host devices add {_device_name()} {join(where, port)} --token {token} "
        f"--fingerprint {fingerprint(certificate)}"
    )


@tokens.command("list")
@one_line_errors
def list_tokens(config: Config = None) -> None:
    """Show who may come in. Example: esm-agent tokens list"""
    from esm_agent.door.tokens import TokenFile, config_folder

    known = TokenFile(config_folder(config)).all()
    width = max((len(token.name) for token in known), default=0)
    for token in known:
        print(f"{token.name:<{width}}  since {token.created}")
    if not known:
        typer.echo("no workstation may come in yet: run `esm-agent pair`", err=True)


@tokens.command()
@one_line_errors
def revoke(
    name: Annotated[str, typer.Argument(help="As esm-agent tokens list shows it.")],
    config: Config = None,
) -> None:
    """Shut a workstation out, at once and for good. Example: esm-agent tokens revoke laptop"""
    from esm_agent.door.tokens import TokenFile, config_folder

    TokenFile(config_folder(config)).revoke(name)
    typer.echo(f"'{name}' may not come in any more", err=True)


def _device_name() -> str:
    """This hostname, as one word that no shell changes."""
    host = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "-", host).strip("-") or "device"


def _guessed_address() -> str:
    """The address of the interface that leads elsewhere, else the host name."""
    # Addresses of documentation; nothing is sent.
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return socket.gethostname()
