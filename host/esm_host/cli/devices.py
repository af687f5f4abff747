"""``esm-host devices``: registered devices, groups, facts and health checks."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import (
    Json,
    NoWait,
    device_names,
    names_of_all,
    names_of_devices,
)
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import Verdict, print_table
from esm_protos.commands import Commands
from esm_protos.text import counted, printable

if TYPE_CHECKING:
    from esm_host.transport.pairing import AddedDevice

_LOAD_S = 0.5

_Named = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="'local', host:port, or a name from devices.toml.",
        autocompletion=device_names,
    ),
]

devices = typer.Typer(
    cls=Commands,
    help="Add, inspect and group devices.",
    epilog="Start with: esm-host devices find, esm-host devices list",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@devices.command()
@one_line_errors
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the device.")],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of its agent.")],
    token: Annotated[
        str | None,
        typer.Option(
            help="Token from esm-agent pair; - reads it from standard input. Default: ESM_TOKEN, "
            "which is not saved.",
        ),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the agent's certificate, from esm-agent pair."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Mutual TLS: certificate of the agent's authority, PEM.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Mutual TLS: this host's certificate, PEM.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Mutual TLS: key of that certificate, PEM.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a device of the same name.")
    ] = False,
) -> None:
    """Add a device, if its agent answers. esm-agent pair prints this command.

    Example: esm-host devices add lab 127.0.0.1:7343
    """
    from esm_host.transport import pairing

    token = sys.stdin.readline().strip() if token == "-" else token
    added = pairing.add(
        *(name, address, token, fingerprint),
        pairing.MutualTls.of(ca, certificate, key),
        force,
        warn=lambda text: typer.echo(f"warning: {text}", err=True),
    )
    _print_added(added)


@devices.command("set")
@one_line_errors
def set_device(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the device.", autocompletion=names_of_devices),
    ],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="New address of its agent.")],
) -> None:
    """Change the address of a device that moved. Its token and pinned certificate stay.

    The same agent must answer at the new address.

    Example: esm-host devices set pi4 --address 192.168.1.21:7343
    """
    from esm_host.transport import pairing

    _print_added(pairing.move(name, address))


def _print_added(added: AddedDevice) -> None:
    from esm_host.cli.facts import clock_off

    info = added.info
    print(
        printable(
            f"{added.name}: {info.hostname}, {info.cpu_model}, "
            f"{counted(info.cpu_count, 'processor')}; "
            f"agent {info.agent_version}, {info.runtime} ({', '.join(info.providers)})"
        )
    )
    if info.time_unix_s is not None and (off := clock_off(info.time_unix_s, least_s=86_400)):
        typer.echo(f"warning: {added.name}'s clock is {off}: correct the wrong clock", err=True)
    typer.echo(f"written to {added.path}", err=True)


@devices.command("list")
@one_line_errors
def list_devices(output: Json = None) -> None:
    """List the registered devices, with their users and software.

    Example: esm-host devices list --json -
    """
    from esm_host.transport.devices import groups
    from esm_host.transport.overview import overview

    check_output(output)
    grouped = groups()
    rows = overview()
    if output is not None:
        data = {
            "schema_version": 1,
            "devices": [asdict(row) for row in rows],
            "groups": grouped,
        }
        write_output(output, json.dumps(data, indent=2))
        return
    if not rows:
        typer.echo(
            "no devices yet: run `esm-agent pair` on a device, or `esm-host devices add` here",
            err=True,
        )
        return
    print_table(
        ("name", "address", "state", "waiting", "agent", "runtime", "free"),
        (
            (
                row.name,
                row.address,
                Verdict(
                    row.state + (f" by {row.owner} ({row.purpose})" if row.owner else ""), row.state
                ),
                "-" if row.waiting is None else str(row.waiting),
                row.agent_version or "-",
                row.runtime or "-",
                "-"
                if row.memory_free_bytes is None
                else f"{row.memory_free_bytes / 2**30:.1f} GiB",
            )
            for row in rows
            for free in (row.memory_free_bytes,)
        ),
    )
    for group, members in grouped.items():
        print(printable(f"group {group}: {', '.join(members)}"))
    for row in rows:
        if row.error:
            typer.echo(printable(f"{row.name}: {row.error}"), err=True)


@devices.command()
@one_line_errors
def find(
    seconds: Annotated[
        float, typer.Option(help="Seconds to wait for answers.", min=0.1, max=60)
    ] = 3.0,
    output: Json = None,
) -> None:
    """List the agents that announce themselves in this network (esm-agent serve --announce).

    The listed facts are not verified. `devices add` with a fingerprint verifies the agent.

    Example: esm-host devices find --seconds 5
    """
    from esm_host.transport import discovery

    check_output(output)
    found = discovery.find(seconds)
    if output is not None:
        data = {"schema_version": 1, "agents": [asdict(each) for each in found]}
        write_output(output, json.dumps(data, indent=2))
    elif found:
        print_table(
            ("host", "address", "machine", "agent", "tls", "known as", "next"),
            (
                (
                    each.hostname or "-",
                    each.addresses[0],
                    each.machine or "-",
                    each.agent_version or "-",
                    {True: "yes", False: "no", None: "-"}[each.tls],
                    ", ".join(each.known_as) or "-",
                    each.next_step,
                )
                for each in found
            ),
        )
    if not found:
        typer.echo(
            "no agents found: start them with esm-agent serve --announce, in the same network",
            err=True,
        )


@devices.command()
@one_line_errors
def info(name: _Named, output: Json = None) -> None:
    """Show the hardware, software, limits and current state of a device.

    Example: esm-host devices info pi4
    """
    import time

    from esm_host.cli.facts import lines
    from esm_host.transport.devices import configured, connect

    check_output(output)
    with connect(name) as profiler:
        before, since = profiler.device_info(), time.monotonic()
        time.sleep(_LOAD_S)  # the busy time between two answers gives the load
        now, between_s = profiler.device_info(), time.monotonic() - since
    if output is not None:
        data = {"schema_version": 1, "device": name, **asdict(now)}
        data["state"] = now.state.to_json()
        write_output(output, json.dumps(data, indent=2), f"facts about {name} written to {output}")
        return
    entry = configured().get(name)
    title = name if entry is None else f"{name} ({entry.address})"
    for line in lines(title, before, now, between_s):
        print(printable(line))


@devices.command()
@one_line_errors
def remove(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of a device or group.", autocompletion=names_of_all
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Also remove it from its groups.")] = False,
) -> None:
    """Remove a device, with its token and its pinned certificate, or a group.

    The token stays valid until `esm-agent tokens revoke` on the device.

    Example: esm-host devices remove pi4
    """
    from esm_host.transport import naming

    for group in naming.remove(name, force):
        typer.echo(f"group {group} removed too: {name} was its only device", err=True)
    typer.echo(f"{name} removed", err=True)


@devices.command()
@one_line_errors
def rename(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD", help="Name of a device or group.", autocompletion=names_of_all
        ),
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
) -> None:
    """Rename a device or group. Groups follow; campaigns keep the old name.

    Example: esm-host devices rename pi4 kitchen
    """
    from esm_host.transport import naming

    naming.rename(old, new)
    typer.echo(f"{old} renamed to {new}", err=True)


@devices.command()
@one_line_errors
def group(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the group; an existing group is replaced."),
    ],
    members: Annotated[
        list[str],
        typer.Argument(
            metavar="DEVICE", help="Devices of the group.", autocompletion=names_of_devices
        ),
    ],
) -> None:
    """Name a group of devices.

    Example: esm-host devices group rack-a pi-1 pi-2 pi-3
    """
    from esm_host.transport import naming

    path = naming.save_group(name, members)
    typer.echo(f"written to {path}", err=True)


@devices.command()
@one_line_errors
def doctor(
    name: _Named,
    seconds: Annotated[
        float, typer.Option(help="Duration of timing built-in models, s.", min=0.1, max=600)
    ] = 10.0,
    no_wait: NoWait = False,
    output: Json = None,
) -> None:
    """Find conditions on a device that would spoil measurements.

    Example: esm-host devices doctor pi4
    """
    from esm_host.transport.devices import connect
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    check_output(output)
    with connect(name) as profiler:
        profiler.device_info()  # fails at once if the device is unreachable
        profiler.reserve("doctor", not no_wait)
        typer.echo(f"timing built-in models on {name} for {seconds:g} s", err=True)
        diagnosis = profiler.diagnose(seconds)
    if output is None:
        print("\n".join(lines(diagnosis)))
    else:
        text = json.dumps(to_json(diagnosis, name), indent=2)
        write_output(output, text, f"{name} is {summary(diagnosis)}; written to {output}")
    if not diagnosis.fit:
        raise typer.Exit(NOT_FIT)
