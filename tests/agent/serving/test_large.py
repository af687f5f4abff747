"""Messages above gRPC's limit of 4 MB arrive, both ways."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from esm_agent.serving.server import AgentServer
from esm_host.errors import DeviceError
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, Case, File, MeasureSpec, Model, RunOrder
from tests.agent.fake_backends import InstantBackend

LIMIT_BYTES = 4 << 20
_VALUE = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
DATA = helper.make_model(
    helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [_VALUE], [_VALUE])
).SerializeToString()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = AgentServer("127.0.0.1", 0, InstantBackend, cache_folder=tmp_path / "cache")
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.faults
def test_as_many_samples_as_may_be_taken(address: str) -> None:
    spec = MeasureSpec(RunOrder.SEQUENTIAL, runs=1_000_000, warmup=0)
    with RemoteProfiler(address) as profiler:
        result = profiler.measure(Block("b", spec, (Model("one", DATA), Model("two", DATA))))
    for name, measurement in zip(("one", "two"), result.measurements, strict=True):
        assert (measurement.model_id, measurement.failure) == (name, None)
        assert measurement.latency_ns.size == measurement.start_ns.size == spec.runs
        assert (np.diff(measurement.start_ns) > 0).all(), "the parts are in order"


def test_a_model_with_many_files_beside_it(address: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"w")
    file = File(hashlib.sha256(b"w").digest(), 1, path)
    external = tuple((f"w/{number:0200}/{number:0200}", file) for number in range(10_000))
    assert sum(len(location) for location, _ in external) > 0.9 * LIMIT_BYTES
    block = Block("b", MeasureSpec(runs=1), (Model("m", DATA, external=external),))
    with RemoteProfiler(address) as profiler:
        (measurement,) = profiler.measure(block).measurements
        assert profiler.measure(Block("c", MeasureSpec(runs=1), (Model("m", DATA),)))
    assert measurement.model_id == "m"


def test_a_refusal_that_quotes_a_long_name(address: str) -> None:
    twice = Case(shapes=(("x", (1,)), ("x", (1,))))
    block = Block("b", MeasureSpec(runs=1), (Model("\u8a9e" * 4000, DATA, twice),))
    with (
        RemoteProfiler(address) as profiler,
        pytest.raises(DeviceError, match=r"refused: model \u8a9e\u8a9e"),
    ):
        profiler.measure(block)
