"""What people publish is timed by a real agent as it is, or refused by what is wrong with it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from esm_host.transport.local import LocalProfiler
from esm_protos.messages import (
    Block,
    Case,
    FailureKind,
    Input,
    Measurement,
    MeasureSpec,
    Model,
)
from tests import models_public
from tests.models_public import external_data_model, public

RUNS = 3
SPEC = MeasureSpec(runs=RUNS, warmup=1)
IMAGE = (1, 3, 96, 64)


@pytest.fixture(scope="module")
def profiler() -> Iterator[LocalProfiler]:
    with LocalProfiler() as profiler:
        yield profiler


@pytest.fixture(scope="module")
def timed(profiler: LocalProfiler) -> dict[str, Measurement]:
    models = [Model(name, data) for name, data in public().items()]
    shapes = (("image", IMAGE),)
    models.append(Model("detection, shaped", public()["detection"], Case(shapes)))
    models.append(Model("inverted, threads", public()["inverted"], Case(threads=2)))
    block = Block("public", SPEC, tuple(models), peak_memory=True, profile_runs=2)
    return {m.model_id: m for m in profiler.measure(block).measurements}


@pytest.mark.parametrize(
    ("name", "fed", "operators"),
    [
        ("inverted", Input("input", "float32", (1, 3, 160, 160)), {"Conv", "HardSigmoid"}),
        ("residual", Input("input", "float32", (1, 3, 112, 112)), {"Conv", "MaxPool"}),
        ("encoder", Input("input", "int64", (1, 64)), {"Gather", "Softmax"}),
        ("lstm", Input("input", "float32", (50, 1, 64)), {"LSTM"}),
        ("detection", Input("image", "float32", (1, 3, 1, 1)), {"NonMaxSuppression"}),
        ("detection, shaped", Input("image", "float32", IMAGE), {"NonMaxSuppression"}),
        ("inverted, threads", Input("input", "float32", (1, 3, 160, 160)), {"HardSigmoid"}),
        ("quantized", Input("image", "float32", (1, 3, 32, 32)), {"QLinearConv"}),
        ("half", Input("x", "float16", (1, 64)), {"MatMul", "Cast"}),
        ("control_flow", Input("x", "float32", (1, 32)), {"Loop", "If", "MatMul", "Neg"}),
        ("text", Input("words", "string", (1,)), {"LabelEncoder", "Gather", "MatMul"}),
    ],
)
def test_a_model_is_timed_as_it_is(
    timed: dict[str, Measurement], name: str, fed: Input, operators: set[str]
) -> None:
    found = timed[name]
    assert found.failure is None
    assert len(found.latency_ns) == RUNS
    assert (found.latency_ns > 0).all()
    assert found.inputs == (fed,)
    assert found.profile is not None
    told = {operator.op_type for operator in found.profile.operators}
    for operator in operators:  # the runtime may have fused it
        assert any(operator in op_type for op_type in told), told
    assert 0 < sum(operator.ns for operator in found.profile.operators) < 1e9


def test_bodies_are_counted_as_often_as_they_run(timed: dict[str, Measurement]) -> None:
    profile = timed["control_flow"].profile
    assert profile is not None
    calls = {operator.op_type: operator.calls for operator in profile.operators}
    assert calls["MatMul"] == calls["If"] == 4
    assert calls.get("Tanh", 0) + calls.get("Sigmoid", 0) == 4
    assert calls["Loop"] == 1


def test_memory_is_told_where_the_system_tells_it(timed: dict[str, Measurement]) -> None:
    peaks = [m.peak_rss_bytes for m in timed.values()]
    assert all(peaks) or not any(peaks)


def test_what_does_not_run_is_refused_by_its_reason(profiler: LocalProfiler) -> None:
    def shaped(*dims: int) -> Case:
        return Case(shapes=(("image", dims),))

    detection, whole = public()["detection"], public()["residual"]
    cases = {
        "rank": (detection, shaped(3, 64, 64), FailureKind.INVALID_INPUT, "1x3xheightxwidth"),
        "fixed": (detection, shaped(2, 3, 64, 64), FailureKind.INVALID_INPUT, "2x3x64x64"),
        "huge": (detection, shaped(1, 3, 2**40, 2**40), FailureKind.INVALID_INPUT, "memory"),
        "unknown": (
            detection,
            Case(shapes=(("picture", (1,)),)),
            FailureKind.INVALID_INPUT,
            "the model takes 'image'",
        ),
        "map": (models_public.mapping(), Case(), FailureKind.UNSUPPORTED_OP, "map("),
        "custom": (models_public.custom(), Case(), FailureKind.UNSUPPORTED_OP, "custom.ops"),
        "cut": (whole[: len(whole) // 2], Case(), FailureKind.INVALID_MODEL, "ONNX"),
    }
    models = [Model(name, data, case) for name, (data, case, _, _) in cases.items()]
    models.append(Model("good", public()["text"]))
    *refused, good = profiler.measure(Block("refused", SPEC, tuple(models))).measurements
    assert good.failure is None, "the others do not spoil it"
    for measurement, (_, _, kind, words) in zip(refused, cases.values(), strict=True):
        assert measurement.failure is not None, measurement.model_id
        assert measurement.failure.kind is kind, measurement.failure.message
        assert words in measurement.failure.message


def external(profiler: LocalProfiler, folder: Path, size_bytes: int) -> Measurement:
    if not profiler.device_info().limits.max_cache_bytes:
        pytest.skip("this agent has no cache")
    data, location, file = external_data_model(folder, size_bytes)
    inputs = (("tokens", (16,)),)
    model = Model("external", data, Case(inputs), ((location, file),))
    return profiler.measure(
        Block("external", SPEC, (model,), peak_memory=True, profile_runs=1)
    ).measurements[0]


def test_weights_beside_the_model_are_found(profiler: LocalProfiler, tmp_path: Path) -> None:
    found = external(profiler, tmp_path, 5_000_000)
    assert found.failure is None
    assert found.inputs == (Input("tokens", "int64", (16,)),)
    assert len(found.latency_ns) == RUNS


@pytest.mark.large
def test_three_gigabytes_of_weights_are_timed(profiler: LocalProfiler, tmp_path: Path) -> None:
    found = external(profiler, tmp_path, 3 << 30)
    assert found.failure is None
    assert np.median(found.latency_ns) < 1e9
    assert found.profile is not None
