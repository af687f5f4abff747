"""The command ``esm-agent``."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_agent import __version__
from esm_agent.door.access_cli import Config, pair, tokens
from esm_agent.measure.history_cli import History, show_history
from esm_agent.one_line import fail, one_line_errors
from esm_protos.addresses import check_host, join
from esm_protos.commands import Commands
from esm_protos.messages import DEFAULT_PORT
from esm_protos.streams import run

if TYPE_CHECKING:
    from esm_agent.serving.machine_lock import MachineLock
    from esm_protos.messages import Diagnosis

DRAIN_S = 30.0
_SLEEP_S = 1.0

app = typer.Typer(
    name="esm-agent",
    help="Times neural networks on this device for a host elsewhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    cls=Commands,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"esm-agent {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def _checked_host(host: str) -> str:
    try:
        return check_host(host)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


@app.command()
@one_line_errors
def serve(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; 0.0.0.0 is all of IPv4, :: all of IPv4 and IPv6.",
            callback=_checked_host,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS and tokens for this machine as well.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without authentication.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="Mutual TLS: this agent's certificate, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Mutual TLS: its key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Mutual TLS: the authority of client certificates, PEM.")
    ] = None,
    config: Config = None,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce", help="Tell the local network (mDNS) of this agent: esm-host devices find."
        ),
    ] = False,
    gpu: Annotated[
        int | None,
        typer.Option(help="Number of the GPU to measure on, as nvidia-smi counts.", min=0),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:CLASS",
            help="An execution provider of your own (docs/extending/provider.md); may be repeated.",
            envvar="ESM_AGENT_PROVIDERS",
        ),
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends.")
    ] = False,
    take_turns: Annotated[
        bool,
        typer.Option(
            "--take-turns",
            help="Measure only while no other such agent of this user on this machine does.",
        ),
    ] = False,
    drain: Annotated[
        float,
        typer.Option(help="Seconds in which a block may end once a stop is asked for.", min=0),
    ] = DRAIN_S,
    log_format: Annotated[
        LogFormat, typer.Option(help="Lines for people, or JSON objects.")
    ] = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve counters for Prometheus on this port.", min=0, max=65535),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(help="Address of the counters; they need no token.", callback=_checked_host),
    ] = "127.0.0.1",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Memory that models may use together, such as 1500M or 2G.",
            show_default="three quarters of the device's",
        ),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            help="Processors to measure on, such as 2,3; the agent itself keeps off them.",
            show_default="all",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of files that hosts send once: large models, their weights, inputs.",
            show_default="~/.cache/esm-agent",
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            help="What the files in it may take together, such as 8G; 0 keeps none.",
            show_default="half of what is free there, up to 32G",
        ),
    ] = None,
    history: History = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:CLASS",
            help="Source of further metrics, such as my_metric.py:PageFaults, or the name of an "
            "installed one; may be repeated.",
        ),
    ] = None,
    max_block_time: Annotated[
        float, typer.Option(help="Seconds after which a block is broken off.", min=1, max=86_400)
    ] = 3600.0,
) -> None:
    """Serve measurements until stopped (Ctrl-C, SIGTERM, SIGHUP; a second one stops at once).

    Prints one line with the address once it is ready. Other machines need TLS and a token: see
    esm-agent pair.

    Example: esm-agent serve --host 0.0.0.0 --announce
    """
    from esm_agent.door.auth import choose_door
    from esm_agent.errors import AccessError
    from esm_agent.measure.sandbox import Confinement, leave_cpus, size_bytes
    from esm_agent.measure.worker import WorkerUnavailableError
    from esm_agent.operation import logs
    from esm_agent.operation.metrics import Metrics, MetricsError, PrometheusMetrics
    from esm_agent.serving.announce import AnnounceError, Announcement
    from esm_agent.serving.announce import check as check_announced
    from esm_agent.serving.server import AgentServer, PortTakenError
    from esm_protos.plugins import absolute

    logs.configure(json_lines=log_format is LogFormat.JSON)
    open_to_others = host not in ("127.0.0.1", "localhost", "::1")
    try:
        door = choose_door(config, open_to_others, tls, insecure, certificate, key, client_ca)
        if announce:
            check_announced(host)
    except (AccessError, AnnounceError) as error:
        fail(2, str(error))
    if open_to_others and insecure:
        logging.warning("INSECURE: anyone who reaches %s can run models here", join(host, port))
    stops = _stops()
    counters = Metrics()
    try:
        confinement = Confinement.parse(memory_limit, cpus)
        cache_bytes = None if cache_size is None else size_bytes("--cache-size", cache_size)
    except ValueError as error:
        fail(2, str(error))
    leave_cpus(confinement.cpus)
    try:
        if metrics_port is not None:
            counters = PrometheusMetrics(metrics_host, metrics_port)
        server = AgentServer(
            host,
            port,
            door=door,
            metrics=counters,
            confinement=confinement,
            max_block_s=max_block_time,
            gpu=gpu,
            cache_folder=cache or _own_cache(),
            cache_bytes=cache_bytes,
            history=history or _own_history(),
            machine=_own_lock() if take_turns else None,
            providers=provider or (),
            metric_sources=[absolute(name) for name in metrics or ()],
        )
    except (MetricsError, PortTakenError, WorkerUnavailableError) as error:
        counters.stop()
        fail(1, str(error))
    print(f"esm-agent {__version__} listening on {join(host, server.port)}", flush=True)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_eof, args=(stops,), daemon=True).start()
    announcement = (
        Announcement(host, server.port, door.credentials is not None) if announce else None
    )
    reason = _first(stops)
    if announcement is not None:
        announcement.withdraw()
    if reason is not None:  # else its host is gone, which nothing would be finished for
        logs.event(
            logging.getLogger(__name__), logging.INFO, "draining", signal=reason, drain_s=drain
        )
        server.drain(drain)
    server.stop()
    counters.stop()
    logs.event(logging.getLogger(__name__), logging.INFO, "stopped")


def _own_cache() -> Path | None:
    """The user's cache folder; None, with a warning, for a user without a home folder."""
    from esm_agent.serving.cache import cache_folder

    try:
        return cache_folder()
    except OSError as error:
        logging.warning("no cache: %s, or give --cache", error.strerror)
        return None


def _own_history() -> Path | None:
    """The user's history file; None, with a warning, for a user without a home folder."""
    from esm_agent.measure.history import history_file

    try:
        return history_file()
    except OSError as error:
        logging.warning("nothing is remembered: %s, or give --history", error.strerror)
        return None


def _own_lock() -> MachineLock | None:
    """The user's lock; None for a user without a home folder."""
    from esm_agent.measure.history import history_file
    from esm_agent.serving.machine_lock import MachineLock

    with contextlib.suppress(OSError):
        return MachineLock(history_file().parent)
    return None


def _first(stops: queue.SimpleQueue[str | None]) -> str | None:
    """The first reason to stop, waited for in short sleeps: Python looks at a signal that comes
    just before a sleep only when the sleep ends."""
    while True:
        with contextlib.suppress(queue.Empty):
            return stops.get(timeout=_SLEEP_S)


def _stops() -> queue.SimpleQueue[str | None]:
    """Where a reason to stop appears: a signal's name, or None when standard input has ended."""
    # Of all queues and events only this one may be filled from within a signal handler.
    stops: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if asked:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        asked.append(number)
        stops.put(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup lets a program outlive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return stops


@app.command()
@one_line_errors
def doctor(
    seconds: Annotated[
        float, typer.Option(help="Seconds for which built-in models are timed.", min=0.1, max=600)
    ] = 10.0,
    history: History = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Find what would spoil measurements on this device. Example: esm-agent doctor --seconds 30"""
    from esm_agent.measure.worker import WorkerUnavailableError
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    try:
        typer.echo(f"timing built-in models for {seconds:g} s", err=True)
        diagnosis = _examined(seconds, history or _own_history())
        if output is None:
            print("\n".join(lines(diagnosis)))
        else:
            text = json.dumps(to_json(diagnosis, socket.gethostname()), indent=2)
            if str(output) == "-":
                print(text)
            else:
                try:
                    output.write_text(text + "\n")
                except OSError as error:
                    fail(1, f"cannot write {output}: {error.strerror}")
                typer.echo(f"{summary(diagnosis)}; written to {output}", err=True)
    except WorkerUnavailableError as error:
        fail(1, str(error))
    if not diagnosis.fit:
        raise typer.Exit(NOT_FIT)


def _examined(seconds: float, history: Path | None) -> Diagnosis:
    from esm_agent.device.telemetry import Telemetry
    from esm_agent.diagnosis.doctor import examine
    from esm_agent.measure.block import UploadedBlock
    from esm_agent.measure.history import HistoryFile
    from esm_agent.measure.worker import Worker
    from esm_agent.providers import make_provider
    from esm_protos.messages import BlockResult

    worker = Worker(make_provider, history=HistoryFile(history) if history else None)

    def measure(block: UploadedBlock) -> BlockResult:
        return worker.measure(block, lambda progress: None, lambda: False)

    try:
        hello = worker.start()
        return examine(measure, Telemetry(), seconds, findings=hello.findings)
    finally:
        worker.stop()


app.command()(pair)
app.add_typer(tokens, name="tokens")
app.command("history")(show_history)


@app.command("cache")
@one_line_errors
def show_cache(
    cache: Annotated[
        Path | None, typer.Option(help="As of serve.", show_default="~/.cache/esm-agent")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all files.")] = False,
) -> None:
    """Show the size of the cache of uploaded files, or clear it. Example: esm-agent cache --clear

    A running agent needs no restart: hosts upload missing files again.
    """
    from esm_agent.serving.cache import Cache, cache_folder

    folder = cache or cache_folder()
    if not folder.exists():
        fail(1, f"{folder} does not exist: there is no cache")
    try:
        files = Cache(folder)
        if clear:
            files.clear()
        used = files.used_bytes()
        files.close()
    except OSError as error:
        fail(1, f"{folder}: {error.strerror}")
    print(f"{folder}: {used / 1e6:.1f} MB")


@app.command("install-service")
@one_line_errors
def install_service(
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of `esm-agent serve`, after --.", metavar="[-- ...]"),
    ] = None,
    system: Annotated[
        bool | None,
        typer.Option(
            "--system/--user", help="Service of the device (default for root), or of your user."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the unit and write nothing.")
    ] = False,
) -> None:
    """Install the agent as a systemd service.

    Example: esm-agent install-service -- --port 7000 --drain 60
    """
    from esm_agent.operation import service
    from esm_agent.serving import announce

    given = options or []
    # As `serve` would read them: a typing error is better found now than by systemd.
    serving = (
        typer.main.get_group(app).commands["serve"].make_context("esm-agent serve", list(given))
    )
    if serving.params["until_stdin_closes"]:
        fail(2, "--until-stdin-closes ends a service at once: leave it out")
    try:
        if serving.params["announce"]:
            announce.check(serving.params["host"])
    except announce.AnnounceError as error:
        fail(2, str(error))
    for_all = os.geteuid() == 0 if system is None else system
    try:
        unit = service.unit(given, serving.params["drain"], for_all)
        if dry_run:
            print(unit, end="")
            return
        path, steps = service.install(unit, for_all)
    except service.ServiceError as error:
        fail(1, str(error))
    print("\n".join((f"wrote {path}; next:", *(f"  {step}" for step in steps))))


def _wait_for_eof(stops: queue.SimpleQueue[str | None]) -> None:
    if sys.stdin is not None:  # else it was closed from the beginning
        sys.stdin.read()
    stops.put(None)


def main() -> None:
    """Entry point."""
    # Else gRPC writes a line of its own for every handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A process that is spawned imports the main module of its parent again; the measuring process
    # needs nothing of this one, and starts a third faster without.
    main_module = sys.modules["__main__"]
    main_module.__spec__ = None
    main_module.__dict__.pop("__file__", None)
    run(app)


if __name__ == "__main__":
    main()
