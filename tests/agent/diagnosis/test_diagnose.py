"""The Diagnose and GetDeviceInfo calls of a running agent."""

import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from esm_agent.serving.server import AgentServer
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.helpers import ARITHMETIC


@pytest.fixture(scope="module")
def stub() -> Iterator[profiler_pb2_grpc.ProfilerStub]:
    server = AgentServer("127.0.0.1", 0)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = profiler_pb2_grpc.ProfilerStub(channel)
        lease(stub, "doctor")
        yield stub
    server.stop()


def request(**fields) -> pb.DiagnoseRequest:
    given = {"protocol_version": PROTOCOL_VERSION, "probe_s": 0.2, "lease_id": "doctor"}
    return pb.DiagnoseRequest(**{**given, **fields})


def lease(stub: profiler_pb2_grpc.ProfilerStub, lease_id: str) -> str:
    stub.Lease(pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id))
    return lease_id


def test_waits_its_turn_among_blocks(stub: profiler_pb2_grpc.ProfilerStub) -> None:
    block = Block("b", MeasureSpec(runs=60), (Model("m", ARITHMETIC.read_bytes()),))
    done: list[str] = []

    def measure() -> None:
        events = list(stub.MeasureBlock(convert.block_to_requests(block, lease(stub, "block"))))
        assert events[-1].WhichOneof("event") == "done"
        done.append("block")

    def diagnose() -> None:
        diagnosis = convert.diagnosis_from_pb(stub.Diagnose(request()))
        assert {"pace", "usual pace"} <= {finding.check for finding in diagnosis.findings}
        assert "probe" not in {finding.check for finding in diagnosis.findings}
        done.append("diagnosis")

    threads = [threading.Thread(target=f) for f in (measure, diagnose, measure, diagnose)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == ["block", "block", "diagnosis", "diagnosis"]


def test_a_client_that_goes_away_frees_the_device(stub: profiler_pb2_grpc.ProfilerStub) -> None:
    call = stub.Diagnose.future(request(probe_s=500))
    time.sleep(1)
    call.cancel()
    assert stub.Diagnose(request(), timeout=30).findings


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"probe_s": 0}, grpc.StatusCode.INVALID_ARGUMENT, "0.1 to 600"),
        ({"probe_s": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT, "probe of nan s"),
        ({"protocol_version": 1}, grpc.StatusCode.FAILED_PRECONDITION, "upgrade"),
    ],
)
def test_nonsense_is_refused(
    stub: profiler_pb2_grpc.ProfilerStub, fields: dict, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Diagnose(request(**fields))
    assert refused.value.code() is code
    assert words in refused.value.details()


def test_the_state_is_the_one_of_now(stub: profiler_pb2_grpc.ProfilerStub) -> None:
    def state():
        return convert.device_info_from_pb(stub.GetDeviceInfo(pb.GetDeviceInfoRequest())).state

    before = state()
    if before.busy_s is None:
        pytest.skip("this system has no /proc")
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    assert state().busy_s > before.busy_s
    assert before.own_s is None, "the measuring process is another one"
