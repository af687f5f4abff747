"""A host that measures block after block for some seconds: ADDRESS NAME SECONDS MODEL."""

import json
import sys
import time
import uuid
from pathlib import Path

from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, MeasureSpec, Model, Progress


def main(address: str, name: str, seconds: str, path: str) -> None:
    model = Model("m", Path(path).read_bytes())
    ahead: list[int] = []
    holders: set[str] = set()

    def on_progress(progress: Progress) -> None:
        if progress.standing is not None and progress.standing.ahead:
            ahead.append(progress.standing.ahead)
            if progress.standing.holder is not None:
                holders.add(progress.standing.holder.purpose)

    blocks = 0
    with RemoteProfiler(address) as profiler:
        profiler.reserve(name)
        print("ready", flush=True)
        sys.stdin.readline()  # all begin together
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            block = Block(uuid.uuid4().hex, MeasureSpec(runs=50), (model,))
            (measured,) = profiler.measure(block, on_progress).measurements
            assert measured.failure is None, measured.failure
            blocks += 1
    print(json.dumps({"blocks": blocks, "ahead": max(ahead, default=0), "saw": sorted(holders)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
