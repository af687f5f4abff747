"""The networks of the search spaces written as torch modules, from their original descriptions.

Batch normalisation that follows a convolution is taken as folded into it (a convolution with
bias); DenseNet keeps those that come before a convolution. Layers that carry weights are registered
in the order in which they run, a block's shortcut first: :func:`load_onnx_weights` relies on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from esm_models.architecture import Architecture

CLASSES = 1000


def classes(space: str, resolution: int) -> int:
    """CIFAR-10's of NAS-Bench-201, CIFAR-100's of FBNet on small images, else ImageNet's."""
    return {"nasbench201": 10, "fbnet": 100 if resolution < 128 else 1000}.get(space, CLASSES)


def scaled_channels(base: float | Fraction, width_mult: float) -> int:
    """``base * width_mult`` to the nearest multiple of 8, at least 8, at most a tenth below."""
    exact = Fraction(base) * Fraction(width_mult)
    nearest = max(8, 8 * math.floor(exact / 8 + Fraction(1, 2)))
    return nearest if nearest >= Fraction(9, 10) * exact else nearest + 8


def kernel_of(label: str) -> int:
    """The kernel size that a label such as ``k5e2/3`` or ``k5`` names."""
    match = re.match(r"k(\d+)", label)
    assert match, f"no kernel in {label!r}"
    return int(match[1])


def expansion_of(label: str) -> Fraction:
    """The expansion ratio that a label such as ``k5e2/3`` names."""
    _, _, ratio = label.partition("e")
    return Fraction(ratio)


def same_conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Convolution padded by half its kernel."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups
    )


# ResNet -------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1, kxk (with the stride), 1x1, and the shortcut, projected where the shape changes."""

    def __init__(
        self, in_channels: int, middle: int, out_channels: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.projection: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.projection = same_conv(in_channels, out_channels, stride=stride)
        self.reduce = same_conv(in_channels, middle)
        self.spatial = same_conv(middle, middle, kernel, stride)
        self.expand = same_conv(middle, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.projection is None else self.projection(x)
        out = F.relu(self.reduce(x))
        out = F.relu(self.spatial(out))
        return F.relu(self.expand(out) + identity)


class ResNet(nn.Module):
    """ResNet-50 with free depth, kernel and bottleneck width."""

    def __init__(self, architecture: Architecture, resolution: int, width_mult: float) -> None:
        super().__init__()
        self.resolution = resolution
        channels = scaled_channels(64, width_mult)
        self.stem = same_conv(3, channels, kernel=7, stride=2)
        blocks = []
        for stage, unit in enumerate(architecture.units):
            planes = 64 * 2**stage
            out_channels = scaled_channels(4 * planes, width_mult)
            for position, label in enumerate(unit):
                middle = scaled_channels(planes * expansion_of(label), width_mult)
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Bottleneck(channels, middle, out_channels, kernel_of(label), stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.resolution, self.resolution)
        x = F.relu(self.stem(images))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        x = self.blocks(x)
        return self.classifier(x.mean(dim=(2, 3)))


# MobileNetV3 --------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """Gates of the channels, from their means; the squeezed width is rounded like all others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = scaled_channels(Fraction(channels, 4), 1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        gates = F.relu6(self.excite(F.relu(self.squeeze(means))) + 3) / 6
        return x * gates


class InvertedResidual(nn.Module):
    """1x1 expansion (unless it is 1), depthwise, squeeze-excite where the stage has it, 1x1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        expansion: int,
        stride: int,
        squeeze_excite: bool,
        hard_swish: bool,
    ) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.activation = F.hardswish if hard_swish else F.relu
        self.expand = same_conv(in_channels, middle) if expansion != 1 else None
        self.depthwise = same_conv(middle, middle, kernel, stride, groups=middle)
        self.squeeze_excite = SqueezeExcite(middle) if squeeze_excite else None
        self.project = same_conv(middle, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else self.activation(self.expand(x))
        out = self.activation(self.depthwise(out))
        if self.squeeze_excite is not None:
            out = self.squeeze_excite(out)
        out = self.project(out)
        return x + out if self.residual else out


class MobileNetV3(nn.Module):
    """The four stages of MobileNetV3-Large that halve the resolution, with free blocks."""

    # Channels, stride, squeeze-excite, hard swish: MobileNetV3-Large's rows of stride 2.
    STAGES: tuple[tuple[int, int, bool, bool], ...] = (
        *((24, 2, False, False), (40, 2, True, False)),
        *((80, 2, False, True), (160, 2, True, True)),
    )
    UNIT_OF_EXPANSION = 6

    def __init__(self, architecture: Architecture, resolution: int, width_mult: float) -> None:
        super().__init__()
        self.resolution = resolution
        channels = scaled_channels(16, width_mult)
        self.stem = same_conv(3, channels, kernel=3, stride=2)
        blocks = [InvertedResidual(channels, channels, 3, 1, 1, False, False)]
        for (base, first_stride, *kind), unit in zip(self.STAGES, architecture.units, strict=True):
            out_channels = scaled_channels(base, width_mult)
            for position, label in enumerate(unit):
                times = self.UNIT_OF_EXPANSION * expansion_of(label)
                assert times.denominator == 1, f"{label!r} expands {times} times"
                stride = first_stride if position == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, out_channels, kernel_of(label), int(times), stride, *kind
                    )
                )
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.last_conv = same_conv(channels, scaled_channels(960, width_mult))
        self.last_pointwise = nn.Conv2d(
            self.last_conv.out_channels, scaled_channels(1280, width_mult), 1
        )
        self.classifier = nn.Linear(self.last_pointwise.out_channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.resolution, self.resolution)
        x = self.blocks(F.hardswish(self.stem(images)))
        x = F.adaptive_avg_pool2d(F.hardswish(self.last_conv(x)), 1)
        x = F.hardswish(self.last_pointwise(x))
        return self.classifier(torch.flatten(x, 1))


class OFA(MobileNetV3):
    """All five stages of MobileNetV3-Large; labels give the expansion itself."""

    STAGES = (
        *((24, 2, False, False), (40, 2, True, False), (80, 2, False, True)),
        *((112, 1, True, True), (160, 2, True, True)),
    )
    UNIT_OF_EXPANSION = 1


# NAS-Bench-201 ------------------------------------------------------------------------------

# All ways from the cell's input, node 0, to its output, node 3.
WAYS = ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3))


def used_edges(cell: Sequence[str]) -> dict[tuple[int, int], str]:
    """Edges of a cell that lie on a way without ``none``, by their ends, ordered by them."""
    operations = dict(zip(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), cell, strict=True))
    used = set()
    for way in WAYS:
        edges = list(pairwise(way))
        if all(operations[edge] != "none" for edge in edges):
            used.update(edges)
    return {edge: operation for edge, operation in operations.items() if edge in used}


class Cell(nn.Module):
    """A node is the sum of what arrives; where nothing does, the cell gives zeros."""

    def __init__(self, cell: Sequence[str], channels: int) -> None:
        super().__init__()
        self.operations = used_edges(cell)
        self.convolutions = nn.ModuleDict(
            {
                f"{begin}{end}": same_conv(channels, channels, int(operation[-1]))
                for (begin, end), operation in self.operations.items()
                if operation.startswith("nor_conv")
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x, *(torch.zeros_like(x) for _ in range(3))]
        for (begin, end), operation in self.operations.items():
            y = nodes[begin]
            if operation == "avg_pool_3x3":
                y = F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False)
            elif operation != "skip_connect":
                y = self.convolutions[f"{begin}{end}"](F.relu(y))
            nodes[end] = nodes[end] + y
        return nodes[3]


class Reduction(nn.Module):
    """Residual block of stride 2 whose shortcut is a mean over 2x2 pixels and a 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = same_conv(in_channels, out_channels, 3, stride=2)
        self.second = same_conv(out_channels, out_channels, 3)
        self.shortcut = same_conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        halved = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return self.second(F.relu(self.first(F.relu(x)))) + self.shortcut(halved)


class NASBench201(nn.Module):
    """Three times five cells, 16, 32 and 64 channels."""

    def __init__(self, architecture: Architecture, resolution: int, width_mult: float) -> None:
        super().__init__()
        self.resolution = resolution
        (cell,) = architecture.units
        layers: list[nn.Module] = []
        channels = scaled_channels(16, width_mult)
        self.stem = same_conv(3, channels, 3)
        for stage in range(3):
            if stage:
                wider = scaled_channels(16 * 2**stage, width_mult)
                layers.append(Reduction(channels, wider))
                channels = wider
            layers += [Cell(cell, channels) for _ in range(5)]
        self.cells = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes("nasbench201", resolution))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.resolution, self.resolution)
        x = F.relu(self.norm(self.cells(self.stem(images))))
        return self.classifier(x.mean(dim=(2, 3)))


# FBNet --------------------------------------------------------------------------------------


class FBNetBlock(nn.Module):
    """1x1, depthwise, 1x1, the 1x1s in groups and shuffled; or, to skip, a 1x1 where needed."""

    def __init__(self, label: str, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.resize: nn.Conv2d | None = None
        self.layers: nn.Sequential | None = None
        if label == "skip":
            if not self.residual:
                self.resize = same_conv(in_channels, out_channels, stride=stride)
            return
        match = re.fullmatch(r"k(\d)_e(\d)(_g2)?", label)
        assert match, label
        kernel, expansion, groups = int(match[1]), int(match[2]), 2 if match[3] else 1
        middle = in_channels * expansion
        self.layers = nn.Sequential(
            same_conv(in_channels, middle, groups=groups),
            nn.ReLU(),
            nn.ChannelShuffle(groups),
            same_conv(middle, middle, kernel, stride, groups=middle),
            nn.ReLU(),
            same_conv(middle, out_channels, groups=groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.layers is None:
            return x if self.resize is None else F.relu(self.resize(x))
        return x + self.layers(x) if self.residual else self.layers(x)


class FBNet(nn.Module):
    """For small images three halvings and 1,504 channels at the end, for large five and 1,984."""

    WIDTHS = (16, 24, 32, 64, 112, 184, 352)

    def __init__(self, architecture: Architecture, resolution: int, width_mult: float) -> None:
        super().__init__()
        self.resolution = resolution
        large = resolution >= 128
        channels = scaled_channels(16, width_mult)
        self.stem = same_conv(3, channels, 3, stride=2 if large else 1)
        blocks = []
        for number, (unit, base) in enumerate(zip(architecture.units, self.WIDTHS, strict=True)):
            halves = number in (2, 3, 5) or (large and number == 1)
            width = scaled_channels(base, width_mult)
            for position, label in enumerate(unit):
                blocks.append(FBNetBlock(label, channels, width, 1 + (halves and position == 0)))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last_conv = same_conv(channels, scaled_channels(1984 if large else 1504, width_mult))
        self.classifier = nn.Linear(self.last_conv.out_channels, classes("fbnet", resolution))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.resolution, self.resolution)
        x = F.relu(self.last_conv(self.blocks(F.relu(self.stem(images)))))
        return self.classifier(x.mean(dim=(2, 3)))


# DenseNet -----------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """Norm, 1x1 bottleneck of 4 times the growth, kxk; the result joins the input's channels."""

    def __init__(self, in_channels: int, growth: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.bottleneck = same_conv(in_channels, 4 * growth)
        self.conv = same_conv(4 * growth, growth, kernel)

    def forward(self, x: Tensor) -> Tensor:
        new = self.bottleneck(F.relu(self.norm(x)))
        new = self.conv(F.relu(new))
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Norm, 1x1 convolution to half the channels, mean over 2x2 pixels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = same_conv(in_channels, in_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-BC of five units with free depth, one kernel size per unit."""

    def __init__(self, architecture: Architecture, resolution: int, width_mult: float) -> None:
        super().__init__()
        self.resolution = resolution
        growth = scaled_channels(32, width_mult)
        channels = scaled_channels(64, width_mult)
        self.stem = same_conv(3, channels, kernel=7, stride=2)
        layers: list[nn.Module] = []
        for number, unit in enumerate(architecture.units):
            if number > 0:
                layers.append(Transition(channels))
                channels //= 2
            for label in unit:
                layers.append(DenseLayer(channels, growth, kernel_of(label)))
                channels += growth
        self.features = nn.Sequential(*layers)
        self.last_norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.resolution, self.resolution)
        x = F.max_pool2d(F.relu(self.stem(images)), kernel_size=3, stride=2, padding=1)
        x = F.relu(self.last_norm(self.features(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


# Weights ------------------------------------------------------------------------------------

Reference = ResNet | MobileNetV3 | DenseNet | NASBench201 | FBNet

NETWORKS: dict[str, type[Reference]] = {
    "resnet": ResNet,
    "mobilenetv3": MobileNetV3,
    "densenet": DenseNet,
    "nasbench201": NASBench201,
    "fbnet": FBNet,
    "ofa": OFA,
}

LAYERS = {"Conv": nn.Conv2d, "BatchNormalization": nn.BatchNorm2d, "Gemm": nn.Linear}


def layer_tensors(layer: nn.Module) -> list[Tensor]:
    """Weights of a layer in the order of the ONNX operator's inputs."""
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        return [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert layer.bias is not None
    return [layer.weight, layer.bias]


def load_onnx_weights(module: nn.Module, model: onnx.ModelProto) -> None:
    """Copies the initializers of ``model`` into ``module``, layer by layer in execution order.

    Raises:
        ValueError: the layers differ in number, kind, number of weights or shape, or an initializer
            belongs to no layer.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if any(name in arrays for name in node.input)]
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, tuple(LAYERS.values()))
    ]
    if len(nodes) != len(layers):
        raise ValueError(f"the graph has {len(nodes)} layers with weights, torch {len(layers)}")
    for node, (name, layer) in zip(nodes, layers, strict=True):
        if LAYERS.get(node.op_type) is not type(layer):
            raise ValueError(f"{node.name} is a {node.op_type}, {name} a {type(layer).__name__}")
        names = [source for source in node.input if source in arrays]
        copy_arrays(f"{node.name} -> {name}", layer_tensors(layer), [arrays.pop(n) for n in names])
    if arrays:
        raise ValueError(f"initializers without a layer: {', '.join(arrays)}")


def copy_arrays(where: str, targets: Sequence[Tensor], arrays: Sequence) -> None:
    """Copies arrays into tensors of exactly the same shapes."""
    expected = [tuple(target.shape) for target in targets]
    given = [array.shape for array in arrays]
    if expected != given:
        raise ValueError(f"{where}: torch has shapes {expected}, the graph {given}")
    with torch.no_grad():
        for target, array in zip(targets, arrays, strict=True):
            target.copy_(torch.from_numpy(array.copy()))


def reference_network(
    architecture: Architecture, resolution: int, width_mult: float, model: onnx.ModelProto
) -> nn.Module:
    """The torch network of an architecture in inference mode, with the weights of ``model``."""
    network = NETWORKS[architecture.space](architecture, resolution, width_mult)
    load_onnx_weights(network, model)
    return network.eval()
