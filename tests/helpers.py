"""What several test files need."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace


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
