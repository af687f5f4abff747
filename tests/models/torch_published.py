"""The published spaces with choices of units or of the network, written as torch modules.

They follow the original descriptions, with batch normalisation folded into its convolution. Weights
are read in the order in which a graph makes them (:func:`load_in_order`).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from esm_models.architecture import Architecture
from tests.models.torch_reference import (
    CLASSES,
    InvertedResidual,
    expansion_of,
    kernel_of,
    same_conv,
    scaled_channels,
)


class OFABottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1; the shortcut is averaged, then projected."""

    def __init__(self, before: int, out: int, share: Fraction, stride: int) -> None:
        super().__init__()
        middle = scaled_channels(out * share, 1)
        self.stride = stride
        self.projection = same_conv(before, out) if stride > 1 or before != out else None
        self.reduce = same_conv(before, middle)
        self.spatial = same_conv(middle, middle, 3, stride)
        self.expand = same_conv(middle, out)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.stride > 1:
            identity = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        if self.projection is not None:
            identity = self.projection(identity)
        out = F.relu(self.spatial(F.relu(self.reduce(x))))
        return F.relu(self.expand(out) + identity)


class OFAResNet50(nn.Module):
    """Once-for-all's ResNet-50."""

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        share, _, residual = architecture.choice.removeprefix("w").partition("b")
        channels = scaled_channels(64 * Fraction(share), width_mult)
        middle = scaled_channels(Fraction(channels, 2), 1)
        self.first = same_conv(3, middle, 3, stride=2)
        self.second = same_conv(middle, middle, 3) if residual == "1" else None
        self.third = same_conv(middle, channels, 3)
        blocks = []
        for stage, (label, unit) in enumerate(
            zip(architecture.unit_choices, architecture.units, strict=True)
        ):
            base = 256 * 2**stage * Fraction(label.removeprefix("w"))
            out = scaled_channels(base, width_mult)
            for position, block in enumerate(unit):
                stride = 2 if stage and not position else 1
                blocks.append(OFABottleneck(channels, out, expansion_of(block), stride))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images))
        if self.second is not None:
            x = x + F.relu(self.second(x))
        x = F.max_pool2d(F.relu(self.third(x)), 3, stride=2, padding=1)
        return self.classifier(self.blocks(x).mean(dim=(2, 3)))


class Proxyless(nn.Module):
    """ProxylessNAS on MobileNetV2, with ReLU."""

    STAGES = ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        channels, narrow = (scaled_channels(each, width_mult) for each in (32, 16))
        self.stem = same_conv(3, channels, 3, stride=2)
        blocks = [InvertedResidual(channels, narrow, 3, 1, 1, False, False)]
        channels = narrow
        for (base, first), unit in zip(self.STAGES, architecture.units, strict=True):
            out = scaled_channels(base, width_mult)
            for position, label in enumerate(unit):
                times = int(expansion_of(label))
                stride = 1 if position else first
                kernel = kernel_of(label)
                blocks.append(InvertedResidual(channels, out, kernel, times, stride, False, False))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.last = same_conv(channels, max(1280, scaled_channels(1280, width_mult)))
        self.classifier = nn.Linear(self.last.out_channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.last(self.blocks(F.relu(self.stem(images)))))
        return self.classifier(x.mean(dim=(2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, size: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.out = nn.Linear(heads * size, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        read = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.out(read)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class AutoFormer(nn.Module):
    """AutoFormer-Tiny without relative positions."""

    def __init__(self, architecture: Architecture, width_mult: float, tokens: int) -> None:
        super().__init__()
        width = scaled_channels(int(architecture.choice.removeprefix("d")), width_mult)
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, tokens + 1, width))
        blocks = []
        for label in architecture.units[0]:
            heads, _, ratio = label.removeprefix("h").partition("r")
            hidden = int(width * Fraction(ratio))
            size = scaled_channels(64, width_mult)
            blocks.append(TransformerBlock(width, int(heads), size, hidden))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.classifier(self.norm(self.blocks(x))[:, 1:].mean(dim=1))


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions and grouped keys, and SwiGLU."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, size: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.norm1 = nn.RMSNorm(hidden, eps=1e-6)
        self.query = nn.Linear(hidden, heads * size, bias=False)
        self.key = nn.Linear(hidden, kv_heads * size, bias=False)
        self.value = nn.Linear(hidden, kv_heads * size, bias=False)
        self.out = nn.Linear(heads * size, hidden, bias=False)
        self.norm2 = nn.RMSNorm(hidden, eps=1e-6)
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norm1(x)
        query = _turned(self.query(y), self.heads, positions)
        key = _turned(self.key(y), self.kv_heads, positions)
        value = self.value(y)
        if past:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        q, k, v = (
            each.unflatten(-1, (heads, -1)).transpose(1, 2)
            for each, heads in ((query, self.heads), (key, self.kv_heads), (value, self.kv_heads))
        )
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (k, v))
        new, keys = q.shape[2], k.shape[2]
        read = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~read, -torch.inf)
        x = x + self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), key, value


def _turned(x: Tensor, heads: int, positions: Tensor) -> Tensor:
    """Turn each pair of channels, one of each half of a head, by its angle."""
    x = x.unflatten(-1, (heads, -1))
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * 10_000.0 ** (-torch.arange(half) / half)
    pairs = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], dim=-1))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
    return torch.cat([turned[..., 0], turned[..., 1]], dim=-1).flatten(2)


class Llama(nn.Module):
    """Decoder language model; gives the scores of the next token, and all keys and values."""

    def __init__(self, architecture: Architecture, width_mult: float, vocabulary: int) -> None:
        super().__init__()
        hidden = scaled_channels(int(architecture.choice.removeprefix("d")), width_mult)
        self.embedding = nn.Embedding(vocabulary, hidden)
        blocks = []
        for label in architecture.units[0]:
            heads, _, rest = label.removeprefix("h").partition("g")
            kv_heads, _, ffn = rest.partition("f")
            size, inner = scaled_channels(64, width_mult), scaled_channels(int(ffn), width_mult)
            blocks.append(LlamaBlock(hidden, int(heads), int(kv_heads), size, inner))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        x, present = self.embedding(tokens), []
        for number, block in enumerate(self.blocks):
            x, key, value = block(x, positions, past[2 * number : 2 * number + 2])
            present += [key, value]
        return (self.head(self.norm(x[:, -1:])), *present)


def published_network(
    architecture: Architecture, resolution: int, width_mult: float, model: onnx.ModelProto
) -> nn.Module:
    """The torch network of an architecture in inference mode, with the weights of ``model``."""
    network: nn.Module
    if architecture.space == "ofa-resnet50":
        network = OFAResNet50(architecture, width_mult)
    elif architecture.space == "proxyless":
        network = Proxyless(architecture, width_mult)
    else:
        network = AutoFormer(architecture, width_mult, (resolution // 16) ** 2)
    load_in_order(network, model)
    return network.eval()


def load_in_order(network: nn.Module, model: onnx.ModelProto) -> None:
    """Copy the initializers, which a graph makes in the order of its layers, into a module."""
    arrays = [torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer]
    targets = [*_parameters(network)]
    assert len(arrays) == len(targets)
    for array, (target, is_transposed) in zip(arrays, targets, strict=True):
        values = array.T if is_transposed else array
        assert values.shape == target.shape
        with torch.no_grad():
            target.copy_(values)


def _parameters(network: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Yield the parameters in the order of the layers, and whether the graph has them transposed.

    A graph has a linear layer on more than two dimensions as a matrix product.
    """
    if isinstance(network, AutoFormer):
        yield from ((each, False) for each in network.patches.parameters())
        yield from ((each, False) for each in (network.token, network.positions))
        for module in [*network.blocks, network.norm]:
            for layer in module.modules():
                if isinstance(layer, nn.LayerNorm | nn.Linear):
                    yield layer.weight, isinstance(layer, nn.Linear)
                    yield layer.bias, False
        yield from ((each, False) for each in network.classifier.parameters())
    elif isinstance(network, Llama):
        for module in network.modules():
            if isinstance(module, nn.Embedding | nn.Linear | nn.RMSNorm):
                yield module.weight, isinstance(module, nn.Linear)
    else:
        yield from ((each, False) for each in network.parameters())
