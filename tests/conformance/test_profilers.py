"""What every profiler does: the fake one and a real agent over gRPC pass the same tests."""

from collections.abc import Iterator

import pytest

from esm_host.errors import DeviceError, InvalidRequestError
from esm_host.transport.base import Profiler
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.local import LocalProfiler
from esm_models.spaces import load_space
from esm_protos.messages import (
    PROTOCOL_VERSION,
    Block,
    Failure,
    FailureKind,
    MeasureSpec,
    Model,
    Progress,
    RunOrder,
    State,
)
from esm_protos.session_settings import SessionSettings
from tests.helpers import largest, smallest

SPACE = load_space("resnet", resolution=32, width_mult=0.25)
GOOD = Model("small", SPACE.build(smallest(SPACE)))
LARGE = Model("large", SPACE.build(largest(SPACE)))
BAD = Model("bad", b"not a model")


def fake_latency(model: Model) -> float | Failure:
    if model.data == BAD.data:
        return Failure(FailureKind.INVALID_MODEL, "this is not an ONNX file")
    return model.size_bytes / 1e4


@pytest.fixture(scope="module", params=["fake", "local"])
def profiler(request: pytest.FixtureRequest) -> Iterator[Profiler]:
    make = {"fake": lambda: FakeProfiler(fake_latency), "local": LocalProfiler}
    with make[request.param]() as profiler:
        yield profiler


def block(*models: Model, **settings) -> Block:
    return Block("block", MeasureSpec(**{"runs": 6, **settings}), models)


def test_says_what_the_device_is(profiler: Profiler) -> None:
    info = profiler.device_info()
    assert info.protocol_version == PROTOCOL_VERSION
    assert "cpu" in info.providers
    assert info.cpu_count >= 1
    assert info.memory_bytes > 0
    assert info.limits.max_block_models >= 64
    assert info.identity() == profiler.device_info().identity()
    assert info.state.at_ns == 0


def test_tells_of_its_providers(profiler: Profiler) -> None:
    info = profiler.device_info()
    assert tuple(provider.name for provider in info.provider_table) == info.providers
    assert info.provider("cpu").runtime_name == "CPUExecutionProvider"


def test_an_unknown_option_is_refused_before_anything_is_measured(profiler: Profiler) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"x=1: unknown option 'x' of the provider cpu"
    ) as e:
        profiler.measure(block(GOOD, provider_options={"x": "1"}))
    assert e.value.exit_code == 2
    assert "\n" not in str(e.value)


def test_a_config_entry_that_names_a_file_is_refused(profiler: Profiler) -> None:
    assert profiler.device_info().session_settings
    session = SessionSettings(session_options={"session.optimized_model_filepath": "x.onnx"})
    with pytest.raises(InvalidRequestError, match=r"session\.optimized_model_filepath=x\.onnx: "):
        profiler.measure(block(GOOD, session=session))


def test_a_free_device_is_had_at_once(profiler: Profiler) -> None:
    standing = profiler.reserve("test", wait=False)
    assert standing.ahead == 0
    assert standing.expires_s > 1
    assert profiler.reserve("test", wait=False).ahead == 0, "asking twice is not two places"


def test_diagnoses(profiler: Profiler) -> None:
    diagnosis = profiler.diagnose(probe_s=0.2)
    checks = [finding.check for finding in diagnosis.findings]
    assert "pace" in checks
    assert len(set(checks)) == len(checks)
    assert all(finding.text for finding in diagnosis.findings)


def test_refuses_a_probe_of_no_length(profiler: Profiler) -> None:
    with pytest.raises(DeviceError, match=r"give 0\.1 to 600 seconds"):
        profiler.diagnose(probe_s=0)


@pytest.mark.parametrize("run_order", RunOrder)
def test_measures_a_block_in_order(profiler: Profiler, run_order: RunOrder) -> None:
    result = profiler.measure(block(GOOD, LARGE, run_order=run_order))
    assert result.block_id == "block"
    assert [m.model_id for m in result.measurements] == ["small", "large"]
    for measurement in result.measurements:
        assert measurement.failure is None
        assert len(measurement.latency_ns) == len(measurement.start_ns) == 6
        assert (measurement.latency_ns > 0).all()
    small, large = (m.trimmed_mean_ms(0.2) for m in result.measurements)
    assert small < large, "28 blocks of kernel 7 against 4 of kernel 3"
    assert 0 < result.running_ns <= result.busy_ns


def test_a_bad_model_is_an_outcome_not_an_exception(profiler: Profiler) -> None:
    result = profiler.measure(block(GOOD, BAD))
    good, bad = result.measurements
    assert good.failure is None
    assert bad.failure is not None
    assert bad.failure.kind is FailureKind.INVALID_MODEL
    assert bad.latency_ns.size == 0


def test_counts_what_it_sends(profiler: Profiler) -> None:
    pending = profiler.submit(block(GOOD))
    pending.result()
    assert 500 < pending.bytes_sent < len(GOOD.data) + 1000


def test_blocks_submitted_together_are_measured_one_after_the_other(profiler: Profiler) -> None:
    blocks = [block(GOOD) for _ in range(3)]
    pending = [profiler.submit(b) for b in blocks]
    assert [p.result().block_id for p in pending] == [b.block_id for b in blocks]


def test_a_block_that_is_not_wanted_any_more_does_not_keep_the_next_waiting(
    profiler: Profiler,
) -> None:
    unwanted = profiler.submit(block(GOOD, runs=100_000))
    unwanted.cancel()
    assert profiler.measure(block(GOOD)).measurements[0].failure is None


def test_a_block_that_is_ended_early_has_what_was_measured(profiler: Profiler) -> None:
    def told(progress: Progress) -> None:
        if progress.state is State.MEASURING:
            pending.finish()

    pending = profiler.submit(block(GOOD, LARGE, runs=100_000))
    for measurement in pending.result(told).measurements:
        assert measurement.failure is None
        assert measurement.latency_ns.size > 0
        if isinstance(profiler, LocalProfiler):
            assert measurement.latency_ns.size < 100_000


def test_tells_of_progress(profiler: Profiler) -> None:
    seen: list[Progress] = []
    profiler.measure(block(GOOD), seen.append)
    assert seen
    assert all(0 <= progress.fraction <= 1 for progress in seen)


def test_a_provider_that_is_not_there_is_refused(profiler: Profiler) -> None:
    with pytest.raises(DeviceError, match="unknown execution provider 'npu' on this device: "):
        profiler.measure(block(GOOD, provider="npu"))
    assert profiler.measure(block(GOOD)).measurements[0].failure is None
