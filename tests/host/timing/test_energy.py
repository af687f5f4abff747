"""Energy of models, from the option to the table and the files."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from onnx import TensorProto, helper
from typer.testing import CliRunner

import esm_host
from esm_host.cli.app import app
from esm_host.report.timing import timing_page
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.limits import check_energy
from esm_protos.messages import (
    Block,
    BlockResult,
    Energy,
    EnergySensor,
    Limits,
    MeasureSpec,
)

RAPL = EnergySensor("RAPL package-0", "package", 6e-5, 0.001)
BROKEN = EnergySensor("RAPL", "package", problem="only root may read x", fix="sudo chmod a+r x")
MISSING = EnergySensor("NVML", "gpu", problem="not found")
LATENCY_MS = 2.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    (path := tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return path


class Unresolved(FakeProfiler):
    """Device whose windows are too short."""

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        result = super().answer(block, on_progress)
        energy = Energy(RAPL.name, RAPL.covers, problem="windows are too short", needs_s=59.2)
        measured = tuple(replace(m, energy=energy, metrics={}) for m in result.measurements)
        return replace(result, measurements=measured)


def device(
    monkeypatch: pytest.MonkeyPatch,
    sensors: Sequence[EnergySensor],
    kind: type[FakeProfiler] = FakeProfiler,
) -> FakeProfiler:
    """Every device is this one."""
    fake = kind(lambda model: LATENCY_MS, noise=0.01, references=(), energy_sensors=sensors)
    monkeypatch.setattr(devices, "connect", lambda name: fake)
    return fake


def timed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["time", *map(str, arguments), "--runs", "40"])


def test_energy_is_in_the_table_and_in_every_file(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    fake = device(monkeypatch, [RAPL, MISSING])
    out, table = tmp_path / "out.json", tmp_path / "out.csv"
    done = timed(model, "--energy", "--energy-time", 50, "--json", out, "--csv", table)
    assert done.exit_code == 0, done.output
    assert fake.blocks[-1].energy_s == 50
    heading, row, *under = done.stdout.splitlines()
    assert heading.split()[-4:] == ["energy_mj", "per_j", "watts", "verdict"]
    assert row.split()[-4:] == ["10.000", "100.0", "8.00", "stable"]
    assert "  energy by RAPL package-0, covers the package" in under

    (result,) = json.loads(out.read_text())["results"]
    assert result["metrics"] == {
        "energy_mj": 10.0,
        "energy_gross_mj": 16.0,
        "energy_ci95_percent": 0.0,
        "inferences_per_j": 100.0,
        "power_w": 8.0,
    }
    assert result["energy"] == {
        "verdict": "stable",
        "source": "RAPL package-0",
        "covers": "package",
        "gross_mj": [16.0] * 8,
        "idle_mj": [6.0] * 8,
        "problem": "",
        "needs_s": 0.0,
    }
    (line,) = csv.DictReader(table.read_text().splitlines())
    assert line["energy_mj"] == "10.0"
    timing = esm_host.load_timing(out)
    assert timing.results()["inferences_per_j"].tolist() == [100.0]
    told = {"energy_source": "RAPL package-0", "energy_covers": "package", "energy_problem": ""}
    assert told.items() <= line.items()
    assert told.items() <= timing.results().iloc[0].to_dict().items()
    tables = {part.id: part for part in timing_page(timing).sections[0].parts}
    titles = {*tables["all-results"].columns, *tables["more"].columns}
    assert {"#power (W)", "#energy (mJ)", "#gross energy (mJ)", "#± of the energy (%)"} <= titles
    assert [cell.text for cell in tables["energy"].rows[0]][1:] == [
        *("RAPL package-0", "package", "stable", "")
    ]
    assert "energy_gross_mj" in timed(model, "--energy", "--wide").stdout


def test_energy_is_measured_only_if_asked(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    fake = device(monkeypatch, [RAPL])
    done = timed(model)
    assert (done.exit_code, fake.blocks[-1].energy_s) == (0, 0)
    assert "energy" not in done.stdout
    timing = esm_host.time(model, runs=40)
    assert timing.results()["energy_source"].tolist() == [None]
    assert "energy" not in {part.id for part in timing_page(timing).sections[0].parts}


@pytest.mark.parametrize(
    "options", [("--energy-time", 40), ("--profile-runs", 20), ("--energy-time", 9)]
)
def test_an_option_without_its_measurement_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Path, options: tuple[str, int]
) -> None:
    fake = device(monkeypatch, [RAPL])
    done = timed(model, *options)
    assert done.exit_code == 2
    assert f"{options[0]} {options[1]} has no effect without --" in done.stderr
    with pytest.raises(esm_host.UsageError, match="energy_time_s 40 has no effect without energy"):
        esm_host.time(model, energy_time_s=40)
    assert not fake.blocks


def test_an_unresolved_energy_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    device(monkeypatch, [RAPL], Unresolved)
    done = timed(model, "--energy", "--json", tmp_path / "out.json")
    timing = esm_host.load_timing(tmp_path / "out.json")
    assert timing.results()["energy_problem"].tolist() == ["windows are too short"]
    tables = {part.id: part for part in timing_page(timing).sections[0].parts}
    assert [cell.text for cell in tables["energy"].rows[0]][1:] == [
        *("RAPL package-0", "package", "unresolved"),
        "windows are too short: give --energy-time 60",
    ]
    assert done.exit_code == 3
    wanted = "energy by RAPL package-0 unresolved: windows are too short: give --energy-time 60"
    assert wanted in done.stdout


@pytest.mark.parametrize(
    ("sensors", "said"),
    [
        ([BROKEN, MISSING], "RAPL: only root may read x: sudo chmod a+r x; NVML: not found"),
        (
            [MISSING],
            "NVML: not found; start the agent with --energy FILE.py:CLASS for a meter of your own",
        ),
        ([], "the device's agent is too old for it, upgrade esm-profiler there"),
    ],
)
def test_a_device_without_a_sensor_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch, model: Path, sensors: list[EnergySensor], said: str
) -> None:
    fake = device(monkeypatch, sensors)
    done = timed(model, "--energy", "--device", "pi5")
    assert done.exit_code == 3
    assert fake.blocks[-1].energy_s == 0
    assert f"warning: pi5: no energy: {said}" in done.stderr.splitlines()
    assert "2.0" in done.stdout, "the latency is kept"


def test_energy_must_fit_into_a_block() -> None:
    limits, spec = Limits(1, 2, max_block_s=120.0), MeasureSpec(max_block_s=20.0)
    check_energy(limits, spec, 50.0, 2)
    check_energy(limits, replace(spec, max_block_s=200.0), 0.0, 2)
    with pytest.raises(esm_host.UsageError, match=r"energy_time_s 51: 2 models then take 122 s"):
        check_energy(limits, spec, 51.0, 2)


def test_only_the_first_block_measures_energy(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    fake = device(monkeypatch, [RAPL])
    timing = esm_host.time(model, spread=0.5, runs=40, energy=True, energy_time_s=45)
    assert [block.energy_s for block in fake.blocks] == [45, *[0] * (len(fake.blocks) - 1)]
    assert len(fake.blocks) > 1
    assert timing.results()["energy_mj"].tolist() == [10.0]
