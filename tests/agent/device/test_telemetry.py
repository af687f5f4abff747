"""What a device says of itself, from trees of /proc and /sys as devices have them."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from esm_agent.device.telemetry import Telemetry
from esm_protos.messages import DeviceState, GpuState
from tests.agent.fake_roots import CPU, PROC, laptop, pi4, tree


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    state = Telemetry(pi4(tmp_path)).state(at_ns=-5, quick=True)
    assert state.at_ns == -5
    assert state.clock_mhz == (600.0, 600.001, 600.002, 600.003)
    assert state.governors == ("ondemand",) * 4
    assert state.temperature_c == 71.081
    assert state.pi_throttled == 0x50005, "a file costs nothing, so quick asks it too"
    assert state.throttle_events is None
    assert state.load_1min == 0.52
    assert state.busy_s == pytest.approx((100 + 20 + 30 + 6 + 7) / 100)
    assert state.stolen_s == pytest.approx(0.8)
    assert state.memory_available_bytes == 2_000_000 * 1024
    assert state.swap_used_bytes == 100 * 1024
    assert state.swapped_pages == 42


def test_an_x86_laptop(tmp_path: Path) -> None:
    state = Telemetry(laptop(tmp_path)).state(0)
    assert state.temperature_c == 66.0, "the processor's hottest sensor, not the disk's"
    assert state.throttle_events == 28
    assert state.governors == ("powersave",) * 4
    assert state.pi_throttled is None


def test_without_package_counts_the_cores_count(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n"})
    assert Telemetry(root).state(0).throttle_events == 3


def test_cores_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": f"{n}000\n" for n in range(12)}
    assert Telemetry(tree(tmp_path, files)).state(0).clock_mhz == tuple(range(12))


def test_without_a_cpu_sensor_the_hottest_zone(tmp_path: Path) -> None:
    files = {"sys/class/thermal/thermal_zone0/type": "acpitz"}
    files |= {f"sys/class/thermal/thermal_zone{n}/temp": f"{n + 40}000" for n in range(3)}
    assert Telemetry(tree(tmp_path, files)).state(0).temperature_c == 42.0


def test_a_gpus_sensor_is_not_the_processors(tmp_path: Path) -> None:
    files = {
        "sys/class/thermal/thermal_zone0/type": "gpu-soc-thermal",
        "sys/class/thermal/thermal_zone0/temp": "90000",
        "sys/class/thermal/thermal_zone1/type": "CPU-therm",
        "sys/class/thermal/thermal_zone1/temp": "50000",
    }
    assert Telemetry(tree(tmp_path, files)).state(0).temperature_c == 50.0


def test_a_virtual_machine_tells_neither_clocks_nor_temperatures(tmp_path: Path) -> None:
    state = Telemetry(tree(tmp_path, PROC)).state(0)
    assert state.clock_mhz == state.governors == state.gpus == ()
    assert state.temperature_c is state.pi_throttled is state.throttle_events is None
    assert state.busy_s is not None


def test_a_system_without_proc_tells_only_of_this_process(tmp_path: Path) -> None:
    state = Telemetry(tmp_path).state(0)
    assert state == DeviceState(at_ns=0, own_s=state.own_s)
    assert 0 < state.own_s <= time.process_time()


@pytest.mark.parametrize("garbage", ["", "garbage\n", "cpu a b c d e f g h\n", "\xff\n", "cpu 1\n"])
def test_garbage_is_missing(tmp_path: Path, garbage: str) -> None:
    laptop(tmp_path)
    pi4(tmp_path)
    telemetry = Telemetry(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "scaling_governor":
            path.write_text(garbage)
    state = telemetry.state(0)
    assert state == DeviceState(at_ns=0, governors=("ondemand",) * 4, own_s=state.own_s)


def test_files_that_vanish_are_missing(tmp_path: Path) -> None:
    telemetry = Telemetry(pi4(tmp_path))
    for path in list(tmp_path.rglob("*")):
        if path.is_file():
            path.unlink()
    state = telemetry.state(0)
    assert state == DeviceState(at_ns=0, own_s=state.own_s)


def test_sensors_that_are_off_do_not_count(tmp_path: Path) -> None:
    pi4(tmp_path)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("-274000\n")
    assert Telemetry(tmp_path).state(0).temperature_c is None


def test_vcgencmd_is_asked_only_where_there_is_time(tmp_path: Path) -> None:
    asked = []

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return "throttled=0x50000\n"

    telemetry = Telemetry(tmp_path, run)
    assert telemetry.state(0, quick=True).pi_throttled is None
    assert asked == []
    assert telemetry.state(0).pi_throttled == 0x50000
    assert asked == [("vcgencmd", "get_throttled")]


@pytest.mark.parametrize("error", [OSError(), subprocess.TimeoutExpired("vcgencmd", 2)])
def test_a_vcgencmd_that_fails_is_missing(tmp_path: Path, error: Exception) -> None:
    def run(command: Sequence[str]) -> str:
        raise error

    assert Telemetry(tmp_path, run).state(0).pi_throttled is None


def test_is_quick_and_says_what_this_machine_is() -> None:
    telemetry = Telemetry()
    took = []
    for _ in range(20):
        start = time.perf_counter()
        telemetry.state(0, quick=True)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.005


# GPUs


class NVMLError(Exception):
    pass


def fake_nvml(reasons: int = 0, **functions: object) -> SimpleNamespace:
    """Binding of a driver with one GPU; a function given as None fails."""

    def clock(handle: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    known = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: "handle",
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100",
        "nvmlDeviceGetClockInfo": clock,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        "nvmlDeviceGetPowerUsage": lambda handle: 123_400,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: reasons,
    }

    def failing(*arguments: object) -> None:
        raise NVMLError

    known |= {name: function or failing for name, function in functions.items()}
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    return SimpleNamespace(NVMLError=NVMLError, **constants, **known)


def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvml: object) -> tuple[GpuState, ...]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return Telemetry(tmp_path).state(0).gpus


def test_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (gpu,) = gpus(monkeypatch, tmp_path, fake_nvml(reasons=0x1 | 0x4 | 0x20 | 0x800))
    reasons = ("sw_power_cap", "sw_thermal_slowdown", "0x800")
    assert gpu == GpuState("NVIDIA H100", 1980.0, 2619.0, 41.0, 123.4, reasons)


def test_an_idle_gpu_is_not_held_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (gpu,) = gpus(monkeypatch, tmp_path, fake_nvml(reasons=0x1))
    assert gpu.throttle_reasons == ()


def test_what_a_gpu_does_not_tell_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvml = fake_nvml(nvmlDeviceGetPowerUsage=None, nvmlDeviceGetTemperature=None)
    del nvml.nvmlDeviceGetCurrentClocksEventReasons
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40
    (gpu,) = gpus(monkeypatch, tmp_path, nvml)
    assert gpu == GpuState("NVIDIA H100", 1980.0, 2619.0, throttle_reasons=("hw_thermal_slowdown",))


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
def test_a_driver_that_does_not_answer_means_no_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    assert gpus(monkeypatch, tmp_path, fake_nvml(**{broken: None})) == ()


@pytest.mark.parametrize(
    ("visible", "gpu", "found"),
    [
        (None, None, ["0", "1", "2"]),
        (None, 1, ["1"]),
        (None, 3, []),
        ("2,0", 0, ["2"]),
        ("2, 0", 1, ["0"]),
        ("2,0", 2, []),
        ("2,0", None, ["0", "1", "2"]),
        ("GPU-1-", 0, ["1"]),
        ("GPU-9", 0, []),
        ("MIG-1", 0, []),
        ("", 0, []),
    ],
)
def test_the_gpu_that_cuda_means_is_watched(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str | None,
    gpu: int | None,
    found: list[str],
) -> None:
    nvml = fake_nvml(
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=str,
        nvmlDeviceGetName=lambda handle: handle,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}-abc",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in Telemetry(tmp_path, gpu=gpu).state(0).gpus] == found
