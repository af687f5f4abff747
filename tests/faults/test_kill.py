"""kill -9 of host, agent or measuring process at random points of a campaign.

Every block that the host reported is in the store once, every planned architecture is measured
exactly once, and ``--resume`` ends the campaign. Run by ``make test-faults``; prints its counts.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from esm_host.dataset.store import REFERENCE_ROUND, Store

KILLS = 20
CAMPAIGN = ["--space", "resnet", "--resolution", "32", "--width-mult", "0.25", "--bins", "4"]
CAMPAIGN += ["--initial", "600", "--step", "40", "--max-models", "680", "--target-accuracy", "100"]
CAMPAIGN += ["--runs", "60", "--block-size", "10", "--max-remeasurements", "0", "--seed", "1"]


class Campaign:
    """A host and an agent as two programs, each started again after it was killed."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.log = folder / "host.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.agent = self._start_agent()
        assert self.agent.stdout is not None
        self.agent.stdout.readline()  # it is ready
        self.host = self._start_host()

    def _start_agent(self) -> subprocess.Popen[bytes]:
        command = ["-m", "esm_agent.cli", "serve", "--port", str(self.port)]
        return subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def _start_host(self) -> subprocess.Popen[bytes]:
        resume = (self.run / "settings.json").exists()
        command = [sys.executable, "-c", "from esm_host.cli import main; main()", "profile"]
        command += ["--run", str(self.run), "--device", f"127.0.0.1:{self.port}"]
        command += ["--resume"] if resume else CAMPAIGN
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def measuring_process(self) -> int | None:
        """Process id of the agent's worker, if it has one at the moment."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                command = (status.parent / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.agent.pid and b"spawn_main" in command:
                return int(status.parent.name)
        return None

    def kill(self, victim: str) -> bool:
        if victim == "worker":
            pid = self.measuring_process()
            if pid is None:
                return False
            os.kill(pid, signal.SIGKILL)
        elif victim == "agent":
            self.agent.kill()
            self.agent.wait()
            self.agent = self._start_agent()
        else:
            self.host.kill()
            self.host.wait()
        return True

    def keep_host_running(self) -> int | None:
        """Starts the host again after a kill; its exit code once it ended by itself."""
        code = self.host.poll()
        if code in (0, 3):
            return code
        if code is not None:
            assert code == -signal.SIGKILL, f"the host gave up: {self.log.read_text()[-2000:]}"
            self.host = self._start_host()
        return None

    def stop(self) -> None:
        for process in (self.host, self.agent):
            process.kill()
            process.wait()


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="finds the measuring process under /proc")
def test_nothing_reported_is_lost_or_doubled(tmp_path: Path) -> None:
    rng = random.Random(0)
    campaign = Campaign(tmp_path)
    kills: Counter[str] = Counter()
    try:
        while kills.total() < KILLS:
            time.sleep(rng.uniform(0.2, 5.0))
            assert campaign.keep_host_running() is None, "the campaign must outlast the kills"
            victim = rng.choice(["host", "agent", "worker"])
            kills[victim] += campaign.kill(victim)
        deadline = time.monotonic() + 480
        while (code := campaign.keep_host_running()) is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert code == 3, campaign.log.read_text()[-2000:]
    finally:
        campaign.stop()

    store = Store(campaign.run / "store.sqlite")
    plan = store.plan()
    references = {a.key for a in plan.pop(REFERENCE_ROUND)}
    planned = [a.key for architectures in plan.values() for a in architectures]
    stored = Counter(block.block_id for block in store.blocks())
    reported = Counter(re.findall(r"block (\w{32}) stored", campaign.log.read_text()))
    measured = Counter(m.measurement.model_id for m in store.measurements())
    failures = [m for m in store.measurements() if m.measurement.failure is not None]
    print(
        f"\n{kills.total()} kills ({', '.join(f'{n} {who}' for who, n in sorted(kills.items()))}); "
        f"{len(reported)} blocks reported, {len(stored)} stored; {len(planned)} architectures "
        f"planned, {sum(measured[key] for key in planned)} measured; {len(failures)} failures"
    )
    assert set(reported) <= set(stored)
    assert max(reported.values()) == 1
    assert len(planned) == 680
    assert {measured[key] for key in planned} == {1}
    assert {measured[key] for key in references} == {len(stored)}
    assert failures == []
