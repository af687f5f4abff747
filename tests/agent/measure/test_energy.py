"""Energy of a block's models in the measuring process, by a meter of constant power."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from esm_agent.device.telemetry import Telemetry
from esm_agent.energy.find import Sources, find_sources
from esm_agent.energy.source import EnergySource
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.energy import measure_energy
from esm_agent.measure.sessions import Job, Sessions
from esm_agent.measure.worker import UnusableOptionError, Worker
from esm_protos.messages import BlockResult, MeasureSpec, RunOrder
from tests.agent.fake_backends import ScriptedBackend

ENERGY_S = 2.0
METER = """
import time

from esm_agent.energy.source import EnergySource


class Plug(EnergySource):
    covers = "plug"
    tick_s = {tick_s}

    def joules(self):
        return 7.0 * time.perf_counter()
"""


def meter(folder: Path, tick_s: float = 0.001) -> str:
    (file := folder / f"plug{tick_s}.py").write_text(METER.format(tick_s=tick_s))
    return f"{file}:Plug"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(ScriptedBackend, meters=[meter(tmp_path_factory.mktemp("meter"))])
    yield worker
    worker.stop()


def measured(
    worker: Worker,
    folder: Path,
    *scripts: str,
    energy_s: float = ENERGY_S,
    profile_runs: int = 0,
    run_order: RunOrder = RunOrder.INTERLEAVED,
) -> BlockResult:
    models = []
    for index, script in enumerate(scripts):
        (path := folder / f"{index}.onnx").write_text(script)
        models.append(UploadedModel(f"m{index}", path))
    block = UploadedBlock(
        "b",
        MeasureSpec(run_order=run_order, runs=6),
        tuple(models),
        profile_runs=profile_runs,
        energy_s=energy_s,
    )
    return worker.measure(block, lambda progress: None, lambda: False)


def test_the_agent_tells_of_sensors_and_metrics(tmp_path: Path) -> None:
    worker = Worker(ScriptedBackend, meters=[meter(tmp_path)])
    hello = worker.start()
    worker.stop()
    sensor = hello.energy_sensors[0]
    assert (sensor.name, sensor.covers, sensor.tick_s, sensor.problem) == (
        "Plug",
        "plug",
        0.001,
        "",
    )
    assert {"RAPL", "NVML"} <= {each.name for each in hello.energy_sensors if each.problem}
    keys = [metric.key for metric in hello.metrics]
    assert keys[0] == "energy_mj"
    assert "Plug: covers the plug" in hello.findings[-1].text


@pytest.mark.parametrize("run_order", RunOrder)
def test_energy_is_measured_after_the_latencies(
    worker: Worker, tmp_path: Path, run_order: RunOrder
) -> None:
    result = measured(worker, tmp_path, "ok", "invalid", run_order=run_order)
    fine, failed = result.measurements
    assert failed.energy is None
    assert fine.energy is not None
    assert (fine.energy.source, fine.energy.covers) == ("Plug", "plug")
    assert len(fine.energy.gross_mj) == len(fine.energy.idle_mj) == 8
    assert fine.metrics["power_w"] == pytest.approx(7.0, rel=0.01)
    assert fine.metrics["energy_gross_mj"] > abs(fine.metrics["energy_mj"])
    assert fine.energy.problem, "the meter does not know whether models run"
    assert len(fine.latency_ns) == 6
    assert result.busy_ns > 0.5e9 * ENERGY_S, "windows and rest count"


def test_energy_is_measured_only_if_asked(worker: Worker, tmp_path: Path) -> None:
    (fine,) = measured(worker, tmp_path, "ok", energy_s=0).measurements
    assert fine.energy is None
    assert "energy_mj" not in fine.metrics


def test_a_run_that_fails_costs_only_the_energy(worker: Worker, tmp_path: Path) -> None:
    (fine,) = measured(worker, tmp_path, "raises 60").measurements
    assert fine.failure is None
    assert fine.energy is not None
    assert "indices out of bounds" in fine.energy.problem
    assert "energy_mj" not in fine.metrics


def test_a_process_that_dies_in_a_profile_costs_only_the_energy(
    worker: Worker, tmp_path: Path
) -> None:
    (fine,) = measured(worker, tmp_path, "profile dies", profile_runs=1).measurements
    assert fine.failure is None
    assert fine.energy is not None
    assert fine.energy.problem == "the measuring process ended while it profiled"


def test_windows_too_short_for_the_ticks_say_what_they_need(tmp_path: Path) -> None:
    worker = Worker(ScriptedBackend, meters=[meter(tmp_path, tick_s=0.5)])
    try:
        (fine,) = measured(worker, tmp_path, "ok").measurements
    finally:
        worker.stop()
    assert fine.energy is not None
    assert "too short for a value every 0.5 s" in fine.energy.problem
    assert 160 < fine.energy.needs_s < 240
    assert not fine.energy.gross_mj


def test_a_device_without_a_sensor_says_why(tmp_path: Path) -> None:
    worker = Worker(ScriptedBackend)
    hello = worker.start()
    try:
        (fine,) = measured(worker, tmp_path, "ok").measurements
    finally:
        worker.stop()
    if any(not sensor.problem for sensor in hello.energy_sensors):
        pytest.skip("this machine has a sensor")
    assert hello.metrics == ()
    assert fine.energy is not None
    assert "RAPL: not found" in fine.energy.problem
    assert "start the agent with --energy FILE.py:CLASS" in fine.energy.problem


class Constant(EnergySource):
    tick_s = 0.001

    def joules(self) -> float:
        return 7.0 * time.perf_counter()


class OneModel:
    """Sessions of a model that does nothing."""

    def load_one(self, job: Job, index: int) -> "OneModel":
        return self

    def run(self) -> None:
        pass


class Counter(Constant):
    """A counter that does not know how often it has a new value."""

    name = "counter"
    tick_s = 0.0

    def __init__(self) -> None:
        self.reads = 0

    def joules(self) -> float:
        self.reads += 1
        return 7.0 * (time.perf_counter() // 0.01)


def test_a_counter_is_watched_only_for_an_energy(tmp_path: Path) -> None:
    """Not by each measuring process that starts."""
    counter = Counter()
    found = find_sources(Telemetry(tmp_path), [counter], tmp_path)
    assert counter.reads == 0
    assert found.sensors[0].line == "counter: covers the meter"
    job = Job(MeasureSpec(), {0: UploadedModel("m", Path("m.onnx"))}, energy_s=ENERGY_S)
    sessions, ticks = cast(Sessions, OneModel()), []
    measure_energy(
        sessions, job, [0], found, False, lambda *_: None, lambda: ticks.append(1), lambda: True, 60
    )
    assert counter.tick_s > 0
    assert len(ticks) >= counter.reads - 2, "the time-out begins anew with each look"


def test_a_counter_that_cannot_be_watched_costs_only_the_energy() -> None:
    class Lost(Counter):
        def joules(self) -> float:
            raise OSError("lost")

    job = Job(MeasureSpec(), {0: UploadedModel("m", Path("m.onnx"))}, energy_s=ENERGY_S)
    sessions, sources = cast(Sessions, OneModel()), Sources((Lost(),), ())
    found = measure_energy(
        sessions, job, [0], sources, False, lambda *_: None, lambda: None, lambda: True, 60
    )
    assert found[0].energy.problem == "OSError: lost"


class Dead(Constant):
    def joules(self) -> float:
        return 12.5


class Stuck(Constant):
    calls = 0

    def joules(self) -> float:
        self.calls += 1
        return self.calls if self.calls < 9 else float("nan")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Dead(), r"the sensor gave no new value in [\d.]+ s: check the sensor"),
        (Stuck(), r"ValueError: joules\(\) returned nan: return a finite number .*"),
    ],
)
def test_a_sensor_that_fails_names_what_to_check(source: EnergySource, said: str) -> None:
    job = Job(MeasureSpec(), {0: UploadedModel("m", Path("m.onnx"))}, energy_s=ENERGY_S)
    sessions, sources = cast(Sessions, OneModel()), Sources((source,), ())
    found = measure_energy(
        sessions, job, [0], sources, False, lambda *_: None, lambda: None, lambda: False, 60
    )
    assert re.fullmatch(said, found[0].energy.problem), found[0].energy.problem
    assert not found[0].values


@pytest.mark.parametrize(("limit_s", "finish"), [(0.0, False), (60.0, True)])
def test_it_ends_early(limit_s: float, finish: bool) -> None:
    """At the limit of the block, and when the client wants it."""
    job = Job(MeasureSpec(), {0: UploadedModel("m", Path("m.onnx"))}, energy_s=ENERGY_S)
    sessions = cast(Sessions, OneModel())
    sources = Sources((Constant(),), ())
    found = measure_energy(
        sessions, job, [0], sources, False, lambda *_: None, lambda: None, lambda: finish, limit_s
    )
    assert found[0].energy.problem == "it ended early, after 0 windows"
    assert not found[0].values


def test_a_meter_that_does_not_load_stops_the_agent(tmp_path: Path) -> None:
    worker = Worker(ScriptedBackend, meters=[str(tmp_path / "none.py")])
    with pytest.raises(UnusableOptionError, match=r"--energy .*none\.py: there is no file"):
        worker.start()
