"""Well-known networks that can be timed by name.

``python -m esm_models.examples`` writes them as weightless files into the package, so timing one
does not need onnx. A test compares the files with the output of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from esm_models.architecture import Architecture
from esm_models.graph import Network
from esm_models.spaces import load_space

FOLDER = Path(__file__).resolve().parent / "example_models"


def _mobilenetv3() -> bytes:
    """Return MobileNetV3-Large (Howard et al. 2019) at 224 pixels.

    It is the nearest network of Once-for-all's space: three blocks expand 3 times instead of 2.5
    or 2.3 times.
    """
    units = (
        ("k3e4", "k3e3"),
        ("k5e3", "k5e3", "k5e3"),
        ("k3e6", "k3e3", "k3e3", "k3e3"),
        ("k3e6", "k3e6"),
        ("k5e6", "k5e6", "k5e6"),
    )
    return load_space("ofa", resolution=224).build(Architecture("ofa", units))


def _resnet18() -> bytes:
    """Return ResNet-18 (He et al. 2016) at 224 pixels."""
    net = Network((1, 3, 224, 224))
    with net.scope("stem"):
        x = net.max_pool(net.relu(net.conv(net.input, 64, kernel=7, stride=2)))
    for unit, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (1, 2):
            stride = 2 if unit > 1 and block == 1 else 1
            with net.scope(f"unit{unit}.block{block}"):
                shortcut = net.conv(x, channels, stride=stride) if stride > 1 else x
                x = net.relu(net.conv(x, channels, kernel=3, stride=stride))
                x = net.relu(net.add(net.conv(x, channels, kernel=3), shortcut))
    with net.scope("head"):
        x = net.linear(net.flatten(net.global_average_pool(x)), 1000)
    return net.serialize("resnet18", x)


def _resnet50() -> bytes:
    """Return ResNet-50 (He et al. 2016) at 224 pixels, stride on the middle convolution."""
    units = tuple(("k3e1",) * depth for depth in (3, 4, 6, 3))
    return load_space("resnet").build(Architecture("resnet", units))


_EXAMPLES: dict[str, Callable[[], bytes]] = {
    "mobilenetv3": _mobilenetv3,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
}


def examples() -> dict[str, bytes]:
    """Return file names and contents."""
    return {f"{name}.onnx": make() for name, make in _EXAMPLES.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, data in examples().items():
        (FOLDER / file_name).write_bytes(data)
