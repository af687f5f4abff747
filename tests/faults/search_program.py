"""``esm-host search`` as a program of its own, on a device that always measures the same."""

import sys
import time

from esm_host.cli.app import app
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Model


def latency(model: Model) -> float:
    return 1 + model.size_bytes / 1e5


class Slow(FakeProfiler):
    """Takes a moment, in which it may be killed."""

    def answer(self, *arguments):
        time.sleep(0.2)
        return super().answer(*arguments)


profiler = Slow(latency)
devices.connect = lambda device: profiler
app(sys.argv[1:])
