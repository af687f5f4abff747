"""Every energy source on fake trees: units, coverage, and why one does not work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from esm_agent.device.telemetry import Telemetry
from esm_agent.energy.battery import battery
from esm_agent.energy.find import find_sources, load_meters, measure_tick
from esm_agent.energy.hwmon import Hwmon
from esm_agent.energy.nvml import Nvml
from esm_agent.energy.pmic import Pmic
from esm_agent.energy.rapl import Rapl
from esm_agent.energy.source import EnergySource, PowerMeter, SensorError, sampling
from esm_protos.messages import Severity
from esm_protos.plugins import PluginError
from tests.agent.fake_roots import tree

RAPL = "sys/class/powercap/intel-rapl:0"
HWMON = "sys/class/hwmon/hwmon3"
BATTERY = "sys/class/power_supply/BAT0"
PMIC = """   3V7_WL_SW_A current(0)=0.10000000A
   VDD_CORE_A current(7)=2.00000000A
   3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.90000000V
   EXT5V_V volt(24)=5.10000000V
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rapl(root: Path, **packages: int) -> Path:
    for number, (name, energy_uj) in enumerate(packages.items()):
        folder = f"sys/class/powercap/intel-rapl:{number}"
        values = {"name": name.replace("_", "-"), "energy_uj": str(energy_uj)}
        values["max_energy_range_uj"] = "999999"
        tree(root, {f"{folder}/{file}": text + "\n" for file, text in values.items()})
    return root


def test_rapl_counts_packages_once(tmp_path: Path) -> None:
    rapl(tmp_path, package_0=100, package_1=200, psys=300)
    for inside, name in (
        ("intel-rapl:0/intel-rapl:0:0", "core"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        folder = f"sys/class/powercap/{inside}"
        tree(tmp_path, {f"{folder}/name": name, f"{folder}/energy_uj": "5"})
    source = Rapl(tmp_path)
    assert (source.name, source.covers) == ("RAPL package-0, package-1", "package")
    before = source.joules()
    rapl(tmp_path, package_0=500_100, package_1=250_200, psys=900)
    assert source.joules() - before == pytest.approx(0.75)


def test_rapl_wraps_around(tmp_path: Path) -> None:
    source = Rapl(rapl(tmp_path, package_0=999_990))
    before = source.joules()
    rapl(tmp_path, package_0=9)
    assert source.joules() - before == pytest.approx(19e-6)
    rapl(tmp_path, package_0=109)
    assert source.joules() - before == pytest.approx(119e-6)


def test_unreadable_rapl_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    rapl(tmp_path, package_0=1)
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(SensorError, match=r"only root may read .*energy_uj") as caught:
        Rapl(tmp_path)
    assert caught.value.fix == f"sudo chmod a+r {tmp_path / RAPL / 'energy_uj'}"


def jetson(root: Path, **labels: tuple[int, int]) -> Path:
    files = {f"{HWMON}/name": "ina3221\n", f"{HWMON}/update_interval": "200\n"}
    for number, (label, (millivolts, milliamperes)) in enumerate(labels.items(), start=1):
        files[f"{HWMON}/in{number}_label"] = f"{label}\n"
        files[f"{HWMON}/in{number}_input"] = f"{millivolts}\n"
        files[f"{HWMON}/curr{number}_input"] = f"{milliamperes}\n"
    # The sum of the channels, as newer kernels have it.
    files |= {f"{HWMON}/in4_input": "1000\n", f"{HWMON}/curr4_input": "9000\n"}
    return tree(root, files)


def test_a_jetson_is_measured_at_its_input(tmp_path: Path) -> None:
    jetson(tmp_path, VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 800), VDD_SOC=(5000, 400))
    source = Hwmon(tmp_path)
    assert (source.name, source.covers, source.tick_s) == ("INA3221 VDD_IN", "board", 0.2)
    assert source.watts() == pytest.approx(10.0)


def test_rails_without_an_input_are_summed(tmp_path: Path) -> None:
    source = Hwmon(jetson(tmp_path, VDD_GPU_SOC=(5000, 1000), VDD_CPU_CV=(5000, 400)))
    assert source.watts() == pytest.approx(7.0)
    (tmp_path / HWMON / "curr2_input").unlink()
    with pytest.raises(SensorError, match="has no value any more"):
        source.watts()


def test_an_ina2xx_has_its_power_in_one_file(tmp_path: Path) -> None:
    files = {"name": "ina226", "in1_input": "1", "curr1_input": "1", "power1_input": "2500000"}
    source = Hwmon(tree(tmp_path, {f"{HWMON}/{name}": text for name, text in files.items()}))
    assert source.watts() == 2.5
    assert source.name == "INA226"


def test_another_monitor_is_no_meter(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="not found"):
        Hwmon(tree(tmp_path, {f"{HWMON}/name": "coretemp"}))


def test_nvml_counts_millijoules() -> None:
    values = iter([1000.0, 1000.0, 3500.0])
    source = Nvml(("H100", lambda: next(values)))
    before = source.joules()
    assert source.joules() - before == 2.5
    assert (source.name, source.covers) == ("NVML H100", "gpu")
    with pytest.raises(SensorError, match="GTX has no energy counter"):
        Nvml(("GTX", lambda: None))
    with pytest.raises(SensorError, match="not found"):
        Nvml(None)


def test_the_pmic_sums_rails_with_both_values(tmp_path: Path) -> None:
    source = Pmic(lambda command: PMIC)
    assert source.watts() == pytest.approx(0.1 * 3.7 + 2 * 0.9)
    file = tmp_path / "pmic.json"
    file.write_text(json.dumps({"slope": 2.0, "offset_w": 0.5}))
    calibrated = Pmic(lambda command: PMIC, file)
    assert calibrated.watts() == pytest.approx(2 * (0.1 * 3.7 + 2 * 0.9) + 0.5)
    assert calibrated.name == "PMIC, calibrated"


@pytest.mark.parametrize("text", ["{", "[]", '{"slope": 1}', '{"slope": "x", "offset_w": 0}'])
def test_an_invalid_calibration_is_named(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "pmic.json").write_text(text)
    with pytest.raises(SensorError, match=r"pmic\.json is no calibration"):
        Pmic(lambda command: PMIC, file)


def test_an_older_pi_has_no_pmic() -> None:
    with pytest.raises(SensorError, match="not found"):
        Pmic(lambda command: "Command not registered")


def charged(root: Path, status: str = "Discharging", **values: int) -> Path:
    files = {"type": "Battery", "status": status, **{k: str(v) for k, v in values.items()}}
    return tree(root, {f"{BATTERY}/{name}": f"{text}\n" for name, text in files.items()})


def test_a_battery_tells_its_power(tmp_path: Path) -> None:
    source = battery(charged(tmp_path, power_now=12_500_000, energy_now=5))
    assert isinstance(source, PowerMeter)
    assert (source.watts(), source.covers, source.name) == (12.5, "battery", "battery BAT0")


def test_a_battery_tells_its_current(tmp_path: Path) -> None:
    source = battery(charged(tmp_path, current_now=-1_500_000, voltage_now=12_000_000))
    assert isinstance(source, PowerMeter)
    assert source.watts() == pytest.approx(18.0)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"energy_now": 50_000_000}, {"energy_now": 49_990_000}),
        (
            {"charge_now": 5_000_000, "voltage_min_design": 10_000_000, "voltage_now": 12_000_000},
            {"charge_now": 4_999_000, "voltage_min_design": 10_000_000, "voltage_now": 11_000_000},
        ),
    ],
)
def test_a_battery_counts_down(tmp_path: Path, first: dict[str, int], then: dict[str, int]) -> None:
    source = battery(charged(tmp_path, **first))
    before = source.joules()
    charged(tmp_path, **then)
    assert source.joules() - before == pytest.approx(36.0), "10 mWh"


def test_a_battery_is_measured_only_while_it_discharges(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="status Charging") as caught:
        battery(charged(tmp_path, status="Charging", power_now=1))
    assert "unplug the charger" in caught.value.fix
    source = battery(charged(tmp_path, power_now=1))
    charged(tmp_path, status="Full", power_now=1)
    with pytest.raises(SensorError, match="status Full"):
        source.start()


class Steps(PowerMeter):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.power = 2.0

    def watts(self) -> float:
        return self.power


def test_power_is_integrated_over_time() -> None:
    clock = Clock()
    meter = Steps(clock)
    meter.start()
    clock.now = 1.5
    assert meter.joules() == pytest.approx(3.0), "the last value holds"
    meter.power = 10.0
    clock.now = 2.0
    meter.sample()
    clock.now = 2.25
    assert meter.joules() == pytest.approx(4.0 + 2.5)


def test_a_failed_sample_is_reported() -> None:
    class Lost(PowerMeter):
        tick_s = 0.001
        calls = 0

        def watts(self) -> float:
            self.calls += 1
            if self.calls > 2:
                raise OSError("lost")
            return 1.0

    def forever(check: Callable[[], None]) -> None:
        while True:
            check()

    with sampling(Lost()) as check, pytest.raises(OSError, match="lost"):
        forever(check)


def test_a_tick_is_measured() -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    for tick_s in (0.02, 1.0):
        measured = measure_tick(lambda tick_s=tick_s: clock.now // tick_s, clock, sleep)  # type: ignore[misc]
        assert measured == pytest.approx(tick_s, abs=0.002)
    began = clock.now
    assert measure_tick(lambda: float(clock.now > began + 3), clock, sleep) == 4.0, "rarely"
    with pytest.raises(SensorError, match="gave no new value in 4 s: check the sensor"):
        measure_tick(lambda: 1.0, clock, sleep)


def test_sources_are_found_with_reasons(tmp_path: Path) -> None:
    rapl(tmp_path, package_0=1)
    charged(tmp_path, status="Charging")
    found = find_sources(Telemetry(tmp_path), root=tmp_path)
    assert [source.name for source in found.working] == ["RAPL package-0"]
    problems = {sensor.name: sensor.problem for sensor in found.sensors}
    assert problems == {
        "RAPL package-0": "",
        "INA2xx and INA3221": "not found",
        "PMIC": "not found",
        "NVML": "not found",
        "battery": "battery BAT0 has the status Charging",
    }
    assert found.finding.severity is Severity.OK
    assert "RAPL package-0: covers the package" in found.finding.text


def test_the_doctor_names_sensors_that_exist(tmp_path: Path) -> None:
    found = find_sources(Telemetry(tmp_path), root=charged(tmp_path, status="Full")).finding
    assert (found.severity, found.fix) == (
        Severity.UNKNOWN,
        "unplug the charger, restart the agent",
    )
    none = find_sources(Telemetry(tmp_path), root=tmp_path / "none").finding
    assert none.severity is Severity.OK
    assert "RAPL, NVML, battery" in none.text


def source_of(covers: str) -> EnergySource:
    class Counter(EnergySource):
        tick_s = 1.0

        def joules(self) -> float:
            return 0.0

    made = Counter()
    made.covers = covers
    return made


@pytest.mark.parametrize(
    ("working", "on_gpu", "chosen"),
    [
        (["package", "board", "gpu"], False, "board"),
        (["package", "battery", "gpu"], False, "package"),
        (["gpu"], False, None),
        (["package", "board", "gpu"], True, "gpu"),
        (["package", "board"], True, "board"),
        (["package"], True, None),
        (["package", "gpu", "my plug"], True, "my plug"),
        (["battery", "board", "my plug"], False, "my plug"),
    ],
)
def test_the_source_covers_what_runs(
    tmp_path: Path, working: list[str], on_gpu: bool, chosen: str | None
) -> None:
    own = [source_of(covers) for covers in working]
    found = find_sources(Telemetry(tmp_path), own, tmp_path).choose(on_gpu)
    assert (found.covers if found else None) == chosen


def written(tmp_path: Path, body: str, base: str = "EnergySource") -> str:
    (file := tmp_path / "plug.py").write_text(
        f"from esm_agent.energy.source import EnergySource, PowerMeter\n\n"
        f"class Plug({base}):\n    {body}\n"
    )
    return f"{file}:Plug"


JOULES = "def joules(self): return 0.0\n"


def test_a_meter_of_ones_own(tmp_path: Path) -> None:
    (meter,), broken = load_meters([written(tmp_path, "def joules(self): return 5.0")])
    assert not broken
    assert (meter.name, meter.covers, meter.joules()) == ("Plug", "meter", 5.0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "must set joules"),
        ("def joules(self): return 1 / 0", r"ZeroDivisionError: .* \(line 4 of"),
        ("def joules(self): return None", "TypeError"),
        (
            "def joules(self): return float('nan')",
            r"joules\(\) returned nan: .*line 4 of .*plug\.py",
        ),
        (f"{JOULES}    tick_s = -1", "tick_s is -1: give 0 to 3600 seconds"),
        (f"{JOULES}    tick_s = float('inf')", "tick_s is inf"),
        (f"{JOULES}    tick_s = 0\n    sampled = True", "tick_s is 0: .*more than 0 seconds"),
        (f"{JOULES}    tick_s = 'fast'", "tick_s is 'fast'"),
        (f"{JOULES}    resolution_j = -0.1", r"resolution_j is -0\.1"),
        (f"{JOULES}    resolution_j = float('nan')", "resolution_j is nan"),
        (f"{JOULES}    name = 7", "name is 7: give a text"),
        (f"{JOULES}    covers = ''", "covers is '': give a text"),
        ("def __init__(self, port): ...\n    def joules(self): return 0.0", "TypeError: .*port"),
    ],
)
def test_a_meter_that_does_not_work_is_named(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(PluginError, match=rf"--energy .*plug\.py:Plug: .*{said}"):
        load_meters([written(tmp_path, body)])


OFF = """def watts(self):
        raise OSError('the plug is off')"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (OFF, "OSError: the plug is off (line 5 of {file})"),
        (
            "def watts(self): return '6.5'",
            "returned '6.5': return a finite number (line 4 of {file})",
        ),
        ("def watts(self): return float('nan')", "watts() returned nan: return a finite number"),
    ],
)
def test_a_meter_that_does_not_start_is_a_sensor_with_a_problem(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str, said: str
) -> None:
    name = written(tmp_path, body, "PowerMeter")
    working, (sensor,) = load_meters([name])
    assert not working
    assert said.format(file=tmp_path / "plug.py") in sensor.problem
    assert f"--energy {name}: {sensor.problem}: check the meter, restart the agent" in caplog.text
    found = find_sources(Telemetry(tmp_path), root=tmp_path, broken_meters=[sensor])
    assert found.sensors[0] == sensor
    assert found.choose(on_gpu=False) is None
