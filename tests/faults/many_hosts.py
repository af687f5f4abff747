"""Many hosts in one process, each with a block after another: ADDRESS FIRST COUNT SECONDS.

Every host is a lease holder with a connection of its own. Prints what became of each as JSON.
"""

import contextlib
import json
import sys
import threading
import time
import uuid
from typing import Any

import onnx

from esm_host.errors import DeviceError
from esm_host.transport import remote
from esm_protos.messages import Block, MeasureSpec, Model

RUNS = 250
"""Of a millisecond each."""


class Host:
    """Measures until the end, and whatever it has begun before it."""

    def __init__(self, address: str, name: str) -> None:
        graph = onnx.helper.make_graph([], name, [], [])
        self._model = Model("m", onnx.helper.make_model(graph).SerializeToString())
        self._profiler = remote.RemoteProfiler(address)
        self._profiler.reserve(name)
        self.told: dict[str, Any] = {"blocks": 0, "errors": []}

    def run(self, end: float) -> None:
        with self._profiler:
            while time.monotonic() < end:
                block = Block(uuid.uuid4().hex, MeasureSpec(runs=RUNS, warmup=0), (self._model,))
                try:
                    (measured,) = self._profiler.measure(block).measurements
                except DeviceError as error:
                    self.told["errors"].append(str(error))
                    continue
                if measured.failure is not None:
                    self.told["errors"].append(str(measured.failure))
                self.told["blocks"] += 1


def main(address: str, first: str, count: str, seconds: str) -> None:
    # Else gRPC lets all of them share one connection.
    remote._OPTIONS = (*remote._OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    hosts = [Host(address, f"host-{int(first) + number}") for number in range(int(count))]
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    end = time.monotonic() + float(seconds)
    threads = [threading.Thread(target=host.run, args=(end,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps([host.told for host in hosts]))


if __name__ == "__main__":
    main(*sys.argv[1:])
