"""Peers of another version are told on one line which side to upgrade, whatever they call."""

from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace

import grpc
import pytest

from esm_agent.serving.server import AgentServer
from esm_host.errors import VersionError
from esm_host.transport import lease, remote
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.remote import RemoteProfiler
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

OLDER = [(PROTOCOL_VERSION - 1, "workstation"), (PROTOCOL_VERSION + 1, "device")]


def blocks(version: int) -> Iterator[pb.MeasureBlockRequest]:
    block = Block("b", MeasureSpec(), (Model("m", b"data"),))
    for request in convert.block_to_requests(block, "lease"):
        if request.HasField("header"):
            request.header.protocol_version = version
        yield request


CALLS: dict[str, Callable[[profiler_pb2_grpc.ProfilerStub, int], object]] = {
    "Lease": lambda stub, v: stub.Lease(pb.LeaseRequest(protocol_version=v, lease_id="lease")),
    "Release": lambda stub, v: stub.Release(pb.ReleaseRequest(protocol_version=v, lease_id="x")),
    "Diagnose": lambda stub, v: stub.Diagnose(pb.DiagnoseRequest(protocol_version=v, probe_s=1)),
    "FinishBlock": lambda stub, v: stub.FinishBlock(pb.FinishRequest(protocol_version=v)),
    "MeasureBlock": lambda stub, v: list(stub.MeasureBlock(blocks(v))),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = AgentServer("127.0.0.1", 0)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.parametrize(("version", "older"), OLDER)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_of_another_version_is_refused(
    address: str, call: str, version: int, older: str
) -> None:
    with (
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        CALLS[call](profiler_pb2_grpc.ProfilerStub(channel), version)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    details = caught.value.details()
    assert details.endswith(f"upgrade esm-profiler on the {older}")
    assert "\n" not in details


@pytest.mark.parametrize(("version", "older"), OLDER)
def test_the_host_passes_it_on(
    address: str, version: int, older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this host would say if it were of another version."""
    monkeypatch.setattr(lease, "PROTOCOL_VERSION", version)
    monkeypatch.setattr(remote, "PROTOCOL_VERSION", version)
    with RemoteProfiler(address) as profiler:
        for call in (lambda: profiler.reserve("time"), profiler.diagnose):
            with pytest.raises(VersionError, match=f"upgrade esm-profiler on the {older}"):
                call()


def test_an_agent_without_leases_is_the_older_side() -> None:
    class Old(profiler_pb2_grpc.ProfilerServicer):
        def GetDeviceInfo(self, request, context):
            info = FakeProfiler(lambda model: 1.0).device_info()
            return convert.device_info_to_pb(replace(info, protocol_version=PROTOCOL_VERSION - 1))

    server = grpc.server(futures.ThreadPoolExecutor(2))
    profiler_pb2_grpc.add_ProfilerServicer_to_server(Old(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            RemoteProfiler(f"127.0.0.1:{port}") as profiler,
            pytest.raises(VersionError, match="upgrade esm-profiler on the device"),
        ):
            profiler.reserve("time")
    finally:
        server.stop(None)
