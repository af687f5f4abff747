"""Where an inference's time goes: by operator and node, bodies once, and never a latency lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure import profiling
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.worker import CancelledError, Worker
from esm_agent.providers import make_provider
from esm_protos.messages import BlockResult, MeasureSpec, Progress, State
from tests.agent import fake_cuda
from tests.agent.fake_backends import ScriptedBackend

CPU = "CPUExecutionProvider"


def ran(ts: int, dur: int) -> dict:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def node(name: str, op: str, ts: int, dur: int, number: str = "0") -> dict:
    arguments = {"op_name": op, "provider": CPU, "node_index": number}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "args": arguments,
    }


def test_times_are_per_inference_and_warm_up_is_left_out() -> None:
    profile = profiling.summary(
        [
            node("a", "Conv", 10, 900), ran(0, 1000),
            node("a", "Conv", 1010, 100), node("b", "Relu", 1110, 10), ran(1000, 130),
            node("a", "Conv", 2010, 200), node("b", "Relu", 2210, 20), ran(2000, 240),
        ],
        warmup=1,
    )  # fmt: skip
    assert profile.runs == 2
    assert [(o.op_type, o.calls, o.ns) for o in profile.operators] == [
        ("Conv", 1, 150_000),
        ("Relu", 1, 15_000),
    ]
    assert [(n.name, n.ns) for n in profile.nodes] == [("a", 150_000), ("b", 15_000)]


def test_what_runs_in_a_body_is_counted_once() -> None:
    """A loop of two passages, an If inside, whose only node takes all of its time."""
    passages = []
    for ts in (10, 60):
        passages += [
            node("m", "MatMul", ts, 20),
            node("r", "Relu", ts + 20, 15),
            node("if", "If", ts + 20, 15),
        ]
    profile = profiling.summary(
        [*passages, node("loop", "Loop", 5, 100), node("r", "Relu", 105, 7, "9"), ran(0, 120)]
    )
    found = {o.op_type: (o.calls, o.ns) for o in profile.operators}
    assert found == {
        "Loop": (1, 30_000),
        "MatMul": (2, 40_000),
        "If": (2, 0),
        "Relu": (3, 37_000),
    }
    assert sum(ns for _, ns in found.values()) == 107_000, "all time, and no time twice"


def test_only_the_slowest_nodes_are_kept_and_all_operators() -> None:
    events = [node(f"{'x' * 300}{n}", f"Op{n}", n, 1 + n % 3, str(n)) for n in range(600)]
    profile = profiling.summary([*events, ran(0, 10_000)])
    assert len(profile.operators) == 600
    assert len(profile.nodes) == 500
    assert profile.nodes[0].ns == 3000
    assert {len(n.name) for n in profile.nodes} == {200}


def test_a_profile_without_a_whole_inference_tells_nothing() -> None:
    with pytest.raises(ModelError, match="no whole inference"):
        profiling.summary([node("a", "Conv", 1, 2)])


# In the measuring process


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(make_provider, fake_cuda.SteadyGpu, make_others=(fake_cuda.working,))
    yield worker
    worker.stop()


@pytest.fixture
def model(tmp_path: Path) -> UploadedModel:
    """A loop of three products; the name of one node is nothing for JSON."""
    name = 'the "inner"\\ pröduct\n'
    float_, truth = TensorProto.FLOAT, TensorProto.BOOL
    square = [64, 64]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["v", "v"], ["p"], name=name),
            helper.make_node("Tanh", ["p"], ["vo"], name="tanh"),
            helper.make_node("Identity", ["c"], ["co"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", truth, []),
            helper.make_tensor_value_info("v", float_, square),
        ],
        [
            helper.make_tensor_value_info("co", truth, []),
            helper.make_tensor_value_info("vo", float_, square),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body),
            helper.make_node("Exp", ["y"], ["z"], name="exp"),
        ],
        "g",
        [helper.make_tensor_value_info("x", float_, square)],
        [helper.make_tensor_value_info("z", float_, square)],
        [numpy_helper.from_array(np.int64(3), "n")],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return UploadedModel("m", path)


def measured(
    worker: Worker, *models: UploadedModel, on_progress=lambda progress: None, **settings
) -> BlockResult:
    spec = MeasureSpec(**{"runs": 4, "warmup": 1, **settings})
    block = UploadedBlock("b", spec, models, profile_runs=5)
    return worker.measure(block, on_progress, lambda: False)


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_every_node_that_runs_is_told_of(
    worker: Worker, model: UploadedModel, tmp_path: Path, provider: str
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    good, failed = measured(
        worker, model, UploadedModel("bad", bad), provider=provider, allow_fallback=True
    ).measurements
    assert failed.failure is not None
    assert failed.profile is None
    assert len(good.latency_ns) == 4
    profile = good.profile
    assert profile is not None
    assert profile.runs == 5
    calls = {operator.op_type: operator.calls for operator in profile.operators}
    assert calls["MatMul"] == calls["Tanh"] == 3
    assert calls["Loop"] == calls["Exp"] == 1
    providers = {operator.provider for operator in profile.operators}
    assert providers == {"CPUExecutionProvider" if provider == "cpu" else fake_cuda.PROVIDER}
    assert {"tanh", "exp", "loop"} <= {n.name for n in profile.nodes}
    assert sum(o.ns for o in profile.operators) == pytest.approx(sum(n.ns for n in profile.nodes))
    assert profile.operators[0].ns > 0


def test_nothing_is_profiled_unless_it_is_asked_for(worker: Worker, model: UploadedModel) -> None:
    block = UploadedBlock("b", MeasureSpec(runs=2), (model,))
    result = worker.measure(block, lambda progress: None, lambda: False)
    assert result.measurements[0].profile is None


# A fake, whose profile may go wrong


def scripted(tmp_path: Path, *scripts: str) -> list[UploadedModel]:
    models = []
    for index, script in enumerate(scripts):
        path = tmp_path / f"{index}.onnx"
        path.write_text(script)
        models.append(UploadedModel(f"m{index}", path))
    return models


@pytest.mark.parametrize("script", ["profile fails", "profile dies", "profile hangs"])
def test_a_profile_that_goes_wrong_costs_no_latency(tmp_path: Path, script: str) -> None:
    worker = Worker(ScriptedBackend)
    try:
        models = scripted(tmp_path, "ok", script, "ok")
        first, broken, last = measured(worker, *models, model_timeout_s=1).measurements
        (again,) = measured(worker, models[0]).measurements
    finally:
        worker.stop()
    assert [len(m.latency_ns) for m in (first, broken, last)] == [4, 4, 4]
    assert (first.failure, broken.failure, last.failure) == (None, None, None)
    assert first.profile is not None
    assert broken.profile is None
    assert (last.profile is not None) == (script == "profile fails")
    assert again.profile is not None, "the next block is as ever"


def test_progress_goes_on_while_profiling_and_cancelling_stops_it(tmp_path: Path) -> None:
    worker = Worker(ScriptedBackend)
    seen: list[Progress] = []
    models = tuple(scripted(tmp_path, "profile hangs"))
    block = UploadedBlock("b", MeasureSpec(runs=4), models, profile_runs=4)
    try:
        with pytest.raises(CancelledError):
            worker.measure(block, seen.append, lambda: any(p.fraction >= 0.5 for p in seen))
    finally:
        worker.stop()
    assert seen[-1].state is State.MEASURING
