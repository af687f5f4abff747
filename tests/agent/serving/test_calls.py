"""Callers who send nothing, or nonsense, take nothing from those who measure."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from esm_agent.operation.metrics import Metrics
from esm_agent.serving import calls
from esm_agent.serving.server import AgentServer
from esm_host.transport.remote import RemoteProfiler
from esm_protos import convert
from esm_protos.messages import CHUNK_BYTES, PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.agent.fake_backends import IdleBackend
from tests.helpers import ARITHMETIC

DATA = ARITHMETIC.read_bytes()
LONG = Block("long", MeasureSpec(runs=1_000_000), (Model("m", DATA),))
SHORT = Block("short", MeasureSpec(runs=5), (Model("m", DATA),))
SERVICE = "/esm.v1.Profiler"


@pytest.fixture
def agent() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1", 0)
    yield server
    server.stop()


@pytest.fixture
def channel(agent: AgentServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{agent.port}") as channel:
        yield channel


class Silent:
    """Calls whose headers come, and nothing else."""

    def __init__(self, channel: grpc.Channel, path: str, count: int) -> None:
        self._over = threading.Event()
        method = channel.stream_stream(path)
        self.calls = [method(self._nothing()) for _ in range(count)]

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait()
        return
        yield

    def statuses(self) -> list[grpc.StatusCode]:
        """Of those that have ended."""
        return [call.code() for call in self.calls if not call.is_active()]

    def close(self) -> None:
        self._over.set()
        for call in self.calls:
            call.cancel()


def lease(stub: profiler_pb2_grpc.ProfilerStub, lease_id: str) -> pb.LeaseReply:
    request = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id)
    reply: pb.LeaseReply = stub.Lease(request, timeout=10)
    return reply


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["MeasureBlock", "Upload", "Lease", "GetDeviceInfo", "Diagnose"])
def test_silent_calls_stop_nobody(agent: AgentServer, channel: grpc.Channel, method: str) -> None:
    """As many as would hold every thread, if each held one."""
    silent = Silent(channel, f"{SERVICE}/{method}", 150)
    try:
        time.sleep(0.5)  # all have arrived
        with RemoteProfiler(f"127.0.0.1:{agent.port}") as profiler:
            assert profiler.reserve("test").ahead == 0
            assert profiler.measure(SHORT).block_id == "short"
        until(lambda: len(silent.statuses()) >= 118)
        assert set(silent.statuses()) == {grpc.StatusCode.ABORTED}, "which hosts try again"
    finally:
        silent.close()


def test_who_sends_nothing_is_told_so(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls.Incoming, "overdue", lambda self, now: "nothing came")
    silent = Silent(channel, f"{SERVICE}/MeasureBlock", 1)
    try:
        until(lambda: len(silent.statuses()) == 1)
        assert "nothing came" in silent.calls[0].details()
    finally:
        silent.close()


def test_a_slow_sender_has_the_time_that_its_bytes_take() -> None:
    call = calls.Call(None, "host", lambda message: None)
    incoming = calls.Incoming(call, calls.RECEIVE, iter(()), bytes, lambda *refusal: None)
    now = incoming._began
    assert incoming.overdue(now + 19) is None
    assert "no message" in str(incoming.overdue(now + 21))
    incoming._received = 1_000_000
    assert incoming.overdue(now + 150) is None
    assert "1000000 bytes in 170 s" in str(incoming.overdue(now + 170))


def test_a_block_without_a_lease_is_refused_before_its_bytes_are_taken(
    channel: grpc.Channel,
) -> None:
    sent = 0

    def requests() -> Iterator[pb.MeasureBlockRequest]:
        nonlocal sent
        large = Block("large", MeasureSpec(runs=1), (Model("m", bytes(64 << 20)),))
        (header,) = [
            request
            for request in convert.block_to_requests(large, "nobody's")
            if request.WhichOneof("part") == "header"
        ]
        yield header
        while True:
            sent += 1
            yield pb.MeasureBlockRequest(chunk=pb.Chunk(data=bytes(CHUNK_BYTES)))

    replies = profiler_pb2_grpc.ProfilerStub(channel).MeasureBlock(requests(), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "lease has ended" in caught.value.details()
    assert sent < 50


def test_receiving_a_block_ends_with_its_lease(channel: grpc.Channel) -> None:
    stub = profiler_pb2_grpc.ProfilerStub(channel)
    lease(stub, "mine")
    over = threading.Event()

    def requests() -> Iterator[pb.MeasureBlockRequest]:
        yield next(convert.block_to_requests(SHORT, "mine"))
        over.wait(60)

    replies = stub.MeasureBlock(requests())
    time.sleep(0.5)
    stub.Release(pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="mine"))
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    over.set()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "lease has ended" in caught.value.details()


def test_blocks_that_wait_hold_no_thread(agent: AgentServer, channel: grpc.Channel) -> None:
    """More than all pools together have."""
    stub = profiler_pb2_grpc.ProfilerStub(channel)
    waiting = []
    for number in range(250):
        lease(stub, f"lease {number}")
        replies = stub.MeasureBlock(convert.block_to_requests(LONG, f"lease {number}"))
        assert next(replies).progress.state == pb.STATE_QUEUED
        waiting.append(replies)
    held = [t for t in threading.enumerate() if t.name.startswith(("esm-receive", "esm-send"))]
    assert len(held) < 100
    assert lease(stub, "another").standing.ahead == 250
    for replies in waiting:
        replies.cancel()
    lease(stub, "short")
    for number in range(250):
        lease_id = f"lease {number}"
        stub.Release(pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id))
    *_, last = stub.MeasureBlock(convert.block_to_requests(SHORT, "short"))
    assert last.done.block_id == "short"
    until(lambda: not list(agent._scratch.path.glob("tmp*")))


@pytest.mark.parametrize("lives", [True, False])
def test_a_result_may_wait_for_its_client_as_long_as_the_lease_lives(
    lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that trains meanwhile takes it minutes later."""
    monkeypatch.setattr(calls, "_SEND_S", 0.5)
    counted = Counted()
    server = AgentServer("127.0.0.1", 0, IdleBackend, metrics=counted)
    narrow = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    large = Block("large", MeasureSpec(runs=20_000), (Model("m", DATA), Model("n", DATA)))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", narrow) as channel:
        stub = profiler_pb2_grpc.ProfilerStub(channel)
        lease(stub, "mine")
        replies = stub.MeasureBlock(convert.block_to_requests(large, "mine"))
        until(lambda: counted.blocks == ["measured"])
        if not lives:
            stub.Release(pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="mine"))
        time.sleep(1.5)
        if lives:
            *_, last = replies
            assert last.done.block_id == "large"
        else:
            with pytest.raises(grpc.RpcError):
                list(replies)
    server.stop()


class Counted(Metrics):
    """What became of blocks, and refusals."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.refusals: list[str] = []

    def block_ended(self, outcome: str, models: Mapping[str, int], busy_s: float) -> None:
        self.blocks.append(outcome)

    def refused(self, code: str) -> None:
        self.refusals.append(code)


def test_one_caller_does_not_hold_all_threads_of_diagnoses() -> None:
    counted = Counted()
    server = AgentServer("127.0.0.1", 0, metrics=counted)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = profiler_pb2_grpc.ProfilerStub(channel)
        lease(stub, "busy")
        busy = stub.MeasureBlock(convert.block_to_requests(LONG, "busy"))
        until(lambda: next(busy).progress.state == pb.STATE_MEASURING)
        waiting = []
        for number in range(calls.DIAGNOSE.most_calls + 1):
            lease(stub, str(number))
            waiting.append(
                stub.Diagnose.future(
                    pb.DiagnoseRequest(
                        protocol_version=PROTOCOL_VERSION, probe_s=0.1, lease_id=str(number)
                    )
                )
            )
            time.sleep(0.1)
        error = waiting[-1].exception(timeout=20)
        assert error.code() is grpc.StatusCode.ABORTED
        assert counted.refusals == ["ABORTED"]
        for call in (busy, *waiting):
            call.cancel()
    server.stop()


def test_a_lease_keeps_some_blocks_waiting_not_any_number(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esm_agent.serving.slot.MOST_BLOCKS", 2)
    stub = profiler_pb2_grpc.ProfilerStub(channel)
    lease(stub, "mine")
    waiting = []
    for _ in range(3):
        replies = stub.MeasureBlock(convert.block_to_requests(LONG, "mine"))
        next(replies)
        waiting.append(replies)
        time.sleep(0.3)
    refused = stub.MeasureBlock(convert.block_to_requests(LONG, "mine"))
    with pytest.raises(grpc.RpcError) as caught:
        next(refused)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for replies in waiting:
        replies.cancel()


METHODS = [f"{SERVICE}/{m.name}" for m in pb.DESCRIPTOR.services_by_name["Profiler"].methods]
METHODS += ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]


def test_what_is_no_request_is_one_line_in_the_log(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """No message at all, and one that is none of the method's."""
    for path, messages in itertools.product(METHODS, ([], [b"\xff\xff\xff"])):
        method = channel.stream_stream(path)
        with pytest.raises(grpc.RpcError) as caught:
            list(method(iter(messages), timeout=20))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, path
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]


def test_health_is_checked_and_not_watched(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service, code in (("", None), ("x" * 1_000_000, grpc.StatusCode.NOT_FOUND)):
        request = health_pb2.HealthCheckRequest(service=service)
        if code is None:
            assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        else:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(request)
            assert caught.value.code() is code
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_answer_is_closed_also_if_its_call_cannot_be_ended() -> None:
    class Broken:
        def listen(self, ready: Any) -> None:
            ready()

        def take(self) -> Any:
            return "event"

        def submit(self, work: Any) -> None:
            with contextlib.suppress(OSError):
                work()

        def sending(self, call: Any) -> Any:
            return contextlib.nullcontext()

        def send(self, message: Any) -> None:
            raise OSError

    def finish(*status: Any) -> bool:
        raise OSError

    broken: Any = Broken()
    broken.finish = finish
    closed: list[bool] = []
    later = calls.DeferredAnswer(
        broken,
        messages=lambda event: iter((event,)),
        is_last=lambda event: True,
        status=lambda error: (grpc.StatusCode.UNKNOWN, ""),
        close=lambda: closed.append(True),
    )
    later.start(broken, broken)
    assert closed == [True]
