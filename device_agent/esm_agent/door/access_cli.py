"""Commands ``esm-agent pair`` and ``esm-agent tokens``, for access from other machines."""

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

tokens = typer.Typer(help="List and revoke the tokens of workstations.", no_args_is_help=True)


@one_line_errors
def pair(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the workstation.", show_default="host1, host2, ..."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Name or address of this device, as the workstation reaches it, without a port.",
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
            help="Make a new certificate. Every workstation must then be paired again.",
        ),
    ] = False,
    config: Config = None,
) -> None:
    """Create a token for a workstation and print the command to run there.

    The token cannot be shown again. A running agent accepts it at once, but must be restarted
    after --renew-certificate.

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
    except ValueError:
        raise typer.BadParameter(
            f"invalid address '{address}': give the name or address of this device, without a port",
            param_hint="--address",
        ) from None
    folder = config_folder(config)
    own = own_certificate(folder)
    new = None
    if own is None or renew_certificate or dates(own[0])[1] < datetime.now(UTC):
        new = make_certificate()  # before the token, which would be lost if this fails
    name, token = TokenFile(folder).add(name)
    if new is not None:
        keep_certificate(folder, *new)
        if own is not None:
            typer.echo(
                "Certificate renewed. Restart esm-agent serve, pair every other workstation again "
                "and revoke their old tokens.",
                err=True,
            )
    certificate, _ = new or own or (b"", b"")
    typer.echo(
        f"Token created for workstation '{name}'. To revoke it: esm-agent tokens revoke {name}\n"
        "Run this command on the workstation:",
        err=True,
    )
    print(
        f"esm-host devices add {_device_name()} {join(where, port)} --token {token} "
        f"--fingerprint {fingerprint(certificate)}"
    )


@tokens.command("list")
@one_line_errors
def list_tokens(config: Config = None) -> None:
    """List the tokens of workstations.

    Example: esm-agent tokens list
    """
    from esm_agent.door.tokens import TokenFile, config_folder

    known = TokenFile(config_folder(config)).all()
    width = max((len(token.name) for token in known), default=0)
    for token in known:
        print(f"{token.name:<{width}}  created {token.created}")
    if not known:
        typer.echo("There are no tokens yet: run `esm-agent pair`.", err=True)


@tokens.command()
@one_line_errors
def revoke(
    name: Annotated[
        str, typer.Argument(help="Name of the workstation, see `esm-agent tokens list`.")
    ],
    config: Config = None,
) -> None:
    """Revoke the token of a workstation at once.

    Example: esm-agent tokens revoke laptop
    """
    from esm_agent.door.tokens import TokenFile, config_folder

    TokenFile(config_folder(config)).revoke(name)
    typer.echo(f"Token of workstation '{name}' revoked.", err=True)


def _device_name() -> str:
    """Return the hostname as one word without special characters of shells."""
    host = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "-", host).strip("-") or "device"


def _guessed_address() -> str:
    """Return the address of the interface with the default route, else the hostname."""
    # Addresses reserved for documentation; nothing is sent to them.
    for family, remote in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            return str(probe.getsockname()[0])
    return socket.gethostname()
