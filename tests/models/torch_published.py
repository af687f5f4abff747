"""The published spaces with choices of units or of the network, written as torch modules.

They follow the original descriptions, with batch normalisation folded into its convolution. Weights
are read in the order in which a graph makes them (:func:`load_in_order`).
"""

from __future__ import annotations

import re
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


class Attention(nn.Module):
    """Multi-head attention to the sequence itself, or to another one of width ``other``."""

    def __init__(self, width: int, inner: int, heads: int, other: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.Linear(other or width, (2 if other else 3) * inner)
        self.query = nn.Linear(width, inner) if other else None
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, read: Tensor | None = None, causal: bool = False) -> Tensor:
        if self.query is None:
            q, k, v = self.joint(x).chunk(3, dim=-1)
        else:
            q, (k, v) = self.query(x), self.joint(read).chunk(2, dim=-1)
        return self.out(self.attend(q, k, v, causal))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Two layers with ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class HATLayer(nn.Module):
    """Post-norm layer of HAT's encoder, or of its decoder where it reads the encoder.

    A decoder reads the last layers of an encoder, whose width is ``encoder``.
    """

    def __init__(self, label: str, width: int, width_mult: float, encoder: int = 0) -> None:
        super().__init__()
        chosen = re.fullmatch(r"f(\d+)h(\d)(?:c(\d)l(\d))?", label)
        assert chosen is not None
        ffn, heads, cross_heads, layers = (int(each or 0) for each in chosen.groups())
        inner = scaled_channels(512, width_mult)
        self.layers = layers
        self.own = Attention(width, inner, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross = Attention(width, inner, cross_heads, encoder) if layers else None
        self.norm2 = nn.LayerNorm(width) if layers else None
        self.feed = FeedForward(width, scaled_channels(ffn, width_mult))
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, encoded: list[Tensor]) -> Tensor:
        x = self.norm1(x + self.own(x, causal=self.cross is not None))
        if self.cross is not None and self.norm2 is not None:
            read = torch.cat(encoded[::-1][: self.layers], dim=1)
            x = self.norm2(x + self.cross(x, read))
        return self.norm3(x + self.feed(x))


class Embedding(nn.Module):
    """Scaled embeddings of tokens and sinusoids of their positions."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        width = self.table.embedding_dim
        places = first + torch.arange(tokens.shape[1], dtype=torch.float64)
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        angles = places[:, None] / 10_000**exponents
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1)
        return width**0.5 * self.table(tokens) + sinusoids.float()


class HAT(nn.Module):
    """HAT's transformer over a source and a target."""

    VOCABULARY = 32_768

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        encoder, decoder = (
            scaled_channels(int(each.removeprefix("d")), width_mult)
            for each in architecture.unit_choices
        )
        first, second = architecture.units
        self.source = Embedding(self.VOCABULARY, encoder)
        self.encoder = nn.ModuleList(HATLayer(each, encoder, width_mult) for each in first)
        self.target = Embedding(self.VOCABULARY, decoder)
        self.decoder = nn.ModuleList(
            HATLayer(each, decoder, width_mult, encoder) for each in second
        )
        self.classifier = nn.Linear(decoder, self.VOCABULARY, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        encoded = [self.source(source)]
        for layer in self.encoder:
            encoded.append(layer(encoded[-1], []))
        x = self.target(target)
        for layer in self.decoder:
            x = layer(x, encoded)
        return self.classifier(x)


class HATEncoder(nn.Module):
    """Encoder of HAT's transformer."""

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        (choice,), (unit,) = architecture.unit_choices, architecture.units
        width = scaled_channels(int(choice.removeprefix("d")), width_mult)
        self.source = Embedding(HAT.VOCABULARY, width)
        self.layers = nn.ModuleList(HATLayer(each, width, width_mult) for each in unit)

    def forward(self, source: Tensor) -> Tensor:
        x = self.source(source)
        for layer in self.layers:
            x = layer(x, [])
        return x


class HATStep(nn.Module):
    """One step of the decoder of HAT's transformer, with keys and values kept before.

    The layer of the encoder's keys and values is not part of a step.
    """

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        (choice,), (unit,) = architecture.unit_choices, architecture.units
        width = scaled_channels(int(choice.removeprefix("d")), width_mult)
        self.target = Embedding(HAT.VOCABULARY, width)
        self.layers = nn.ModuleList(HATLayer(each, width, width_mult, width) for each in unit)
        for layer in self.layers:
            layer.cross.joint = None
        self.classifier = nn.Linear(width, HAT.VOCABULARY, bias=False)

    def forward(self, token: Tensor, *caches: Tensor) -> Tensor:
        x = self.target(token, first=caches[0].shape[1])
        for number, layer in enumerate(self.layers):
            past_key, past_value, key, value = caches[4 * number : 4 * number + 4]
            q, k, v = layer.own.joint(x).chunk(3, dim=-1)
            k, v = torch.cat([past_key, k], dim=1), torch.cat([past_value, v], dim=1)
            x = layer.norm1(x + layer.own.out(layer.own.attend(q, k, v)))
            read = layer.cross.attend(layer.cross.query(x), key, value)
            x = layer.norm2(x + layer.cross.out(read))
            x = layer.norm3(x + layer.feed(x))
        return self.classifier(x)


_WITHOUT_IMAGES: dict[str, type[nn.Module]] = {
    "hat": HAT,
    "hat-encoder": HATEncoder,
    "hat-step": HATStep,
}


def published_network(
    architecture: Architecture, resolution: int, width_mult: float, model: onnx.ModelProto
) -> nn.Module:
    """The torch network of an architecture in inference mode, with the weights of ``model``."""
    network: nn.Module
    if architecture.space == "ofa-resnet50":
        network = OFAResNet50(architecture, width_mult)
    elif architecture.space == "proxyless":
        network = Proxyless(architecture, width_mult)
    elif architecture.space in _WITHOUT_IMAGES:
        network = _WITHOUT_IMAGES[architecture.space](architecture, width_mult)
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
    elif isinstance(network, tuple(_WITHOUT_IMAGES.values())):
        for layer in network.modules():
            if isinstance(layer, nn.Embedding | nn.LayerNorm | nn.Linear):
                yield layer.weight, isinstance(layer, nn.Linear)
                if getattr(layer, "bias", None) is not None:
                    yield layer.bias, False
    else:
        yield from ((each, False) for each in network.parameters())
