"""Generates the models that the agent's doctor times: ``python -m esm_models.probe_models``.

The agent has no onnx, so it ships their graphs as files of a few hundred bytes, weightless like
any other. A test compares them with what this module makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from esm_models.graph import Network

FOLDER = Path(__file__).resolve().parents[2] / "device_agent" / "esm_agent" / "probe_models"
"""Where they lie in a source tree."""


def _convolutions() -> tuple[Network, str]:
    """Limited by arithmetic: 87 million multiplications on 0.5 MB that caches hold."""
    net = Network((1, 64, 28, 28))
    x = net.input
    for _ in range(3):
        x = net.relu(net.conv(x, 64, kernel=3))
    return net, x


def _pointwise() -> tuple[Network, str]:
    """Arithmetic as matrix products: 51 million multiplications."""
    net = Network((1, 128, 28, 28))
    x = net.input
    for _ in range(4):
        x = net.relu(net.conv(x, 128))
    return net, x


def _depthwise() -> tuple[Network, str]:
    """Little arithmetic per byte, on activations of 1.6 MB: limited by the outer caches."""
    net = Network((1, 128, 56, 56))
    x = net.input
    for _ in range(3):
        x = net.hard_swish(net.conv(x, 128, kernel=3, groups=128))
    return net, x


def _large_gemm() -> tuple[Network, str]:
    """Limited by memory: 34 MB of weights, each used once, more than most caches hold."""
    net = Network((1, 2048, 1, 1))
    return net, net.linear(net.flatten(net.input), 4096)


_MODELS: dict[str, Callable[[], tuple[Network, str]]] = {
    "convolutions": _convolutions,
    "pointwise": _pointwise,
    "depthwise": _depthwise,
    "large-gemm": _large_gemm,
}


def probe_models() -> dict[str, bytes]:
    """File names and contents."""
    files = {}
    for name, make in _MODELS.items():
        net, output = make()
        files[f"{name}.onnx"] = net.serialize(name, output)
    return files


def stale_models() -> list[str]:
    """Names of committed files that differ from freshly generated ones."""
    fresh = probe_models()
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*.onnx")}
    names = fresh.keys() | committed.keys()
    return sorted(name for name in names if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv:
        if stale := stale_models():
            raise SystemExit(f"stale models: {', '.join(stale)}: run `make probes`")
    else:
        FOLDER.mkdir(exist_ok=True)
        for file_name, data in probe_models().items():
            (FOLDER / file_name).write_bytes(data)
