"""Reader of the device's state that is fast enough to run during a measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from esm_agent.device import sysfs
from esm_agent.device.cgroups import read_groups
from esm_protos.messages import DeviceState, GpuState

Run = Callable[[Sequence[str]], str]
"""Function that runs a command and returns its output; it raises OSError or SubprocessError."""

# nvml.h, NvmlClocksEventReasons. 0x1 means an idle GPU, which is not a limit.
_GPU_IDLE = 0x1
_GPU_REASONS = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


def run_command(command: Sequence[str]) -> str:
    """Return a command's standard output; kill it after 2 s."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    return done.stdout


class Telemetry:
    """Reader of the device's state; the available sensors are looked up once, at construction.

    :meth:`state` can be called from any thread. It takes well below a millisecond, or about 10 ms
    if it starts ``vcgencmd`` (Raspberry Pi).

    Args:
        root: Folder that holds ``proc`` and ``sys``; for tests.
        run: Function that runs ``vcgencmd``; if given, ``vcgencmd`` counts as installed.
        gpu: Number of the only NVIDIA GPU to read, in CUDA's order ``PCI_BUS_ID``; None for all.
    """

    def __init__(
        self, root: Path = Path("/"), run: Run | None = None, gpu: int | None = None
    ) -> None:
        cpus = sysfs.cpu_folders(root)
        self._clocks = _existing(cpu / "cpufreq/scaling_cur_freq" for cpu in cpus)
        self._governors = _existing(cpu / "cpufreq/scaling_governor" for cpu in cpus)
        throttle = [cpu / "thermal_throttle" for cpu in cpus]
        self._throttle_counts = _existing(
            folder / "package_throttle_count" for folder in throttle
        ) or _existing(folder / "core_throttle_count" for folder in throttle)
        self._temperatures = _temperature_files(root)
        self._pi_throttled = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
        self._has_pi_file = self._pi_throttled.exists()
        self._vcgencmd = run or (run_command if shutil.which("vcgencmd") else None)
        self._proc = root / "proc"
        self._groups = read_groups(root)
        self._gpus = _Gpus(gpu)

    def state(self, at_ns: int, quick: bool = False) -> DeviceState:
        """Return the current state of the device.

        Args:
            at_ns: Time to record in the state; see :class:`DeviceState`.
            quick: Whether to skip values that need a command.

        Returns:
            State whose ``own_s`` is the processor time of the calling process.
        """
        ticks = _words(sysfs.read(self._proc / "stat"))
        memory = sysfs.read(self._proc / "meminfo")
        pages = sysfs.read(self._proc / "vmstat")
        swap_total, swap_free = _field(memory, "SwapTotal:"), _field(memory, "SwapFree:")
        swapped_in, swapped_out = _field(pages, "pswpin"), _field(pages, "pswpout")
        available = _bytes(_field(memory, "MemAvailable:"))
        below_limit = self._groups.memory_available()
        if available is not None and below_limit is not None:
            available = min(available, below_limit)
        quota = self._groups.cpu_counters()
        return DeviceState(
            at_ns=at_ns,
            clock_mhz=tuple(khz / 1000 for khz in _numbers(self._clocks)),
            governors=tuple(filter(None, map(sysfs.read, self._governors))),
            temperature_c=self._temperature(),
            pi_throttled=self._pi_bits(quick),
            throttle_events=_sum(_numbers(self._throttle_counts)),
            load_1min=_first_float(sysfs.read(self._proc / "loadavg")),
            # user, nice, system, irq, softirq; without idle, iowait and steal (proc(5)).
            busy_s=_seconds(ticks, (0, 1, 2, 5, 6)),
            own_s=time.process_time(),
            stolen_s=_seconds(ticks, (7,)),
            memory_available_bytes=available,
            swap_used_bytes=(
                None if swap_total is None or swap_free is None else (swap_total - swap_free) * 1024
            ),
            swapped_pages=(
                None if swapped_in is None or swapped_out is None else swapped_in + swapped_out
            ),
            cpu_periods=None if quota is None else quota.periods,
            cpu_throttled_periods=None if quota is None else quota.throttled,
            cpu_throttled_s=None if quota is None else quota.throttled_s,
            gpus=self._gpus.states(),
        )

    def gpu_energy(self) -> tuple[str, Callable[[], float | None]] | None:
        """Return the name of the first GPU and the function that reads its energy counter, mJ.

        None without a GPU; the function returns None where the GPU has no counter.
        """
        return self._gpus.energy()

    def _temperature(self) -> float | None:
        celsius = [value / 1000 for value in _numbers(self._temperatures)]
        # A sensor that is switched off reports 0 K or an impossible value.
        return max((value for value in celsius if -60 < value < 200), default=None)

    def _pi_bits(self, quick: bool) -> int | None:
        if self._has_pi_file:
            return sysfs.number(self._pi_throttled, 16)
        if self._vcgencmd is None or quick:
            return None
        try:
            output = self._vcgencmd(("vcgencmd", "get_throttled"))
        except (OSError, subprocess.SubprocessError):
            return None
        return sysfs.parse(output.strip().removeprefix("throttled="), 16)


class _Gpus:
    """NVIDIA GPUs read through NVML; none without its Python binding and driver."""

    def __init__(self, only: int | None) -> None:
        self._nvml: Any = None
        self._handles: list[tuple[str, Any]] = []
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            for handle in self._chosen(only):
                name = pynvml.nvmlDeviceGetName(handle)
                self._handles.append((name if isinstance(name, str) else name.decode(), handle))
        except pynvml.NVMLError:
            return  # no driver or a lost GPU; the GPUs before it remain readable

    def _chosen(self, only: int | None) -> Iterator[Any]:
        """Yield the handles of the GPUs to read.

        NVML lists all GPUs. CUDA lists only those of ``CUDA_VISIBLE_DEVICES``, in its order. Its
        entries are NVML's numbers or prefixes of NVML's UUIDs.
        """
        nvml = self._nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        entry = None if only is None else str(only)
        if entry is not None and visible is not None:
            entries = [word.strip() for word in visible.split(",")]
            entry = entries[int(entry)] if int(entry) < len(entries) else ""
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if entry is None or entry == str(index):
                yield handle
            elif entry.startswith("GPU-"):
                uuid = nvml.nvmlDeviceGetUUID(handle)
                if (uuid if isinstance(uuid, str) else uuid.decode()).startswith(entry):
                    yield handle

    def energy(self) -> tuple[str, Callable[[], float | None]] | None:
        if not self._handles:
            return None
        name, handle = self._handles[0]
        return name, lambda: self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)

    def states(self) -> tuple[GpuState, ...]:
        return tuple(self._state(name, handle) for name, handle in self._handles)

    def _state(self, name: str, handle: Any) -> GpuState:
        nvml = self._nvml
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", handle)
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # the name before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return GpuState(
            name=name,
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            temperature_c=self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            throttle_reasons=_reason_names(int(reasons or 0)),
        )

    def _ask(self, function: str, *arguments: Any) -> float | None:
        """Return a value from NVML; None if the GPU, driver or binding lacks it."""
        try:
            return float(getattr(self._nvml, function)(*arguments))
        except (AttributeError, self._nvml.NVMLError):
            return None


def _reason_names(bits: int) -> tuple[str, ...]:
    single = (1 << place for place in range(bits.bit_length()))
    return tuple(
        _GPU_REASONS.get(bit, f"{bit:#x}") for bit in single if bits & bit and bit != _GPU_IDLE
    )


def _temperature_files(root: Path) -> list[str]:
    """Return the files of the processor's sensors, or else of all thermal zones."""
    cpu_zones, zones = sysfs.thermal_zones(root)
    inputs = [
        path for hwmon in sysfs.cpu_hwmons(root) for path in sorted(hwmon.glob("temp*_input"))
    ]
    return _existing([zone / "temp" for zone in cpu_zones] + inputs) or _existing(
        zone / "temp" for zone in zones
    )


def _existing(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths if path.exists()]


def _numbers(paths: Iterable[str]) -> list[int]:
    return [value for value in map(sysfs.number, paths) if value is not None]


def _sum(values: list[int]) -> int | None:
    return sum(values) if values else None


def _words(text: str | None) -> list[str]:
    """Return the words of the first line of /proc/stat, which is for all processors together."""
    name, *words = (text or "").partition("\n")[0].split() or [""]
    return words if name == "cpu" else []


def _seconds(words: list[str], columns: tuple[int, ...]) -> float | None:
    try:
        return sum(int(words[column]) for column in columns) / os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError):
        return None


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * 1024


def _field(text: str | None, name: str) -> int | None:
    """Return the number after ``name`` at the start of a line."""
    _, separator, rest = f"\n{text or ''}".partition(f"\n{name} ")
    words = rest.split(maxsplit=1) if separator else []
    return sysfs.parse(words[0]) if words else None


def _first_float(text: str | None) -> float | None:
    try:
        return float((text or "").split()[0])
    except (IndexError, ValueError):
        return None
