"""A metric that a device brings itself is in everything that the host makes of a measurement."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from esm_host import load_timing
from esm_host.cli.app import app
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.report.page import Table
from esm_host.report.timing import timing_page
from esm_host.timing.frames import TimingFile
from esm_host.timing.metrics import metrics_of, value_of
from esm_host.timing.spread import join
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Block, BlockResult, DeviceInfo, Measurement, MeasureSpec, Model
from esm_protos.metrics import KNOWN, STATISTICS, Aggregate, Better, Kind, Metric
from tests.host.report.timings import older, timing

ENERGY = Metric("energy_mj", "mJ", "energy of an inference", better=Better.LOWER)
SWITCHES = Metric("switches", "", "", kind=Kind.INT, aggregate=Aggregate.SUM)


class Metered(FakeProfiler):
    """Device that measures energy, switches, and something that it does not describe."""

    def device_info(self) -> DeviceInfo:
        return replace(super().device_info(), metrics=(ENERGY, SWITCHES))

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        result = super().answer(block, on_progress)
        measured = tuple(
            replace(each, metrics={**each.metrics, "energy_mj": 2.5, "switches": 3.0, "model": 1.0})
            for each in result.measurements
        )
        return replace(result, measurements=measured)


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> Metered:
    """Every device is this one."""
    profiler = Metered(lambda model: max(len(model.data) / 1e5, 0.01), noise=0.01, references=())
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    return profiler


def test_a_metric_of_the_device_is_in_every_output(metered: Metered, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model, out, table = (tmp_path / name for name in ("m.onnx", "out.json", "out.csv"))
    model.write_bytes(helper.make_model(graph).SerializeToString())
    arguments = ["time", str(model), "--runs", "40", "--json", str(out), "--csv", str(table)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    heading, row = done.stdout.splitlines()[:2]
    assert heading.split()[-3:] == ["energy_mj", "switches", "verdict"]
    assert row.split()[-3:] == ["2.5000", "3", "stable"]

    data = json.loads(out.read_text())
    unknown = {m.field for m in STATISTICS if data["results"][0][m.field] is None}
    assert unknown == {"shift_percent"}, "the device remembers nothing"
    assert data["results"][0]["metrics"] == {"energy_mj": 2.5, "switches": 3, "model": 1.0}
    (line,) = csv.DictReader(table.read_text().splitlines())
    assert (line["energy_mj"], line["switches"], line["model"]) == ("2.5", "3", str(model))
    file = load_timing(out)
    frame = file.results()
    assert frame[["energy_mj", "switches", "model"]].to_numpy().tolist() == [[2.5, 3.0, str(model)]]
    (results, *_) = timing_page(file).sections
    titles = next(part.columns for part in results.parts if isinstance(part, Table))
    assert list(titles)[-3:] == ["#energy (mJ)", "#switches", "verdict"]


def test_a_campaign_keeps_metrics(metered: Metered, tmp_path: Path) -> None:
    """The metrics are those of the attempt whose latency counts."""
    store = Store(tmp_path / "store.sqlite")
    plan = [Architecture("s", (("a",), ("b",) * number)) for number in range(1, 5)]
    store.add_plan(REFERENCE_ROUND, plan[:1])
    store.add_plan(0, plan[1:])
    spec = MeasureSpec(runs=40)
    block = Block("b", spec, tuple(Model(each.key, b"x" * 1000) for each in plan))
    store.add_block(0, block, metered.measure(block), metered.device_info(), 1, 1.0)
    metrics = Measurements(store, spec).metrics()
    assert metrics.keys() == {each.key for each in plan}
    for values in metrics.values():
        assert values["energy_mj"] == 2.5
        assert values["load_ms"] >= 0
        assert "peak_rss_bytes" not in values, "nobody asked for it"


def test_blocks_of_a_timing_become_one() -> None:
    ones = np.ones(1, dtype=np.int64)
    told = [
        {"energy_mj": 2.0, "switches": 1.0, "peak_rss_bytes": 5.0},
        {"energy_mj": 4.0, "switches": 2.0},
    ]
    blocks = [Measurement("m", ones, ones, metrics=each) for each in told]
    joined = join(blocks, [0, 9], [ENERGY, SWITCHES]).metrics
    assert joined == {"energy_mj": 3.0, "switches": 3, "peak_rss_bytes": 5}
    assert isinstance(joined["switches"], int)


def test_a_file_of_an_older_version_lacks_what_came_later() -> None:
    data = older(timing())
    raw, median = KNOWN["raw_ms"], KNOWN["median_ms"]
    result = data["results"][0]
    assert value_of(result, raw, 2) is None
    assert value_of(result, replace(raw, since=0, default=7.0), 2) == 7
    del result["median_ms"]
    with pytest.raises(KeyError, match="median_ms"):
        value_of(result, median, 2)
    with pytest.raises(KeyError, match="raw_ms"):
        value_of(result, raw, 3)


def test_a_metric_that_nobody_describes_has_no_unit() -> None:
    data = timing()
    data["results"][0]["metrics"] = {"gpu_memory": 5e8}
    assert metrics_of(data)[-1] == Metric("gpu_memory", "", "")
    frame = TimingFile.of(data).results()
    assert frame["gpu_memory"][0] == 5e8
    assert frame["gpu_memory"][1:].isna().all()
