"""How a device is set up, from trees of /proc and /sys."""

from pathlib import Path

import pytest

from esm_agent.device.machine import Turbo, read_machine
from tests.agent.fake_roots import CPU, laptop, pi4, tree

ALL = (0, 1, 2, 3)


def test_a_raspberry_pi_slows_down_before_its_trip_point(tmp_path: Path) -> None:
    machine = read_machine(pi4(tmp_path), ALL)
    assert machine.throttles_at_c == 80.0
    assert machine.online == ALL
    assert machine.siblings == ()
    assert machine.isolated == ()
    assert machine.turbo is None
    assert machine.quota is None
    assert machine.max_mhz == dict.fromkeys(ALL, 1500.0)
    assert machine.clock_step_ns > 0


def test_an_x86_laptop(tmp_path: Path) -> None:
    machine = read_machine(laptop(tmp_path), ALL)
    assert machine.throttles_at_c == 100.0, "a trip point of 0 is not set"
    assert machine.siblings == ((0, 2), (1, 3))
    assert machine.turbo == Turbo(
        True, "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
    )


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False)])
def test_boost_is_turbo_by_another_name(tmp_path: Path, value: str, on: bool) -> None:
    turbo = read_machine(tree(tmp_path, {f"{CPU}/cpufreq/boost": value}), ALL).turbo
    assert turbo is not None
    assert turbo.on is on
    assert turbo.fix == "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/c\n",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "garbage\n", "sys/fs/cgroup/cpu.max": "garbage"}, None),
    ],
)
def test_quotas_of_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert read_machine(tree(tmp_path, files), ALL).quota == quota


def test_isolated_processors(tmp_path: Path) -> None:
    assert read_machine(tree(tmp_path, {f"{CPU}/isolated": "2-3,7\n"}), ALL).isolated == (2, 3, 7)


def test_garbage_is_missing(tmp_path: Path) -> None:
    laptop(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_text("garbage")
    machine = read_machine(tmp_path, ALL)
    assert machine.online == ALL
    assert machine.siblings == machine.isolated == ()
    assert machine.max_mhz == {}
    assert machine.turbo is machine.throttles_at_c is None


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.usable
    assert machine.memory_bytes > 0
