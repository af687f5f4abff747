"""Cost of an idle agent on a device: disk, memory and start-up time.

    python -m benchmarks.footprint [--json FILE]

Builds the wheel, installs it with the extra ``agent`` into a fresh environment, and looks at what
lies and runs there. Needs Linux, and the package index (2 minutes).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from esm_agent.serving.slot import REST_S

ROOT = Path(__file__).parents[1]
STARTS = 7
SETTLE_S = 2.0
INSTALLERS = ("pip", "setuptools", "wheel")
NOT_SHIPPED = ("torch", "onnx")
AIMS = {"disk_mb": 200.0, "rss_mb": 100.0, "start_s": 1.0}


def install(folder: Path) -> Path:
    """Create an environment with the agent installed; return its interpreter."""
    run = [sys.executable, "-m"]
    wheels = folder / "wheels"
    subprocess.run([*run, "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("esm_profiler-*.whl")
    subprocess.run([*run, "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    command = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    subprocess.run([*command, f"{wheel}[agent]"], check=True)
    return python


def disk_mb(python: Path) -> dict[str, float]:
    """Return the size of each installed package, MB, the largest first."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    owner: dict[Path, str] = {}
    for distribution in distributions(path=[str(site)]):
        for file in distribution.files or ():
            owner[Path(str(distribution.locate_file(file))).resolve()] = distribution.name
    sizes: Counter[str] = Counter()
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sizes[owner.get(path.resolve(), "other")] += path.stat().st_size
    return {n: size / 1e6 for n, size in sizes.most_common() if n not in INSTALLERS}


def needs_nothing_else(python: Path) -> bool:
    """Return whether neither torch nor onnx can be imported."""
    program = f"import importlib.util as u; print(any(u.find_spec(m) for m in {NOT_SHIPPED}))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "False"


def started(python: Path, *options: str) -> tuple[subprocess.Popen[str], float]:
    """Start an agent; return it and the seconds until it listens."""
    command = [python.with_name("esm-agent"), "serve", "--port", "0", *options]
    began = time.perf_counter()
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert agent.stdout is not None
    if "listening" not in agent.stdout.readline():
        raise SystemExit("the agent did not start")
    return agent, time.perf_counter() - began


def stop(agent: subprocess.Popen[str]) -> None:
    agent.terminate()
    agent.wait()
    assert agent.stdout is not None
    agent.stdout.close()


def memory_mb(pid: int) -> dict[str, dict[str, float]]:
    """Return RSS and PSS of a process and of its children."""
    names = {pid: "agent"}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            command = Path(f"/proc/{child}/cmdline").read_text()
            names[child] = "resource tracker" if "resource_tracker" in command else "worker"
    found = {}
    for number, name in names.items():
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        found[name] = {"rss_mb": kb["Rss"] * 1024 / 1e6, "pss_mb": kb["Pss"] * 1024 / 1e6}
    return found


def total(memory: dict[str, dict[str, float]], key: str) -> float:
    return sum(process[key] for process in memory.values())


def measured(folder: Path) -> dict[str, Any]:
    python = install(folder)
    starts = []
    for _ in range(STARTS + 1):
        agent, seconds = started(python)
        stop(agent)
        starts.append(seconds)
    disk = disk_mb(python)
    agent, _ = started(python)
    try:
        time.sleep(SETTLE_S)
        fresh = memory_mb(agent.pid)
        time.sleep(REST_S)
        idle = memory_mb(agent.pid)
    finally:
        stop(agent)
    return {
        "disk_mb": sum(disk.values()),
        "disk_mb_by_package": disk,
        "start_s": statistics.median(starts[1:]),  # the first one writes bytecode
        "starts_s": starts,
        "rss_mb": total(idle, "rss_mb"),
        "pss_mb": total(idle, "pss_mb"),
        "memory_idle": idle,
        "rss_mb_ready": total(fresh, "rss_mb"),
        "pss_mb_ready": total(fresh, "pss_mb"),
        "memory_ready": fresh,
        "neither_torch_nor_onnx": needs_nothing_else(python),
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    for name, size in list(result["disk_mb_by_package"].items())[:8]:
        print(f"  {name:24}{size:8.1f} MB")
    for state in ("ready", "idle"):
        for name, sizes in result[f"memory_{state}"].items():
            rss, pss = sizes["rss_mb"], sizes["pss_mb"]
            print(f"  {state:7}{name:17}{rss:8.1f} MB RSS {pss:8.1f} MB PSS")
    print(f"  starts: {' '.join(f'{s:.2f}' for s in result['starts_s'])} s")
    for name, aim in AIMS.items():
        print(f"{name:12}{result[name]:8.2f}   aim: below {aim:g}")
    print(f"ready: {result['rss_mb_ready']:.0f} MB RSS, {result['pss_mb_ready']:.0f} MB PSS")
    print(f"neither torch nor onnx: {result['neither_torch_nor_onnx']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(Path(folder))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
