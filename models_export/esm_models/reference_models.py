"""Reference models that come with the agent; ``python -m esm_models.reference_models`` writes them.

The agent times them along with every block, and its doctor alone. It has no onnx, so it ships
their graphs as files of a few hundred bytes, weightless like any other. A test compares them with
what this module makes.

They are a ladder. The first rung is limited by arithmetic; the others read weights of growing size,
which the caches of one device hold and those of another do not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from esm_models.graph import Network

FOLDER = Path(__file__).resolve().parents[2] / "device_agent" / "esm_agent" / "reference_models"
"""Where they lie in a source tree."""


def _arithmetic() -> tuple[Network, str]:
    """87 million multiplications on 0.5 MB that caches hold."""
    net = Network((1, 64, 28, 28))
    x = net.input
    for _ in range(3):
        x = net.relu(net.conv(x, 64, kernel=3))
    return net, x


def _middle() -> tuple[Network, str]:
    """Convolutions as at the end of a network: 7 MB of weights, each used 16 times."""
    net = Network((1, 256, 4, 4))
    x = net.input
    for _ in range(3):
        x = net.relu(net.conv(x, 256, kernel=3))
    return net, x


def _large() -> tuple[Network, str]:
    """17 MB of weights, each used once: as much as last-level caches hold that others share."""
    net = Network((1, 2048, 1, 1))
    return net, net.linear(net.flatten(net.input), 2048)


def _beyond() -> tuple[Network, str]:
    """67 MB of weights, each used once: more than nearly all caches hold."""
    net = Network((1, 4096, 1, 1))
    return net, net.linear(net.flatten(net.input), 4096)


_MODELS: dict[str, Callable[[], tuple[Network, str]]] = {
    "arithmetic": _arithmetic,
    "middle": _middle,
    "large": _large,
    "beyond": _beyond,
}


def reference_models() -> dict[str, bytes]:
    """File names and contents."""
    files = {}
    for name, make in _MODELS.items():
        net, output = make()
        files[f"{name}.onnx"] = net.serialize(name, output)
    return files


def stale_models() -> list[str]:
    """Names of committed files that differ from freshly generated ones."""
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
