"""Strangers at the door, and clients that are shut out: what they may cost."""

import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from esm_agent.door.auth import PAIR, Brake, TokenDoor
from esm_agent.door.certificate import keep_certificate, make_certificate
from esm_agent.door.tokens import TokenFile
from esm_agent.operation import logs
from esm_agent.serving import connections
from esm_agent.serving.server import AgentServer
from esm_host.errors import AuthError, NotNowError
from esm_host.transport.access import pinned
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from tests.helpers import ARITHMETIC

DATA = ARITHMETIC.read_bytes()
LONG = Block("long", MeasureSpec(runs=1_000_000), (Model("m", DATA),))
SHORT = Block("short", MeasureSpec(runs=5), (Model("m", DATA),))


class Agent:
    """An agent with TLS and tokens, in this process."""

    def __init__(self, folder: Path) -> None:
        self.tokens = TokenFile(folder)
        self.certificate, key = make_certificate()
        door = TokenDoor(self.certificate, key, TokenFile(folder), Brake(longest_s=0.0))
        self.server = AgentServer("127.0.0.1", 0, door=door)
        self.address = f"127.0.0.1:{self.server.port}"

    def host(self, name: str) -> RemoteProfiler:
        _, token = self.tokens.add(name)
        return RemoteProfiler(self.address, access=pinned(self.certificate, token))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    running = Agent(tmp_path / "agent")
    yield running
    running.server.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_revoking_ends_what_runs_what_waits_and_what_is_sent(agent: Agent) -> None:
    with agent.host("laptop") as laptop, agent.host("desktop") as desktop:
        running, waiting = laptop.submit(LONG), laptop.submit(SHORT)
        until(lambda: desktop.device_info().occupancy.holder is not None)
        over = threading.Event()

        def pieces() -> Iterator[pb.UploadRequest]:
            yield pb.UploadRequest(
                header=pb.UploadHeader(
                    protocol_version=PROTOCOL_VERSION,
                    lease_id=laptop._lease.lease_id,
                    file=pb.File(sha256=bytes(32), size_bytes=1 << 20),
                )
            )
            over.wait(60)

        upload = laptop._stub.Upload.future(pieces())
        agent.tokens.revoke("laptop")
        for block in (running, waiting):
            with pytest.raises((NotNowError, AuthError)):
                block.result()
        assert isinstance(upload.exception(timeout=60), grpc.RpcError)
        over.set()
        assert desktop.measure(SHORT).block_id == "short"
        assert desktop.device_info().occupancy.waiting == 0


def test_turns_go_by_client(agent: Agent) -> None:
    """Leases of one workstation share its turns."""
    turns: list[str] = []
    with ExitStack() as stack:
        greedy = [stack.enter_context(agent.host("greedy"))]
        access = greedy[0]._access
        greedy += [
            stack.enter_context(RemoteProfiler(agent.address, access=access)) for _ in range(5)
        ]
        modest = stack.enter_context(agent.host("modest"))

        def measure(profiler: RemoteProfiler, name: str, count: int) -> None:
            ready.wait()
            for _ in range(count):
                profiler.measure(SHORT)
                turns.append(name)

        ready = threading.Barrier(7)
        threads = [threading.Thread(target=measure, args=(p, "greedy", 4)) for p in greedy]
        threads.append(threading.Thread(target=measure, args=(modest, "modest", 6)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert len(turns) == 30
    last = len(turns) - 1 - turns[::-1].index("modest")
    assert turns[: last + 1].count("greedy") < 20, "it would wait for all of the others' blocks"


def test_a_flood_of_refusals_is_a_line_a_second(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    access = pinned(agent.certificate, "esm_wrong")
    began = time.monotonic()
    with access.channel(agent.address, ()) as channel:
        method = channel.unary_unary("/esm.v1.Profiler/GetDeviceInfo")
        waiting = [method.future(b"") for _ in range(500)]
        assert {call.exception().details() for call in waiting} == {PAIR}
        time.sleep(1.1)
        method.future(b"").exception()
    lines = [r for r in caplog.records if r.getMessage() == "turned away"]
    assert len(lines) <= time.monotonic() - began + 2
    fields = [json.loads(logs.JsonFormatter().format(line)) for line in lines]
    assert sum(f.get("left_out", 0) + 1 for f in fields) == 501, "all are counted"


def closed_within(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        while sock.recv(1000):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_connections_that_ask_nothing_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do not finish the handshake, and those that finish it and keep silent."""
    monkeypatch.setattr(connections, "_HANDSHAKE_MS", 1000)
    monkeypatch.setattr(connections, "_IDLE_MS", 1000)
    agent = Agent(tmp_path / "agent")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    trusting.set_alpn_protocols(["h2"])
    place = ("127.0.0.1", agent.server.port)
    with ExitStack() as stack:
        tcp, tls, http = (stack.enter_context(socket.create_connection(place)) for _ in range(3))
        tls = stack.enter_context(trusting.wrap_socket(tls))
        http = stack.enter_context(trusting.wrap_socket(http))
        http.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert all(closed_within(each, 30) for each in (tcp, tls, http))
    agent.server.stop()


def test_connections_are_capped_below_the_limit_of_files() -> None:
    assert connections.max_connections(256) == 56
    assert connections.max_connections(1024) == 768
    assert connections.max_connections(1 << 20) < 8192
    assert connections.max_connections(64) == 16


def test_more_connections_than_descriptors_lock_nobody_out(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    tokens = TokenFile(folder)
    _, token = tokens.add("laptop")
    certificate, key = make_certificate()
    keep_certificate(folder, certificate, key)
    log = tmp_path / "log"
    serve = f"{sys.executable} -m esm_agent.cli serve --port 0 --tls --config {folder}"
    with log.open("w") as file:
        program = subprocess.Popen(
            ["bash", "-c", f"ulimit -n 256; exec {serve}"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert program.stdout is not None
    try:
        address = program.stdout.readline().split()[-1]
        host, port = address.split(":")
        with ExitStack() as stack:
            access = pinned(certificate, token)
            profiler = stack.enter_context(RemoteProfiler(address, access=access))
            profiler.device_info()
            for _ in range(300):
                stack.enter_context(socket.create_connection((host, int(port))))
            tokens.add("desktop")  # the file has to be opened again
            profiler.device_info()
            assert profiler.measure(SHORT).block_id == "short"
        with RemoteProfiler(address, access=access) as profiler:
            assert profiler.measure(SHORT).block_id == "short"
    finally:
        program.terminate()
        program.communicate(timeout=60)
    assert "Traceback" not in log.read_text()
    assert "no token is accepted" not in log.read_text()
