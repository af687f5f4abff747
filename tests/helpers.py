"""What several test files need."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

REFERENCE_MODELS = Path(__file__).parents[1] / "device_agent" / "esm_agent" / "reference_models"
ARITHMETIC = REFERENCE_MODELS / "arithmetic.onnx"


def smallest(space: SearchSpace) -> Architecture:
    """The architecture of fewest blocks, all of the first option."""
    return space.extremes()[0]


def largest(space: SearchSpace) -> Architecture:
    """The architecture of most blocks, all of the last option."""
    return space.extremes()[1]


def depth_bins(space: SearchSpace, count: int) -> DepthBins:
    """That many bins, or as many as the space has depths."""
    depths = space.max_depth - space.min_depth + 1
    return DepthBins(space.min_depth, space.max_depth, min(count, depths))


def undraw(patch: pytest.MonkeyPatch) -> None:
    """Draw no plots: they take longer than the rest of a small campaign or study."""
    patch.setattr("esm_host.workflows.profile._draw", lambda folder, run: None)
    patch.setattr("vl_convert.vegalite_to_png", lambda *_, **__: b"")


def told_elsewhere(pickled: bytes, architectures: Iterable[Architecture]) -> list[float]:
    """Return the latencies, ms, that a pickled function gives in another process."""
    code = (
        "import json, pickle, sys\n"
        "function, architectures = json.load(sys.stdin)\n"
        "latency = pickle.loads(bytes.fromhex(function))\n"
        "print(json.dumps([latency(a) for a in architectures]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([pickled.hex(), [a.to_json() for a in architectures]]),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(told.stdout)
    return found


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder one that nobody can write to, not even root; skip where that is forbidden."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        undo: list[list[str]] = []
    else:
        commands = (["--bind", str(folder), str(folder)], ["-o", "remount,ro,bind", str(folder)])
        for command in commands:
            if subprocess.run(["mount", *command], capture_output=True).returncode:
                pytest.skip("nothing may be mounted here")
        modes, undo = {}, [["umount", "--lazy", str(folder)]]
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
        for command in undo:
            subprocess.run(command, check=True)
