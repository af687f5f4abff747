"""Ten small models in common published styles, with random weights.

    python -m benchmarks.public_models FOLDER

From about 0.2 to about 20 ms on one core of a PC. Unlike what the search spaces build they are
complete ONNX files: any runtime takes them as they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

OPSET = 17
IR_VERSION = 8


class Graph:
    """An ONNX graph under construction; :meth:`op` adds an operator and returns its output."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        self._inputs.append(helper.make_tensor_value_info("input", kind, shape))
        return "input"

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator and return its first output; an empty input is an absent one."""
        number = len(self._nodes)
        names = [f"{kind.lower()}{number}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def weight(self, *shape: int, fan_in: int) -> str:
        """He-normal: activations keep their scale, so that none becomes denormal or infinite."""
        scale = math.sqrt(2 / fan_in)
        return self.constant(scale * self._rng.standard_normal(shape, dtype=np.float32))

    def vector(self, size: int, about: float = 0.0) -> str:
        noise = 0.1 * self._rng.standard_normal(size, dtype=np.float32)
        return self.constant((noise + np.float32(about)).astype(np.float32))

    def constant(self, values: NDArray[Any]) -> str:
        name = f"constant{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(values, name))
        return name

    def shape(self, *dims: int) -> str:
        return self.constant(np.array(dims, dtype=np.int64))

    # Layers

    def conv(
        self, x: str, ins: int, outs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        """Two-dimensional, "same" padding, with bias."""
        weight = self.weight(
            outs, ins // groups, kernel, kernel, fan_in=ins // groups * kernel * kernel
        )
        pads = [(kernel - 1) // 2] * 4
        strides = [stride, stride]
        bias = self.vector(outs)
        return self.op("Conv", x, weight, bias, pads=pads, strides=strides, group=groups)

    def conv1d(self, x: str, ins: int, outs: int, kernel: int, stride: int) -> str:
        weight = self.weight(outs, ins, kernel, fan_in=ins * kernel)
        pads = [(kernel - 1) // 2] * 2
        return self.op("Conv", x, weight, self.vector(outs), pads=pads, strides=[stride])

    def batch_norm(self, x: str, channels: int) -> str:
        """Next to a convolution, as training leaves it: the runtime folds it in."""
        moments = [self.vector(channels, about) for about in (1.0, 0.0, 0.0, 1.0)]
        return self.op("BatchNormalization", x, *moments)

    def layer_norm(self, x: str, size: int) -> str:
        scale, bias = self.vector(size, 1.0), self.vector(size)
        return self.op("LayerNormalization", x, scale, bias, axis=-1)

    def dense(self, x: str, ins: int, outs: int) -> str:
        """On the last axis: a product, then a sum, as PyTorch exports it for three axes."""
        return self.op(
            "Add", self.op("MatMul", x, self.weight(ins, outs, fan_in=ins)), self.vector(outs)
        )

    def gelu(self, x: str) -> str:
        """Exact, from what operator set 17 has; the runtime fuses it."""
        root, one, half = (
            self.constant(np.array(v, dtype=np.float32)) for v in (math.sqrt(2), 1, 0.5)
        )
        inner = self.op("Add", self.op("Erf", self.op("Div", x, root)), one)
        return self.op("Mul", self.op("Mul", x, inner), half)

    def attention(self, x: str, tokens: int, width: int, heads: int) -> str:
        """Multi-head self-attention with its output projection, batch 1."""
        size = width // heads
        split, merge = self.shape(1, tokens, heads, size), self.shape(1, tokens, width)
        query, key, value = (
            self.op("Transpose", self.op("Reshape", self.dense(x, width, width), split), perm=perm)
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scale = self.constant(np.array(1 / math.sqrt(size), dtype=np.float32))
        scores = self.op("Mul", self.op("MatMul", query, key), scale)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        merged = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), merge)
        return self.dense(merged, width, width)

    def classify(self, x: str, channels: int, classes: int) -> str:
        """Mean over the image, then one layer."""
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.dense(pooled, channels, classes)

    def serialize(self, name: str, output: str) -> bytes:
        """Return the model as bytes, with all shapes."""
        result = self.op("Identity", output)
        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
            self._initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        data: bytes = shape_inference.infer_shapes(model, strict_mode=True).SerializeToString(
            deterministic=True
        )
        return data


def plain(g: Graph) -> str:
    """VGG-style: convolutions and pooling."""
    x, ins = g.input(1, 3, 64, 64), 3
    for outs in (32, 64, 128):
        for _ in range(2):
            x, ins = g.op("Relu", g.conv(x, ins, outs)), outs
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return g.classify(x, ins, 100)


def residual(g: Graph) -> str:
    """ResNet-style: strides, batch normalisation, shortcuts."""
    x = g.input(1, 3, 112, 112)
    x = g.op("Relu", g.batch_norm(g.conv(x, 3, 64, 7, 2), 64))
    x, ins = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for outs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        y = g.op("Relu", g.batch_norm(g.conv(x, ins, outs, 3, stride), outs))
        y = g.batch_norm(g.conv(y, outs, outs), outs)
        if stride > 1:
            x = g.batch_norm(g.conv(x, ins, outs, 1, stride), outs)
        x, ins = g.op("Relu", g.op("Add", x, y)), outs
    return g.classify(x, ins, 1000)


def depthwise(g: Graph) -> str:
    """MobileNet-style: depthwise and pointwise convolutions in turn."""
    x, ins = g.op("Relu", g.batch_norm(g.conv(g.input(1, 3, 128, 128), 3, 16, 3, 2), 16)), 16
    for outs, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        x = g.op("Relu", g.batch_norm(g.conv(x, ins, ins, 3, stride, groups=ins), ins))
        x, ins = g.op("Relu", g.batch_norm(g.conv(x, ins, outs, 1), outs)), outs
    return g.classify(x, ins, 1000)


def inverted(g: Graph) -> str:
    """MobileNetV3-style: inverted residuals with squeeze and excitation."""
    x, ins = g.op("HardSwish", g.batch_norm(g.conv(g.input(1, 3, 160, 160), 3, 16, 3, 2), 16)), 16
    for outs, kernel, stride in ((24, 3, 2), (24, 3, 1), (40, 5, 2), (40, 5, 1), (80, 3, 2)):
        mid = 4 * ins
        y = g.op("HardSwish", g.batch_norm(g.conv(x, ins, mid, 1), mid))
        y = g.batch_norm(g.conv(y, mid, mid, kernel, stride, groups=mid), mid)
        squeezed = g.op("Relu", g.conv(g.op("GlobalAveragePool", y), mid, mid // 4, 1))
        gate = g.op("HardSigmoid", g.conv(squeezed, mid // 4, mid, 1), alpha=1 / 6)
        y = g.op("HardSwish", g.op("Mul", y, gate))
        y = g.batch_norm(g.conv(y, mid, outs, 1), outs)
        x, ins = (g.op("Add", x, y) if stride == 1 and ins == outs else y), outs
    return g.classify(x, ins, 1000)


def mlp(g: Graph) -> str:
    """Matrix products over a batch of tabular rows."""
    x, ins = g.input(64, 128), 128
    for outs in (256, 256, 256):
        x, ins = g.op("Relu", g.dense(x, ins, outs)), outs
    return g.dense(x, ins, 10)


def gemv(g: Graph) -> str:
    """One row through large matrices: bound by reading 64 MB of weights."""
    x, size = g.input(1, 2048), 2048
    for outs in (4096, 2048):
        x, size = g.op("Relu", g.dense(x, size, outs)), outs
    return x


def encoder(g: Graph) -> str:
    """One self-attention encoder block over embedded tokens, whose input is integers."""
    tokens, width = 64, 256
    table = g.weight(1000, width, fan_in=2)
    x = g.op("Gather", table, g.input(1, tokens, kind=TensorProto.INT64))
    x = g.layer_norm(g.op("Add", x, g.attention(x, tokens, width, heads=1)), width)
    y = g.dense(g.op("Relu", g.dense(x, width, 4 * width)), 4 * width, width)
    return g.layer_norm(g.op("Add", x, y), width)


def vit(g: Graph) -> str:
    """ViT-tiny-style: patches, multi-head attention, layer normalisation, GELU."""
    tokens, width, heads = 196, 192, 3
    weight = g.weight(width, 3, 16, 16, fan_in=3 * 16 * 16)
    x = g.op("Conv", g.input(1, 3, 224, 224), weight, g.vector(width), strides=[16, 16])
    x = g.op("Transpose", g.op("Reshape", x, g.shape(1, width, tokens)), perm=[0, 2, 1])
    for _ in range(6):
        x = g.op("Add", x, g.attention(g.layer_norm(x, width), tokens, width, heads))
        y = g.gelu(g.dense(g.layer_norm(x, width), width, 4 * width))
        x = g.op("Add", x, g.dense(y, 4 * width, width))
    pooled = g.op("ReduceMean", g.layer_norm(x, width), axes=[1], keepdims=0)
    return g.dense(pooled, width, 1000)


def lstm(g: Graph) -> str:
    """Two LSTM layers over fifty steps."""
    steps, width = 50, 128
    x, ins = g.input(steps, 1, 64), 64
    for _ in range(2):
        recurrent = (
            g.weight(1, 4 * width, ins, fan_in=2 * ins),
            g.weight(1, 4 * width, width, fan_in=2 * width),
        )
        bias = g.constant(np.zeros((1, 8 * width), dtype=np.float32))
        y = g.op("LSTM", x, *recurrent, bias, hidden_size=width)
        x, ins = g.op("Squeeze", y, g.shape(1)), width
    return g.dense(x, ins, 20)


def audio(g: Graph) -> str:
    """Convolutions along time over a spectrogram, then a GRU."""
    x = g.op("Relu", g.conv1d(g.input(1, 40, 200), 40, 64, 5, 2))
    x = g.op("Relu", g.conv1d(x, 64, 96, 5, 2))
    x, width = g.op("Transpose", x, perm=[2, 0, 1]), 96
    recurrent = (g.weight(1, 3 * width, width, fan_in=2 * width) for _ in range(2))
    bias = g.constant(np.zeros((1, 6 * width), dtype=np.float32))
    y = g.op("GRU", x, *recurrent, bias, hidden_size=width, linear_before_reset=1)
    return g.dense(g.op("Squeeze", y, g.shape(1)), width, 12)


KINDS: dict[str, tuple[str, Callable[[Graph], str]]] = {
    "plain": ("plain convolutions", plain),
    "residual": ("residual, strided", residual),
    "depthwise": ("depthwise separable", depthwise),
    "inverted": ("inverted residual, SE", inverted),
    "mlp": ("matrix products", mlp),
    "gemv": ("memory-limited", gemv),
    "encoder": ("self-attention encoder", encoder),
    "vit": ("vision transformer", vit),
    "lstm": ("LSTM", lstm),
    "audio": ("1-D convolutions, GRU", audio),
}
"""Models by name: the kind, and the function that builds it."""


def build(name: str, seed: int = 0) -> bytes:
    """Return the ONNX bytes of a model, which are equal for equal seeds."""
    graph = Graph(seed)
    return graph.serialize(name, KINDS[name][1](graph))


def write_models(folder: Path) -> dict[str, Path]:
    """Write all models and return their paths, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.onnx" for name in KINDS}
    for name, path in paths.items():
        path.write_bytes(build(name))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, path in write_models(parser.parse_args().folder).items():
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  {KINDS[name][0]}")


if __name__ == "__main__":
    main()
