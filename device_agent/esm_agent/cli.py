"""Command ``esm-agent``."""

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
from esm_agent.providers.compiled import VARIABLE as COMPILED_CACHE
from esm_protos.addresses import check_host, join
from esm_protos.commands import Commands
from esm_protos.messages import DEFAULT_PORT
from esm_protos.streams import run

if TYPE_CHECKING:
    from esm_agent.measure.worker import Worker
    from esm_agent.serving.machine_lock import MachineLock
    from esm_protos.messages import Diagnosis
    from esm_protos.providers import ProviderInfo

DRAIN_S = 30.0
_SLEEP_S = 1.0

app = typer.Typer(
    name="esm-agent",
    help="Time neural networks on this device for a remote host.",
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


OwnProvider = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE.py:CLASS",
        help="Additional execution provider (docs/extending/provider.md). May be repeated.",
        envvar="ESM_AGENT_PROVIDERS",
    ),
]
EpLibrary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH",
        help="Library with an execution provider of ONNX Runtime, to register under this name "
        "(docs/providers.md). May be repeated.",
        envvar="ESM_AGENT_EP_LIBRARIES",
    ),
]


class LogFormat(StrEnum):
    """Values of ``--log-format``."""

    TEXT = "text"
    JSON = "json"


@app.command()
@one_line_errors
def serve(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on: 0.0.0.0 for all IPv4 addresses, :: for all IPv4 and IPv6.",
            callback=_checked_host,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 selects a free port.", min=0, max=65535)
    ] = DEFAULT_PORT,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Require TLS and a token from clients on this machine, too."),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept other machines without TLS and tokens.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate of this agent for mutual TLS, a PEM file.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key of this agent for mutual TLS, a PEM file.")
    ] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Certificate authority of the clients for mutual TLS, a PEM file."),
    ] = None,
    config: Config = None,
    announce: Annotated[
        bool,
        typer.Option(
            "--announce",
            help="Announce this agent on the local network (mDNS), for esm-host devices find.",
        ),
    ] = False,
    gpu: Annotated[
        int | None,
        typer.Option(help="GPU to measure on, by its number in nvidia-smi.", min=0),
    ] = None,
    provider: OwnProvider = None,
    ep_library: EpLibrary = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends.")
    ] = False,
    take_turns: Annotated[
        bool,
        typer.Option(
            "--take-turns",
            help="Take turns with other agents of this user on this machine that set this option.",
        ),
    ] = False,
    drain: Annotated[
        float,
        typer.Option(
            help="Time for the current block to end after a stop signal, in seconds.", min=0
        ),
    ] = DRAIN_S,
    log_format: Annotated[LogFormat, typer.Option(help="Format of log lines.")] = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the Prometheus counters; 0 selects a free port.", min=0, max=65535
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            help="Address of the Prometheus counters. They need no token.", callback=_checked_host
        ),
    ] = "127.0.0.1",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Maximum memory of all models together, such as 1500M or 2G.",
            show_default="three quarters of the device's memory",
        ),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            help="Processors to measure on, such as 2,3. The agent itself uses the others.",
            show_default="all",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Cache folder for uploaded files: large models, weights and inputs.",
            show_default="~/.cache/esm-agent",
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            help="Maximum size of the cache, such as 8G; 0 accepts no files.",
            show_default="half of the free space, up to 32G",
        ),
    ] = None,
    history: History = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:CLASS",
            help="Source of additional metrics: a file and class, such as my_metric.py:PageFaults, "
            "or the name of an installed source. May be repeated.",
        ),
    ] = None,
    energy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:CLASS",
            help="Energy meter of your own: a file and class, such as my_meter.py:Plug, or the "
            "name of an installed meter. May be repeated.",
        ),
    ] = None,
    max_block_time: Annotated[
        float, typer.Option(help="Time limit of a block, in seconds.", min=1, max=86_400)
    ] = 3600.0,
    compiled_cache: Annotated[
        Path | None,
        typer.Option(
            envvar=COMPILED_CACHE,
            metavar="FOLDER",
            help="Folder for compiled models of execution providers that can write them, up to "
            "4G. A model that is in it loads faster. By default, every load compiles.",
        ),
    ] = None,
) -> None:
    """Serve measurements until Ctrl-C, SIGTERM or SIGHUP; a second signal stops at once.

    The command prints its address when it is ready. Other machines need TLS and a token: see
    esm-agent pair.

    Example: esm-agent serve --host 0.0.0.0 --announce
    """
    from esm_agent.door.auth import choose_door
    from esm_agent.errors import AccessError
    from esm_agent.measure.sandbox import Confinement, leave_cpus, size_bytes
    from esm_agent.measure.worker import UnusableOptionError, WorkerUnavailableError
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
        logging.warning(
            "INSECURE: every machine that reaches %s can run models here", join(host, port)
        )
    stops = _stops()
    counters = Metrics()
    try:
        confinement = Confinement.parse(memory_limit, cpus)
        cache_bytes = None if cache_size is None else size_bytes("--cache-size", cache_size)
    except ValueError as error:
        fail(2, str(error))
    leave_cpus(confinement.cpus)
    if compiled_cache is not None:
        try:
            compiled_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            fail(2, f"--compiled-cache {compiled_cache}: {error.strerror}, give another folder")
        if compiled_cache.stat().st_mode & 0o022:  # the agent runs what others put there
            fail(2, f"--compiled-cache {compiled_cache}: others may write to it; chmod 700 it")
        os.environ[COMPILED_CACHE] = str(compiled_cache.absolute())
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
            ep_libraries=ep_library or (),
            metric_sources=[absolute(name) for name in metrics or ()],
            meters=[absolute(name) for name in energy or ()],
            calibration=_calibration(config),
        )
    except (MetricsError, PortTakenError, WorkerUnavailableError) as error:
        counters.stop()
        fail(2 if isinstance(error, UnusableOptionError) else 1, str(error))
    print(f"esm-agent {__version__} listening on {join(host, server.port)}", flush=True)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_eof, args=(stops,), daemon=True).start()
    announcement = (
        Announcement(host, server.port, door.credentials is not None) if announce else None
    )
    reason = _first(stops)
    if announcement is not None:
        announcement.withdraw()
    if reason is not None:  # on end of standard input, the host is gone: nothing to finish
        logs.event(
            logging.getLogger(__name__), logging.INFO, "draining", signal=reason, drain_s=drain
        )
        server.drain(drain)
    server.stop()
    counters.stop()
    logs.event(logging.getLogger(__name__), logging.INFO, "stopped")


def _own_cache() -> Path | None:
    """Return the user's cache folder; None, with a warning, if there is no home folder."""
    from esm_agent.serving.cache import cache_folder

    try:
        return cache_folder()
    except OSError as error:
        logging.warning("no cache: %s, or give --cache", error.strerror)
        return None


def _own_history() -> Path | None:
    """Return the user's history file; None, with a warning, if there is no home folder."""
    from esm_agent.measure.history import history_file

    try:
        return history_file()
    except OSError as error:
        logging.warning("no history: %s, or give --history", error.strerror)
        return None


def _calibration(config: Path | None = None) -> Path | None:
    """Return the user's file with the calibration of a PMIC; None if there is no home folder."""
    from esm_agent.door.tokens import config_folder
    from esm_agent.errors import AccessError

    with contextlib.suppress(AccessError):
        return config_folder(config) / "pmic.json"
    return None


def _own_lock() -> MachineLock | None:
    """Return the user's lock; None if there is no home folder."""
    from esm_agent.measure.history import history_file
    from esm_agent.serving.machine_lock import MachineLock

    with contextlib.suppress(OSError):
        return MachineLock(history_file().parent)
    return None


def _first(stops: queue.SimpleQueue[str | None]) -> str | None:
    """Wait for the first reason to stop and return it.

    The wait consists of short sleeps: a signal just before a sleep is handled only after it.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return stops.get(timeout=_SLEEP_S)


def _stops() -> queue.SimpleQueue[str | None]:
    """Return a queue of reasons to stop: signal names, or None at the end of standard input."""
    # SimpleQueue is the only queue or event that a signal handler can use safely.
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
        # nohup ignores SIGHUP: keep ignoring it.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return stops


@app.command()
@one_line_errors
def doctor(
    seconds: Annotated[
        float,
        typer.Option(
            help="Time for which built-in models are timed, in seconds.", min=0.1, max=600
        ),
    ] = 10.0,
    history: History = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Check this device for conditions that disturb measurements.

    Example: esm-agent doctor --seconds 30
    """
    from esm_agent.measure.worker import WorkerUnavailableError
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    if output is not None and str(output) != "-":
        if output.is_dir():
            fail(2, f"cannot write {output}: it is a folder")
        if not output.parent.is_dir():
            fail(2, f"cannot write {output}: there is no folder {output.parent}")
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


@app.command("providers")
@one_line_errors
def show_providers(provider: OwnProvider = None, ep_library: EpLibrary = None) -> None:
    """List the execution providers of this device, and why others do not work.

    A built-in model is timed on each for up to two seconds.

    Example: esm-agent providers
    """
    from functools import partial

    from esm_agent import providers as found
    from esm_agent.measure.worker import Worker, WorkerUnavailableError
    from esm_protos.plugins import absolute
    from esm_protos.text import printable

    try:
        libraries = found.ep_libraries(ep_library or ())
    except ValueError as error:
        fail(2, str(error))
    own = [absolute(name) for name in provider or ()]
    others = found.optional_names(own)
    worker = Worker(
        found.make_provider,
        make_others=[partial(found.make_provider, name) for name in others],
        find=partial(found.find_providers, libraries),
    )
    try:
        hello = worker.start()
        print(hello.runtime)
        for info in hello.providers:
            print(printable(f"{info.line}; {_latency_on(info, worker)}"), flush=True)
    except WorkerUnavailableError as error:
        fail(1, str(error))
    finally:
        worker.stop()
    for info in hello.unusable:
        print(printable(info.line))
    for place, reason in hello.missing.items():
        whose = f"{others[place]}: " if others[place] in own else ""  # a file's name
        print(printable(f"{whose}{reason}"))


def _latency_on(provider: ProviderInfo, worker: Worker) -> str:
    """Return the latency of a built-in model on a provider, or why it has none, in words."""
    from esm_agent.measure.block import UploadedBlock
    from esm_agent.measure.references import reference_models
    from esm_protos.messages import MeasureSpec

    model = next(each for each in reference_models() if each.model_id == "arithmetic")
    spec = MeasureSpec(provider=provider.name, runs=50, max_block_s=2.0)
    block = UploadedBlock("providers", spec, (model,))
    (measured,) = worker.measure(block, lambda progress: None, lambda: False).measurements
    if measured.failure is not None:
        return f"built-in model: {measured.failure.message}"
    return f"built-in model: {measured.trimmed_mean_ms(spec.trim):.3g} ms"


def _examined(seconds: float, history: Path | None) -> Diagnosis:
    from esm_agent.device.telemetry import Telemetry
    from esm_agent.diagnosis.doctor import examine
    from esm_agent.measure.block import UploadedBlock
    from esm_agent.measure.history import HistoryFile
    from esm_agent.measure.worker import Worker
    from esm_agent.providers import make_provider
    from esm_protos.messages import BlockResult

    worker = Worker(
        make_provider,
        history=HistoryFile(history) if history else None,
        calibration=_calibration(),
    )

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
        Path | None, typer.Option(help="Cache folder.", show_default="~/.cache/esm-agent")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all files.")] = False,
) -> None:
    """Show the size of the cache of uploaded files, or clear it.

    A running agent needs no restart: hosts upload missing files again.

    Example: esm-agent cache --clear
    """
    from esm_agent.serving.cache import Cache, cache_folder

    folder = cache or cache_folder()
    if not folder.exists():
        fail(2 if cache else 1, f"{folder} does not exist: there is no cache")
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
            "--system/--user", help="Install a system service (default for root) or a user service."
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
    # Parsed like `serve`, so that a mistyped option fails now and not in systemd.
    serving = (
        typer.main.get_group(app).commands["serve"].make_context("esm-agent serve", list(given))
    )
    if serving.params["until_stdin_closes"]:
        fail(2, "--until-stdin-closes would end a service at once: leave it out")
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
    if sys.stdin is not None:  # None: closed from the start
        sys.stdin.read()
    stops.put(None)


def main() -> None:
    """Run the command."""
    # By default gRPC logs every failed handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A spawned process imports the main module of its parent. The measuring process does not need
    # it and starts a third faster without.
    main_module = sys.modules["__main__"]
    main_module.__spec__ = None
    main_module.__dict__.pop("__file__", None)
    run(app)


if __name__ == "__main__":
    main()
