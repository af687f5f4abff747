"""Many hosts on one agent for a minute: one measures at a time, and each gets its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from esm_agent.measure.backends import Backend, LoadedModel
from esm_agent.measure.block import UploadedModel
from esm_agent.operation.metrics import Metrics
from esm_agent.serving.server import AgentServer
from esm_protos.messages import MeasureSpec

HOSTS, SECONDS = 8, 60
MANY, PROCESSES = 200, 4


class StampingBackend(Backend):
    """Every model takes a millisecond, and writes when each run was to the file of its name."""

    name = "cpu"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        name = onnx.load(model.path).graph.name
        file = (self._folder / f"{name}.stamps").open("ab")

        def run() -> None:
            began = time.monotonic_ns()
            time.sleep(0.001)
            file.write(np.array([os.getpid(), began, time.monotonic_ns()]).tobytes())
            file.flush()

        return LoadedModel(run)


@pytest.mark.faults
def test_eight_hosts_share_an_agent(tmp_path: Path) -> None:
    stamps = [tmp_path / f"{number}.stamps" for number in range(HOSTS)]
    models = [tmp_path / f"{number}.onnx" for number in range(HOSTS)]
    for path in models:
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], path.stem, [], [])), path)
    server = AgentServer("127.0.0.1", 0, partial(StampingBackend, tmp_path))
    command = [sys.executable, "-m", "tests.faults.one_host", f"127.0.0.1:{server.port}"]
    hosts = [
        subprocess.Popen(
            [*command, f"host {number}", str(SECONDS), str(models[number])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(HOSTS)
    ]
    try:
        for host in hosts:
            assert host.stdout is not None
            assert host.stdout.readline() == "ready\n"
        for host in hosts:
            assert host.stdin is not None
            host.stdin.write("\n")
            host.stdin.flush()
        told = [json.loads(host.communicate(timeout=SECONDS + 60)[0]) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
        server.stop()

    runs = [np.frombuffer(path.read_bytes(), dtype=np.int64).reshape(-1, 3) for path in stamps]
    owner = np.repeat(np.arange(HOSTS), [len(of_host) for of_host in runs])
    together = np.concatenate(runs)
    order = np.argsort(together[:, 1])
    together, owner = together[order], owner[order]
    overlaps = int((together[1:, 1] < together[:-1, 2]).sum())
    # A block is what one host ran until another one did, or longer where it came twice in a row.
    turns = int((owner[1:] != owner[:-1]).sum()) + 1
    blocks = [host["blocks"] for host in told]
    print(
        f"\n{HOSTS} hosts, {SECONDS} s: {sum(blocks)} blocks ({min(blocks)} to {max(blocks)} each) "
        f"in {turns} turns, {len(together)} runs of which {overlaps} overlap; each saw up to "
        f"{min(host['ahead'] for host in told)}-{max(host['ahead'] for host in told)} before it"
    )
    assert overlaps == 0
    assert len(set(together[:, 0])) == 1, "one process measures"
    assert max(blocks) - min(blocks) <= 2, "everybody has as many turns"
    for number, host in enumerate(told):
        assert host["ahead"] >= HOSTS // 2
        assert host["saw"]
        assert host["saw"] != [f"host {number}"]


class OrderBackend(Backend):
    """Every model takes a millisecond; its name is written down when it is loaded."""

    name = "cpu"

    def __init__(self, order: Path) -> None:
        self._order = order

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        with self._order.open("a") as file:
            file.write(onnx.load(model.path).graph.name + "\n")
        return LoadedModel(lambda: time.sleep(0.001))


class Counts(Metrics):
    """What an agent says of itself."""

    def __init__(self) -> None:
        self.blocks: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.leases_lost = 0

    def block_ended(self, outcome: str, models: Mapping[str, int], busy_s: float) -> None:
        self.blocks[outcome] += 1

    def lease_expired(self) -> None:
        self.leases_lost += 1

    def refused(self, code: str) -> None:
        self.refusals[code] += 1


@pytest.mark.faults
def test_two_hundred_hosts_take_turns(tmp_path: Path) -> None:
    """Each waits longer for its turn than a lease lives, and keeps its lease."""
    counts = Counts()
    order = tmp_path / "order"
    server = AgentServer("127.0.0.1", 0, partial(OrderBackend, order), metrics=counts)
    command = [sys.executable, "-m", "tests.faults.many_hosts", f"127.0.0.1:{server.port}"]
    each = MANY // PROCESSES
    programs = [
        subprocess.Popen(
            [*command, str(first), str(each), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in range(0, MANY, each)
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        time.sleep(SECONDS / 2)
        threads = threading.active_count()
        told = [
            host
            for program in programs
            for host in json.loads(program.communicate(timeout=10 * SECONDS)[0])
        ]
    finally:
        for program in programs:
            program.kill()
        server.stop()

    blocks = [host["blocks"] for host in told]
    turns = order.read_text().split()
    errors = [error for host in told for error in host["errors"]]
    print(
        f"\n{len(told)} hosts, {SECONDS} s: {sum(blocks)} blocks ({min(blocks)} to {max(blocks)} "
        f"each), {counts.leases_lost} leases lost, {counts.refusals.total()} calls refused, "
        f"{len(errors)} errors, {threads} threads of the agent"
    )
    assert len(told) == MANY
    assert not errors, errors[:3]
    assert (counts.leases_lost, counts.refusals) == (0, Counter())
    assert counts.blocks == {"measured": sum(blocks)}
    assert len(set(turns[:MANY])) == MANY, "everybody's first block before anybody's second"
    assert max(blocks) - min(blocks) <= 1
