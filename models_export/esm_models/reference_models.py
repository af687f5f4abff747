"""Reference models of the agent; ``python -m esm_models.reference_models`` writes their files.

The agent times them in every block, and its doctor times them alone. The agent does not need
onnx, because it includes the graphs as weightless files of a few hundred bytes. A test compares
the files with the output of this module.

The models form a ladder. The first rung is limited by arithmetic. The others read weights of
growing size, which fit the caches of some devices only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from esm_models.graph import Network

FOLDER = Path(__file__).resolve().parents[2] / "device_agent" / "esm_agent" / "reference_models"
"""Folder of the files in a source tree."""


def _arithmetic() -> tuple[Network, str]:
    """Build 87 million multiplications on 0.5 MB of weights, which fit caches."""
    net = Network((1, 64, 28, 28))
    x = net.input
    for _ in range(3):
        x = net.relu(net.conv(x, 64, kernel=3))
    return net, x


def _middle() -> tuple[Network, str]:
    """Build convolutions as at the end of a network: 7 MB of weights, each used 16 times."""
    net = Network((1, 256, 4, 4))
    x = net.input
    for _ in range(3):
        x = net.relu(net.conv(x, 256, kernel=3))
    return net, x


def _large() -> tuple[Network, str]:
    """Build 17 MB of weights, each used once: about the size of a shared last-level cache."""
    net = Network((1, 2048, 1, 1))
    return net, net.linear(net.flatten(net.input), 2048)


def _beyond() -> tuple[Network, str]:
    """Build 67 MB of weights, each used once: more than the size of nearly all caches."""
    net = Network((1, 4096, 1, 1))
    return net, net.linear(net.flatten(net.input), 4096)


_MODELS: dict[str, Callable[[], tuple[Network, str]]] = {
    "arithmetic": _arithmetic,
    "middle": _middle,
    "large": _large,
    "beyond": _beyond,
}


def reference_models() -> dict[str, bytes]:
    """Return file names and contents."""
    files = {}
    for name, make in _MODELS.items():
        net, output = make()
        files[f"{name}.onnx"] = net.serialize(name, output)
    return files


def stale_models() -> list[str]:
    """Return the names of committed files that differ from freshly generated ones."""
    fresh = reference_models()
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*.onnx")}
    names = fresh.keys() | committed.keys()
    return sorted(name for name in names if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv:
        if stale := stale_models():
            raise SystemExit(f"stale models: {', '.join(stale)}: run `make references`")
    else:
        FOLDER.mkdir(exist_ok=True)
        for file_name, data in reference_models().items():
            (FOLDER / file_name).write_bytes(data)
