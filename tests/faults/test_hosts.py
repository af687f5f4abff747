"""Eight hosts on one agent for a minute: one measures at a time, and each gets its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from esm_agent.measure.backends import LoadedModel
from esm_agent.measure.block import UploadedModel
from esm_agent.serving.server import AgentServer
from esm_protos.messages import MeasureSpec

HOSTS, SECONDS = 8, 60


class StampingBackend:
    """Every model takes a millisecond, and writes when each run was to the file of its name."""

    provider = "cpu"

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
