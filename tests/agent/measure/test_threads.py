"""Threads that a model uses: processor time of its visits, and of nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.sources import MetricSource, VisitMetrics
from esm_agent.measure.threads import ThreadsUsed
from esm_agent.measure.worker import Worker
from esm_protos.messages import MeasureSpec, RunOrder
from esm_protos.metrics import Metric
from tests.agent.fake_backends import ScriptedBackend

MS = 1_000_000


class Clocks:
    """Two clocks that move as told."""

    def __init__(self) -> None:
        self.wall = self.processor = 0

    def spend(self, wall_ms: int, processor_ms: int) -> None:
        self.wall += wall_ms * MS
        self.processor += processor_ms * MS


def test_visits_of_a_model_count_together_and_nothing_between_them() -> None:
    clocks = Clocks()
    threads = ThreadsUsed(lambda: clocks.wall, lambda: clocks.processor)
    for model, busy in ((0, 90), (1, 30), (0, 210), (1, 30)):
        threads.begin()
        clocks.spend(60, busy)
        threads.end(model)
        clocks.spend(1000, 7000)
    assert (threads.used(0), threads.used(1)) == (2.5, 0.5)


def test_too_short_visits_give_no_number() -> None:
    clocks = Clocks()
    threads = ThreadsUsed(lambda: clocks.wall, lambda: clocks.processor)
    threads.begin()
    clocks.spend(99, 990)
    threads.end(0)
    assert (threads.used(0), threads.used(1)) == (0.0, 0.0)


class Busy(MetricSource):
    """A source that takes time of its own."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("own", "", ""),)

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks

    def start(self) -> None:
        self._clocks.spend(500, 5000)

    def stop(self, inferences: int) -> Mapping[str, float]:
        self._clocks.spend(500, 5000)
        return {"own": 1.0}


def test_sources_of_metrics_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(
        "esm_agent.measure.sources.ThreadsUsed",
        lambda: ThreadsUsed(lambda: clocks.wall, lambda: clocks.processor),
    )
    visits = VisitMetrics([Busy(clocks)], lambda: None)
    visits.begin(0)
    clocks.spend(200, 600)
    visits.tick()
    visits.end()
    assert visits.threads_used(0) == 3.0
    assert visits.values(0) == {"own": 1.0}


@pytest.mark.parametrize("run_order", RunOrder)
def test_a_model_that_waits_uses_no_thread(tmp_path: Path, run_order: RunOrder) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("sleep 0.03")
    worker = Worker(ScriptedBackend)
    try:
        block = UploadedBlock(
            "b", MeasureSpec(run_order=run_order, runs=10), (UploadedModel("m", path),)
        )
        (measured,) = worker.measure(block, lambda progress: None, lambda: False).measurements
    finally:
        worker.stop()
    assert measured.failure is None
    assert 0 < measured.threads_used < 1
