"""What the agent logs of leases, blocks and refusals: each once, on one line, without secrets."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from esm_agent.operation import logs
from esm_agent.serving.server import AgentServer
from esm_host.errors import DeviceError, UnreachableError
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.helpers import ARITHMETIC

DATA = ARITHMETIC.read_bytes()
BLOCK = Block("b1", MeasureSpec(runs=3), (Model("good", DATA), Model("bad", b"no model")))


def formatted(formatter: logging.Formatter, text: str, **fields: object) -> str:
    log = logging.getLogger("esm_agent.test")
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(formatter.format(record))

    handler = Handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        logs.event(log, logging.INFO, text, **fields)
    finally:
        log.removeHandler(handler)
    (line,) = lines
    return line


def test_json_has_a_time_in_utc_and_the_fields() -> None:
    line = json.loads(formatted(logs.JsonFormatter(), "block measured", block_id="b", models=3))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "event": "block measured", "block_id": "b", "models": 3}


def test_what_clients_say_stays_on_its_line() -> None:
    forged = 'ada"\n2026-01-01 INFO lease made: owner=eve'
    text = formatted(logs.TextFormatter(), "lease made", owner=forged, purpose="", models=3)
    assert text.endswith(
        r'lease made: owner="ada\" 2026-01-01 INFO lease made: owner=eve" models=3'
    )
    assert "\n" not in text
    line = formatted(logs.JsonFormatter(), "lease made", owner=forged)
    assert "\n" not in line
    assert json.loads(line)["owner"] == forged.replace("\n", " ")


def test_what_clients_say_is_cut_and_moves_no_cursor() -> None:
    for formatter in (logs.TextFormatter(), logs.JsonFormatter()):
        line = formatted(formatter, "failed: \x1b[2J\n", reason="\x1b]0;x\x07" + "x" * 100_000)
        assert len(line) < 1200
        assert line.isprintable()


def test_words_of_a_client_are_harmless_to_others(
    agent: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where another client prints what it gets as it is."""
    caplog.set_level(logging.INFO)
    with grpc.insecure_channel(f"127.0.0.1:{agent.port}") as channel:
        stub = profiler_pb2_grpc.ProfilerStub(channel)
        stub.Lease(
            pb.LeaseRequest(
                protocol_version=PROTOCOL_VERSION,
                lease_id="evil\nid",
                owner="eve\x1b[2J\n2026-01-01 INFO",
                purpose="\u202egnp.exe",
            )
        )
        holder = stub.GetDeviceInfo(pb.GetDeviceInfoRequest()).occupancy.holder
    assert (holder.owner, holder.purpose) == ("eve?[2J 2026-01-01 INFO", "?gnp.exe")
    lines = [logs.TextFormatter().format(record) for record in caplog.records]
    assert any("eve?[2J 2026-01-01 INFO" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_an_error_comes_with_its_traceback() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "oops", (), sys.exc_info())
    line = json.loads(logs.JsonFormatter().format(record))
    assert line["event"] == "oops"
    assert "RuntimeError: broken" in line["error"]


@pytest.fixture
def agent() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1", 0, lease_expiry_s=3.0)
    yield server
    server.stop()


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    formatter = logs.JsonFormatter()
    ours = [record for record in caplog.records if record.name.startswith("esm_agent")]
    return [json.loads(formatter.format(record)) for record in ours]


def test_leases_and_blocks_are_logged_once(
    agent: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RemoteProfiler(f"127.0.0.1:{agent.port}") as profiler:
        profiler.reserve("profile resnet")
        profiler.measure(BLOCK)
        profiler.measure(BLOCK)
    lines = logged(caplog)
    assert [line["event"] for line in lines] == [
        "lease made",
        "lease has its turn",
        "block measured",
        "block measured",
        "lease released",
    ]
    assert {line["purpose"] for line in lines} == {"profile resnet"}
    assert len({line["lease"] for line in lines}) == 1
    block = lines[2]
    assert (block["block_id"], block["models"], block["failures"]) == ("b1", 2, 1)
    assert "@" in str(block["owner"])
    assert str(block["peer"]).startswith("ipv4:127.0.0.1:")
    assert 0 < float(str(block["busy_s"])) <= float(str(block["duration_s"]))


def test_expiry_and_refusals_are_logged_once_and_no_secret_is(
    agent: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, lease_id = "correct-horse-battery-staple", "0123456789abcdef"
    with grpc.insecure_channel(f"127.0.0.1:{agent.port}") as channel:
        stub = profiler_pb2_grpc.ProfilerStub(channel)
        metadata = (("authorization", f"Bearer {secret}"),)
        request = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id)
        with pytest.raises(grpc.RpcError):
            stub.Lease(request, metadata=metadata)  # over plain text
        assert stub.Lease(request).standing.ahead == 0
        request.lease_id = ""
        with pytest.raises(grpc.RpcError):
            stub.Lease(request)
        info = pb.GetDeviceInfoRequest(protocol_version=PROTOCOL_VERSION)
        until(lambda: not stub.GetDeviceInfo(info).occupancy.HasField("holder"))
    lines = logged(caplog)
    events = ["turned away", "lease made", "refused", "lease expired"]
    assert [line["event"] for line in lines] == events
    refused = lines[2]
    assert (refused["level"], refused["code"]) == ("warning", "INVALID_ARGUMENT")
    assert refused["reason"] == "a lease needs an id, and names of at most 200 characters"
    everything = "".join(record.getMessage() + repr(vars(record)) for record in caplog.records)
    assert secret not in everything
    assert lease_id not in everything, "who knows it can use the lease"


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    """It is cut short instead, and says so when somebody reads again."""
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    try:
        address = program.stdout.readline().decode().split()[-1]
        with grpc.insecure_channel(address) as channel:
            stub = profiler_pb2_grpc.ProfilerStub(channel)
            for number in range(400):  # two lines each, of 200 bytes and more
                lease = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=str(number))
                lease.owner = "somebody of a long name" * 5
                stub.Lease(lease, timeout=20)
                release = pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=str(number))
                stub.Release(release, timeout=20)
        with RemoteProfiler(address) as profiler:
            profiler.measure(BLOCK)
            text = os.read(program.stderr.fileno(), 1 << 16).decode()
            profiler.reserve("test")
        program.terminate()
        text += program.stderr.read().decode()
        assert program.wait(timeout=60) == 0
    finally:
        program.kill()
        program.communicate()
    assert "lines of the log were dropped, because it was not read: lines=" in text
    assert text.rstrip().endswith("stopped")


def test_what_is_logged_last_is_not_lost() -> None:
    """Also of what ends at once, and of other writers to standard error."""
    program = (
        "import logging, os, sys; from esm_agent.operation import logs; logs.configure(False);"
        "logging.warning('first'); print('second', file=sys.stderr); os.write(2, b'third')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, second, third = done.stderr.splitlines()
    assert first.endswith("WARNING first")
    assert (second, third) == ("second", "third")


def test_a_block_whose_client_goes_is_logged_as_cancelled(
    agent: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    long = Block("long", MeasureSpec(runs=1_000_000), (Model("m", DATA),))
    with RemoteProfiler(f"127.0.0.1:{agent.port}") as profiler:
        running, waiting = profiler.submit(long), profiler.submit(BLOCK)
        until(lambda: len(agent._slot._active_calls) == 2)  # both have arrived
        until(lambda: any(line["event"] == "lease has its turn" for line in logged(caplog)))
        for block in (waiting, running):
            block.cancel()
            with pytest.raises((UnreachableError, DeviceError)):
                block.result()
        until(lambda: len(ended(caplog)) == 2)
    assert sorted(ended(caplog)) == [("block cancelled", "b1"), ("block cancelled", "long")]


def ended(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object]]:
    return [(line["event"], line["block_id"]) for line in logged(caplog) if "block_id" in line]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
