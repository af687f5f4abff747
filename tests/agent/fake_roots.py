"""Trees of /proc and /sys as devices have them, for tests."""

from collections.abc import Mapping
from pathlib import Path

CPU = "sys/devices/system/cpu"

STAT = """cpu  100 20 30 4000 500 6 7 80 9 0
cpu0 100 20 30 4000 500 6 7 80 9 0
intr 1
"""
MEMINFO = """MemTotal:        3884444 kB
MemFree:         1000000 kB
MemAvailable:    2000000 kB
SwapTotal:        102396 kB
SwapFree:         102296 kB
"""
VMSTAT = """nr_free_pages 250000
pswpin 12
pswpout 30
pswpinx 99
"""
PROC = {
    "proc/stat": STAT,
    "proc/meminfo": MEMINFO,
    "proc/vmstat": VMSTAT,
    "proc/loadavg": "0.52 0.40 0.30 1/200 1234\n",
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def grouped_v2(root: Path, group: str = "/system.slice/agent.service") -> Path:
    """A service below a slice: the slice limits memory, the service processor time."""
    top = "sys/fs/cgroup"
    return tree(
        root,
        {
            **PROC,
            "proc/self/cgroup": f"0::{group}\n",
            "proc/self/mountinfo": "31 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n",
            f"{top}/cpu.stat": "usage_usec 1\n",
            f"{top}/system.slice/cpu.max": "max 100000\n",
            f"{top}/system.slice/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
            f"{top}/system.slice/memory.max": "500000000\n",
            f"{top}/system.slice/memory.current": "300000000\n",
            f"{top}/system.slice/memory.stat": "anon 1\ninactive_file 50000000\n",
            f"{top}/system.slice/agent.service/cpu.max": "150000 100000\n",
            f"{top}/system.slice/agent.service/cpu.stat": "usage_usec 9\nnr_periods 176\n"
            "nr_throttled 163\nthrottled_usec 14500000\n",
            f"{top}/system.slice/agent.service/memory.max": "max\n",
            f"{top}/system.slice/agent.service/memory.current": "200000000\n",
            f"{top}/system.slice/agent.service/memory.events": "low 0\noom 4\noom_kill 3\n",
        },
    )


def grouped_v1(root: Path) -> Path:
    """A container that sees its own groups only, by the host's paths."""
    cpu, memory = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
    return tree(
        root,
        {
            **PROC,
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "proc/self/mountinfo": "40 30 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup "
            "cgroup rw,cpu,cpuacct\n"
            "41 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
            "42 30 0:32 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n",
            f"{cpu}/cpu.cfs_quota_us": "10000\n",
            f"{cpu}/cpu.cfs_period_us": "100000\n",
            f"{cpu}/cpu.stat": "nr_periods 20\nnr_throttled 18\nthrottled_time 1500000000\n",
            f"{memory}/memory.limit_in_bytes": "400000000\n",
            f"{memory}/memory.usage_in_bytes": "390000000\n",
            f"{memory}/memory.stat": "cache 1\ninactive_file 1\ntotal_inactive_file 40000000\n",
            f"{memory}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
    )


def pi4(root: Path) -> Path:
    """Hot once, and short of current now."""
    files = {
        **PROC,
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        f"{CPU}/online": "0-3\n",
        f"{CPU}/isolated": "\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "71081\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }
    for n in range(4):
        files[f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq"] = f"{600000 + n}\n"
        files[f"{CPU}/cpu{n}/cpufreq/scaling_governor"] = "ondemand\n"
        files[f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq"] = "1500000\n"
        files[f"{CPU}/cpu{n}/topology/thread_siblings_list"] = f"{n}\n"
    return tree(root, files)


def laptop(root: Path) -> Path:
    """x86: two cores of two threads, turbo on, throttled now and then."""
    files = {
        **PROC,
        f"{CPU}/online": "0-3\n",
        f"{CPU}/intel_pstate/no_turbo": "0\n",
        "sys/class/thermal/thermal_zone0/type": "acpitz\n",
        "sys/class/thermal/thermal_zone0/temp": "99000\n",
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone1/temp": "64000\n",
        "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive\n",
        "sys/class/thermal/thermal_zone1/trip_point_0_temp": "0\n",
        "sys/class/hwmon/hwmon3/name": "coretemp\n",
        "sys/class/hwmon/hwmon3/temp1_input": "66000\n",
        "sys/class/hwmon/hwmon3/temp1_crit": "100000\n",
        "sys/class/hwmon/hwmon4/name": "nvme\n",
        "sys/class/hwmon/hwmon4/temp1_input": "90000\n",
    }
    for n in range(4):
        files[f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq"] = "3400000\n"
        files[f"{CPU}/cpu{n}/cpufreq/scaling_governor"] = "powersave\n"
        files[f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq"] = "4200000\n"
        files[f"{CPU}/cpu{n}/thermal_throttle/package_throttle_count"] = "7\n"
        files[f"{CPU}/cpu{n}/thermal_throttle/core_throttle_count"] = "1000\n"
        files[f"{CPU}/cpu{n}/topology/thread_siblings_list"] = f"{n % 2},{n % 2 + 2}\n"
    return tree(root, files)
