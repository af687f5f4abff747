"""Control groups: what they allow and counted, from trees of files and from real groups."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_agent.device.cgroups import CpuCounters, oom_kills, read_groups
from esm_agent.device.facts import memory_bytes
from esm_agent.device.machine import read_machine
from esm_agent.device.telemetry import Telemetry
from esm_agent.diagnosis.doctor import diagnose
from esm_protos.messages import BlockResult, FailureKind, Measurement, Severity
from tests.agent.fake_roots import PROC, grouped_v1, grouped_v2, tree


def test_a_service_in_a_slice_has_the_limits_of_both(tmp_path: Path) -> None:
    groups = read_groups(grouped_v2(tmp_path))
    assert groups.cpu_quota() == 1.5
    assert groups.memory_limit() == 500_000_000
    assert groups.memory_available() == 500_000_000 - 300_000_000 + 50_000_000
    assert groups.cpu_counters() == CpuCounters(176, 163, 14.5)
    assert oom_kills(tmp_path) == 3
    assert memory_bytes(tmp_path) == 500_000_000


def test_a_container_of_version_1(tmp_path: Path) -> None:
    groups = read_groups(grouped_v1(tmp_path))
    assert groups.cpu_quota() == 0.1
    assert groups.memory_limit() == memory_bytes(tmp_path) == 400_000_000
    assert groups.memory_available() == 50_000_000
    assert groups.cpu_counters() == CpuCounters(20, 18, 1.5)
    assert oom_kills(tmp_path) == 2


def test_no_limit_in_version_1_is_a_huge_number(tmp_path: Path) -> None:
    root = grouped_v1(tmp_path)
    memory = root / "sys/fs/cgroup/memory"
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_bytes(root) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("path", ["/../other", "/not/visible/here"])
def test_a_group_outside_of_what_is_visible_has_the_limits_that_are(
    tmp_path: Path, path: str
) -> None:
    root = grouped_v2(tmp_path, group=path)
    tree(root, {"sys/fs/cgroup/memory.max": "700000000", "sys/fs/cgroup/cpu.max": "max 100000"})
    groups = read_groups(root)
    assert groups.memory_limit() == 700_000_000
    assert groups.cpu_quota() is None


@pytest.mark.parametrize(
    "files", [{}, {"proc/self/cgroup": "0::/\n"}, {"proc/self/cgroup": "x\n::\n0::/\0\n"}]
)
def test_without_control_groups_nothing_is_told(tmp_path: Path, files: dict[str, str]) -> None:
    root = tree(tmp_path, {**PROC, **files})
    groups = read_groups(root)
    assert groups.cpu_quota() is groups.memory_limit() is groups.memory_available() is None
    assert groups.cpu_counters() is oom_kills(root) is None
    state = Telemetry(root).state(0)
    assert state.cpu_periods is state.cpu_throttled_periods is state.cpu_throttled_s is None
    assert state.memory_available_bytes == 2_000_000 * 1024


def test_kills_without_a_group_are_those_of_the_machine(tmp_path: Path) -> None:
    assert oom_kills(tree(tmp_path, {"proc/vmstat": "pswpin 1\noom_kill 7\n"})) == 7


def test_telemetry_tells_what_the_groups_counted_and_leave(tmp_path: Path) -> None:
    state = Telemetry(grouped_v2(tmp_path)).state(0)
    assert (state.cpu_periods, state.cpu_throttled_periods) == (176, 163)
    assert state.cpu_throttled_s == 14.5
    assert state.memory_available_bytes == 250_000_000


def test_the_doctor_names_both_limits_and_their_cures(tmp_path: Path) -> None:
    root = grouped_v2(tmp_path)
    now = Telemetry(root).state(0)
    failed = Measurement.failed("m", FailureKind.CRASH, "not of interest")
    probe = BlockResult("b", (failed,), 1, 1)
    diagnosis = diagnose(read_machine(root, (0, 1)), now, probe)
    found = {finding.check: finding for finding in diagnosis.findings}
    assert found["quota"].severity is Severity.ADVICE
    assert "gets 1.5 of 2 processors" in found["quota"].text
    assert "CPUQuota=" in found["quota"].fix
    assert found["memory limit"].severity is Severity.ADVICE
    assert "gets 0.5 of " in found["memory limit"].text
    assert "MemoryMax=" in found["memory limit"].fix


# Real ones


@pytest.fixture
def group() -> Iterator[dict[str, Path]]:
    """Fresh groups of this process's hierarchies, by controller."""
    made = {}
    try:
        for name in ("cpu", "memory"):
            folders = getattr(read_groups(), name)
            if not folders:
                pytest.skip(f"no control groups of {name} here")
            folder = folders[-1] / f"esm-test-{uuid.uuid4().hex[:8]}"
            try:
                folder.mkdir(exist_ok=False)
            except OSError as error:
                pytest.skip(f"no control group can be made here: {error}")
            made[name] = folder
            if name == "memory" and not (folder / "memory.limit_in_bytes").exists():
                pytest.skip("version 2: groups need their controllers enabled by the system")
        yield made
    finally:
        for folder in made.values():
            remove(folder)


def remove(folder: Path) -> None:
    """Once the processes in it are gone: the kernel takes its time."""
    ends = time.monotonic() + 5
    while folder.is_dir():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)


def run_in(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python in a group."""
    enter = f"import os; open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run(
        [sys.executable, "-c", enter + code], capture_output=True, text=True, timeout=60
    )


def test_a_real_quota_is_known_and_counts(group: dict[str, Path]) -> None:
    (group["cpu"] / "cpu.cfs_quota_us").write_text("10000")
    code = """
import json, time
from esm_agent.device.cgroups import read_groups
from esm_agent.device.telemetry import Telemetry
from esm_host.evaluation.verdict import block_evidence
telemetry = Telemetry()
states = [telemetry.state(0)]
end = time.monotonic() + 0.5
while time.monotonic() < end:
    pass
states.append(telemetry.state(500_000_000))
found = [(verdict.value, text) for verdict, text in block_evidence(states, 0.0)]
print(json.dumps([read_groups().cpu_quota(), found]))
"""
    done = run_in(group["cpu"], code)
    assert done.returncode == 0, done.stderr
    quota, found = json.loads(done.stdout)
    assert quota == 0.1
    (text,) = [text for verdict, text in found if "CPU quota" in text]
    assert ["throttled", text] in found


def test_a_model_too_large_for_a_real_group_is_out_of_memory(
    group: dict[str, Path], tmp_path: Path
) -> None:
    (group["memory"] / "memory.limit_in_bytes").write_text(str(400 << 20))
    (tmp_path / "ok.onnx").write_text("ok")
    (tmp_path / "large.onnx").write_text(f"eat {600 << 20}")
    code = f"""
import json
from pathlib import Path
from esm_agent.device.facts import memory_bytes
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.sandbox import Confinement, default_memory_bytes
from esm_agent.measure.worker import Worker
from esm_protos.messages import MeasureSpec
from tests.agent.fake_backends import ScriptedBackend
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    models = tuple(UploadedModel(n, folder / f"{{n}}.onnx") for n in ("ok", "large"))
    worker = Worker(ScriptedBackend, confinement=Confinement(memory_bytes=4 << 30))
    block = UploadedBlock("b", MeasureSpec(runs=3), models)
    result = worker.measure(block, lambda progress: None, lambda: False)
    worker.stop()
    failures = [m.failure for m in result.measurements]
    failures = [f and [f.kind.value, f.message] for f in failures]
    print(json.dumps([memory_bytes(), default_memory_bytes(), failures]))
"""
    done = run_in(group["memory"], code)
    assert done.returncode == 0, done.stderr
    size, most, (ok, large) = json.loads(done.stdout)
    assert size == 400 << 20
    assert most == 300 << 20
    assert ok is None
    assert large[0] == "out_of_memory"
    assert "the 0.42 GB of this device's control group ran out" in large[1]
