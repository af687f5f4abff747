"""``esm-host devices``: what there is to know of the devices themselves."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import NoWait, printable
from esm_host.cli.output import check_output, write_output

devices = typer.Typer(help="Look after devices.", no_args_is_help=True)


@devices.command()
@one_line_errors
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the device.")],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where its agent listens.")],
    token: Annotated[
        str | None,
        typer.Option(
            help="From esm-agent pair; - reads it from standard input. ESM_TOKEN serves too, and "
            "is not stored.",
        ),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Of the agent's certificate, from esm-agent pair.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Mutual TLS: the authority of the agent's certificate, PEM.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Mutual TLS: this host's certificate, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Mutual TLS: its key, PEM.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a device of the same name.")
    ] = False,
) -> None:
    """Give a device a name, once it answers. esm-agent pair prints this command for it.

    Example: esm-host devices add lab 127.0.0.1:7343
    """
    import os

    from esm_host.errors import UsageError
    from esm_host.transport import devices as known
    from esm_host.transport.access import PLAIN, fetch_certificate, is_loopback, mutual, pinned
    from esm_host.transport.access import check_token as checked
    from esm_host.transport.remote import RemoteProfiler

    known.check_new(name, force)
    token = sys.stdin.readline().strip() if token == "-" else token
    pem = None
    if ca or certificate or key:
        if ca is None or certificate is None or key is None or token or fingerprint:
            raise UsageError(
                "mutual TLS takes all of --ca, --certificate and --key, and no token or fingerprint"
            )
        paths = [path.expanduser().resolve() for path in (ca, certificate, key)]
        access = mutual(*paths)
        entry = known.Entry(address, None, None, *map(str, paths))
    elif token or fingerprint:
        secret = token or os.environ.get("ESM_TOKEN")
        if not (secret and fingerprint):
            raise UsageError(
                "a token goes with a fingerprint, so that only the right agent gets it: paste the "
                "line that `esm-agent pair` printed, whole"
            )
        pem = fetch_certificate(address, fingerprint)
        access = pinned(pem, checked(secret))
        entry = known.Entry(address, known.pinned_file(name), token)
    else:
        access = PLAIN
        entry = known.Entry(address)
        if not is_loopback(address):
            typer.echo(
                f"warning: {address} is another machine, and without --token and --fingerprint "
                "anybody in between reads and changes what is sent: see esm-agent pair",
                err=True,
            )
    with RemoteProfiler(address, name, access) as profiler:
        info = profiler.device_info()
    path = known.save(name, entry, pem)
    print(
        printable(
            f"{name}: {info.hostname}, {info.cpu_model}, {info.cpu_count} processors; "
            f"agent {info.agent_version}, {info.runtime} ({', '.join(info.providers)})"
        )
    )
    typer.echo(f"written to {path}", err=True)


@devices.command("list")
@one_line_errors
def list_devices(
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Show the devices that have a name: who uses them, what runs there."""
    from esm_host.transport.overview import overview

    check_output(output)
    rows = overview()
    if output is not None:
        data = {"schema_version": 1, "devices": [asdict(row) for row in rows]}
        write_output(output, json.dumps(data, indent=2))
        return
    if not rows:
        typer.echo("no device has a name yet: esm-agent pair, or esm-host devices add", err=True)
        return
    headings = ("name", "address", "state", "waiting", "agent", "runtime", "free")
    table: list[tuple[str, ...]] = [headings]
    table += [
        (
            row.name,
            row.address,
            row.state + (f" by {row.owner} ({row.purpose})" if row.owner else ""),
            "-" if row.waiting is None else str(row.waiting),
            row.agent_version or "-",
            row.runtime or "-",
            "-" if row.memory_free_bytes is None else f"{row.memory_free_bytes / 2**30:.1f} GiB",
        )
        for row in rows
    ]
    table = [tuple(map(printable, cells)) for cells in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip())
    for row in rows:
        if row.error:
            typer.echo(printable(f"{row.name}: {row.error}"), err=True)


@devices.command()
@one_line_errors
def doctor(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="'local', host:port, or a name from devices.toml.")
    ],
    seconds: Annotated[
        float, typer.Option(help="How long built-in models are timed.", min=0.1, max=600)
    ] = 10.0,
    no_wait: NoWait = False,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Find what would spoil measurements on a device. Example: esm-host devices doctor pi4"""
    from esm_host.transport.devices import connect
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    check_output(output)
    with connect(name) as profiler:
        profiler.device_info()  # first, so that nobody waits for a device that is not there
        profiler.reserve("doctor", not no_wait)
        typer.echo(f"timing built-in models on {name} for {seconds:g} s", err=True)
        diagnosis = profiler.diagnose(seconds)
    if output is None:
        print("\n".join(lines(diagnosis)))
    else:
        text = json.dumps(to_json(diagnosis, name), indent=2)
        write_output(output, text, f"{name} is {summary(diagnosis)}; all in {output}")
    if not diagnosis.fit:
        raise typer.Exit(NOT_FIT)
