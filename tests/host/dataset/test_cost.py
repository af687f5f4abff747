"""What a model costs the device."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esm_host.dataset.cost import device_time, device_times, share_of_blocks
from esm_host.dataset.store import Store
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Failure, FailureKind, MeasureSpec, Model, RunOrder
from tests.host.fake_campaign import SETTINGS, Log, assemble, latency


def test_without_measurements_the_spec_tells(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    cost = device_time(store, MeasureSpec(runs=150, runs_per_visit=3, warmup=2))
    np.testing.assert_allclose(cost.seconds(np.array([1.0, 10.0])), [0.25, 2.5])
    in_a_row = MeasureSpec(run_order=RunOrder.SEQUENTIAL, runs=148, warmup=2)
    np.testing.assert_allclose(device_time(store, in_a_row).seconds(np.array([2.0])), [0.3])


def test_measured_models_tell_better(tmp_path: Path) -> None:
    first: list[str] = []

    def some_fail(model: Model) -> float | Failure:
        first.append(model.model_id)
        return Failure(FailureKind.TIMEOUT, "slow") if len(first) == 1 else latency(model)

    store, _, loop = assemble(tmp_path, FakeProfiler(some_fail), Log(), max_models=40)
    loop.run()
    # 12 counted runs, each after 2 uncounted ones; loading took no time.
    assert device_time(store, SETTINGS.spec).seconds(np.array([1000.0])) == pytest.approx(36.0)


def test_only_latencies_tell_how_long_models_take(tmp_path: Path) -> None:
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), Log(), max_models=40)
    loop.run()
    busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
    values = np.array([1.0, 100.0])
    by_energy = device_times(store, replace(SETTINGS, metric="energy,latency"))(values)
    np.testing.assert_allclose(by_energy, busy_s / 40)
    fast_s, slow_s = device_times(store, SETTINGS)(values)
    assert slow_s == pytest.approx(100 * fast_s)


def test_the_time_of_energy_is_the_same_for_fast_and_slow_models(tmp_path: Path) -> None:
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), Log(), max_models=40)
    loop.run()
    busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
    half_s = busy_s / 2 / len(store.measurements())
    whole, with_energy = (share_of_blocks(store, SETTINGS.spec, s) for s in (0.0, half_s))
    values = np.array([1.0, 3.0])
    difference = [np.diff(each.seconds(values))[0] for each in (whole, with_energy)]
    assert difference[1] == pytest.approx(difference[0] / 2)
