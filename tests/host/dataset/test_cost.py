"""What a model costs the device."""

from pathlib import Path

import numpy as np
import pytest

from esm_host.dataset.cost import device_time
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
