"""The command ``esm-agent``."""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_agent import __version__
from esm_protos.messages import DEFAULT_PORT

if TYPE_CHECKING:
    from esm_protos.messages import Diagnosis

app = typer.Typer(
    name="esm-agent",
    help="Times neural networks on this device for a host elsewhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"esm-agent {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 picks a free one.")
    ] = DEFAULT_PORT,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without authentication.")
    ] = False,
    gpu: Annotated[
        int | None,
        typer.Option(help="Number of the GPU for --ep cuda, as nvidia-smi counts.", min=0),
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends.")
    ] = False,
) -> None:
    """Serve measurements until stopped (Ctrl-C or SIGTERM).

    Prints one line with the address once it is ready.
    """
    from esm_agent.server import AgentServer, PortTakenError
    from esm_agent.worker import WorkerUnavailableError

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    if host not in ("127.0.0.1", "localhost", "::1", "[::1]"):
        if not insecure:
            _fail(2, f"--host {host} opens this agent to other machines: say so with --insecure")
        logging.warning("INSECURE: anyone who reaches %s:%d can run models here", host, port)
    host = "[::1]" if host == "::1" else host
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = AgentServer(host, port, gpu=gpu)
    except (PortTakenError, WorkerUnavailableError) as error:
        _fail(1, str(error))
    print(f"esm-agent {__version__} listening on {host}:{server.port}", flush=True)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_eof, args=(stop,), daemon=True).start()
    stop.wait()
    server.stop()


@app.command()
def doctor(
    seconds: Annotated[
        float, typer.Option(help="How long built-in models are timed.", min=0.1, max=600)
    ] = 10.0,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Find what would spoil measurements on this device. Example: esm-agent doctor --seconds 30"""
    from esm_agent.worker import WorkerUnavailableError
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    try:
        typer.echo(f"timing built-in models for {seconds:g} s", err=True)
        diagnosis = _examined(seconds)
        if output is None:
            print("\n".join(lines(diagnosis)))
        else:
            text = json.dumps(to_json(diagnosis, socket.gethostname()), indent=2)
            if str(output) == "-":
                print(text)
            else:
                output.write_text(text + "\n")
                typer.echo(f"{summary(diagnosis)}; all in {output}", err=True)
    except WorkerUnavailableError as error:
        _fail(1, str(error))
    except OSError as error:
        _fail(1, f"cannot write {output}: {error.strerror}")
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    if not diagnosis.fit:
        raise typer.Exit(NOT_FIT)


def _examined(seconds: float) -> Diagnosis:
    from esm_agent.doctor import examine
    from esm_agent.telemetry import Telemetry
    from esm_agent.upload import UploadedBlock
    from esm_agent.worker import Worker
    from esm_protos.messages import BlockResult

    worker = Worker()

    def measure(block: UploadedBlock) -> BlockResult:
        return worker.measure(
            block.block_id, block.spec, block.models, lambda progress: None, lambda: False
        )

    try:
        worker.start()
        return examine(measure, Telemetry(), seconds)
    finally:
        worker.stop()


def _wait_for_eof(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _fail(code: int, message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
