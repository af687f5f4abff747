"""Twelve models for the comparison of execution providers, with random weights.

Complete ONNX files of batch 1, from about 0.2 to about 20 ms on one core of a PC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import public_models
from benchmarks.public_models import Graph
from esm_models.architecture import Architecture
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights

RESNET = (("k3e1",) * 2,) * 4
MOBILENET = (("k3e1",) * 2, ("k5e1",) * 2, ("k3e1",) * 3, ("k5e1",) * 2)
FBNET = (
    ("k3_e1",),
    ("k3_e6", "k3_e1", "k5_e1", "skip"),
    ("k5_e6", "k3_e3", "k5_e3", "k3_e6"),
    ("k5_e6", "k5_e3", "k3_e6", "k3_e1_g2"),
    ("k5_e6", "k5_e6", "k3_e3", "k5_e1"),
    ("k5_e6", "k5_e6", "k3_e6", "k5_e3"),
    ("k3_e6",),
)
DENSENET = (("k3",) * 3,) * 5
CELL = (
    (
        *("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3"),
        *("skip_connect", "nor_conv_3x3", "nor_conv_1x1"),
    ),
)


def _subnet(space: str, units: tuple[tuple[str, ...], ...], **settings: Any) -> bytes:
    """Return a network of a search space, with weights, for any runtime."""
    return load_space(space, **settings).build(Architecture(space, units), draw_weights)


def _decoder(g: Graph) -> str:
    """U-Net-style: each stage doubles the image, and two convolutions follow."""
    x, ins = g.input(1, 128, 8, 8), 128
    for outs in (64, 32, 16):
        scales = g.constant(np.array([1, 1, 2, 2], dtype=np.float32))
        x = g.op("Resize", x, "", scales, mode="nearest")
        for _ in range(2):
            x, ins = g.op("Relu", g.conv(x, ins, outs)), outs
    return g.conv(x, ins, 3, kernel=1)


def _made_decoder() -> bytes:
    graph = Graph(seed=0)
    return graph.serialize("decoder", _decoder(graph))


def _public(name: str) -> Callable[[], bytes]:
    return lambda: public_models.build(name)


MODELS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "resnet": (
        "convolutions, shortcuts",
        lambda: _subnet("resnet", RESNET, resolution=96, width_mult=0.5),
    ),
    "vgg": ("plain convolutions", _public("plain")),
    "mobilenetv3": (
        "depthwise, squeeze and excitation",
        lambda: _subnet("mobilenetv3", MOBILENET, resolution=128),
    ),
    "fbnet": ("depthwise, grouped", lambda: _subnet("fbnet", FBNET, resolution=128)),
    "densenet": (
        "concatenations",
        lambda: _subnet("densenet", DENSENET, resolution=96, width_mult=0.5),
    ),
    "nasbench201": ("cells, pooling", lambda: _subnet("nasbench201", CELL)),
    "decoder": ("upsampling", _made_decoder),
    "encoder": ("self-attention", _public("encoder")),
    "lstm": ("LSTM", _public("lstm")),
    "gru": ("1-D convolutions, GRU", _public("audio")),
    "resnet-int8": (
        "int8 (QDQ)",
        lambda: _subnet("resnet", RESNET, resolution=96, width_mult=0.5, dtype="int8"),
    ),
    "mobilenetv3-int8": (
        "int8 (QDQ), depthwise",
        lambda: _subnet("mobilenetv3", MOBILENET, resolution=128, dtype="int8"),
    ),
}
"""Models by name: the kind, and the function that builds it."""


def write_models(folder: Path, names: Iterable[str] = MODELS) -> dict[str, Path]:
    """Write models and return their paths, by name."""
    paths = {name: folder / f"{name}.onnx" for name in names}
    for name, path in paths.items():
        path.write_bytes(MODELS[name][1]())
    return paths
