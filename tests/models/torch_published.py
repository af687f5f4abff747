"""The published spaces with choices of units or of the network, written as torch modules.

They follow the original descriptions, with batch normalisation folded into its convolution. Weights
are read in the order in which a graph makes them (:func:`load_in_order`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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


class ClippedResidual(InvertedResidual):
    """MobileNetV2's block, with ReLU6."""

    def __init__(self, before: int, out: int, kernel: int, expansion: int, stride: int) -> None:
        super().__init__(before, out, kernel, expansion, stride, False, False)
        self.activation = F.relu6


class Proxyless(nn.Module):
    """ProxylessNAS on MobileNetV2."""

    STAGES = ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        channels, narrow = (scaled_channels(each, width_mult) for each in (32, 16))
        self.stem = same_conv(3, channels, 3, stride=2)
        blocks = [ClippedResidual(channels, narrow, 3, 1, 1)]
        channels = narrow
        for (base, first), unit in zip(self.STAGES, architecture.units, strict=True):
            out = scaled_channels(base, width_mult)
            for position, label in enumerate(unit):
                times = int(expansion_of(label))
                stride = 1 if position else first
                kernel = kernel_of(label)
                blocks.append(ClippedResidual(channels, out, kernel, times, stride))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.last = same_conv(channels, max(1280, scaled_channels(1280, width_mult)))
        self.classifier = nn.Linear(self.last.out_channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.last(self.blocks(F.relu6(self.stem(images)))))
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


class UniversalInvertedBottleneck(nn.Module):
    """Depthwise, 1x1 and ReLU, depthwise and ReLU, 1x1; a kernel of 0 leaves a depthwise out."""

    def __init__(
        self, before: int, out: int, start: int, middle: int, expansion: int, stride: int
    ) -> None:
        super().__init__()
        inner = before * expansion
        first, second = (stride, 1) if start and not middle else (1, stride)
        self.start = same_conv(before, before, start, first, groups=before) if start else None
        self.expand = same_conv(before, inner, stride=1 if start or middle else stride)
        self.middle = same_conv(inner, inner, middle, second, groups=inner) if middle else None
        self.project = same_conv(inner, out)
        self.residual = stride == 1 and before == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.start is None else self.start(x)
        y = F.relu(self.expand(y))
        y = y if self.middle is None else F.relu(self.middle(y))
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV4(nn.Module):
    """MobileNetV4-Conv-M."""

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        stem, fused, *widths, last, features = (
            scaled_channels(each, width_mult) for each in (32, 48, 80, 160, 256, 960, 1280)
        )
        self.stem = same_conv(3, stem, 3, stride=2)
        self.fused = same_conv(stem, 4 * stem, 3, stride=2)
        self.project = same_conv(4 * stem, fused)
        blocks, channels = [], fused
        for width, unit in zip(widths, architecture.units, strict=True):
            for position, label in enumerate(unit):
                start, middle, expansion = map(int, re.findall(r"\d+", label))
                stride = 1 if position else 2
                blocks.append(
                    UniversalInvertedBottleneck(channels, width, start, middle, expansion, stride)
                )
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = same_conv(channels, last)
        self.features = same_conv(last, features)
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.project(F.relu(self.fused(F.relu(self.stem(images)))))
        x = F.relu(self.last(self.blocks(x))).mean(dim=(2, 3), keepdim=True)
        return self.classifier(F.relu(self.features(x)).flatten(1))


class SiLUConv(nn.Sequential):
    """Convolution and SiLU."""

    def __init__(self, before: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        padding = (kernel - 1) // 2  # 2 of the stem's 6
        super().__init__(nn.Conv2d(before, out, kernel, stride, padding), nn.SiLU())


class C3(nn.Module):
    """YOLOv5's C3 with bottlenecks of their own kernels and expansions."""

    def __init__(self, before: int, out: int, labels: Sequence[str], shortcut: bool) -> None:
        super().__init__()
        inner = scaled_channels(Fraction(out, 2), 1)
        self.shortcut = shortcut
        self.cv1, self.cv2 = SiLUConv(before, inner), SiLUConv(before, inner)
        blocks = []
        for label in labels:
            middle = scaled_channels(inner * expansion_of(label), 1)
            last = SiLUConv(middle, inner, kernel_of(label))
            blocks.append(nn.Sequential(SiLUConv(inner, middle), last))
        self.m = nn.ModuleList(blocks)
        self.cv3 = SiLUConv(2 * inner, out)

    def forward(self, x: Tensor) -> Tensor:
        y, other = self.cv1(x), self.cv2(x)
        for block in self.m:
            y = y + block(y) if self.shortcut else block(y)
        return self.cv3(torch.cat((y, other), 1))


class SPPF(nn.Module):
    """Three pools in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = scaled_channels(Fraction(channels, 2), 1)
        self.cv1, self.cv2 = SiLUConv(channels, inner), SiLUConv(4 * inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y = F.max_pool2d(x, 5, 1, 2)
        z = F.max_pool2d(y, 5, 1, 2)
        return self.cv2(torch.cat((x, y, z, F.max_pool2d(z, 5, 1, 2)), 1))


class Branch(nn.Sequential):
    """Two convolutions and the numbers of one scale, of boxes or of classes."""

    def __init__(self, before: int, width: int, numbers: int) -> None:
        last = nn.Conv2d(width, numbers, 1)
        super().__init__(SiLUConv(before, width, 3), SiLUConv(width, width, 3), last)


class Detector(nn.Module):
    """YOLOv5 with the head of YOLOv8, without its distributions."""

    def __init__(self, architecture: Architecture, width_mult: float) -> None:
        super().__init__()
        *stages, neck = architecture.units
        shares = [Fraction(label.removeprefix("w")) for label in architecture.unit_choices[:-1]]
        widths = [
            scaled_channels(base * share, width_mult)
            for base, share in zip((64, 128, 256, 512), shares, strict=True)
        ]
        channels = scaled_channels(Fraction(widths[0], 2), 1)
        self.stem = SiLUConv(3, channels, 6, 2)
        self.stages = nn.ModuleList()
        for width, labels in zip(widths, stages, strict=True):
            down = SiLUConv(channels, width, 3, 2)
            self.stages.append(nn.Sequential(down, C3(width, width, labels, shortcut=True)))
            channels = width
        self.pool = SPPF(channels)
        _, small, middle, large = widths
        self.up_large = SiLUConv(large, middle)
        self.top_middle = C3(2 * middle, middle, neck, False)
        self.up_middle = SiLUConv(middle, small)
        self.top_small = C3(2 * small, small, neck, False)
        self.down_small = SiLUConv(small, small, 3, 2)
        self.middle = C3(2 * small, middle, neck, False)
        self.down_middle = SiLUConv(middle, middle, 3, 2)
        self.large = C3(2 * middle, large, neck, False)
        boxes, scores = max(16, scaled_channels(Fraction(small, 4), 1)), max(small, 80)
        self.heads = nn.ModuleList(
            nn.ModuleList((Branch(width, boxes, 4), Branch(width, scores, 80)))
            for width in (small, middle, large)
        )

    def forward(self, images: Tensor) -> Tensor:
        x, scales = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        _, small, middle, large = scales
        n5 = self.up_large(self.pool(large))
        x = self.top_middle(torch.cat((F.interpolate(n5, scale_factor=2), middle), 1))
        n4 = self.up_middle(x)
        small = self.top_small(torch.cat((F.interpolate(n4, scale_factor=2), small), 1))
        middle = self.middle(torch.cat((self.down_small(small), n4), 1))
        large = self.large(torch.cat((self.down_middle(middle), n5), 1))
        found = []
        for (boxes, scores), scale in zip(self.heads, (small, middle, large), strict=True):
            numbers = torch.cat((boxes(scale), scores(scale).sigmoid()), 1)
            found.append(numbers.flatten(2).transpose(1, 2))
        return torch.cat(found, 1)


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
    elif architecture.space == "mobilenetv4":
        network = MobileNetV4(architecture, width_mult)
    elif architecture.space == "detector":
        network = Detector(architecture, width_mult)
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
    elif isinstance(network, Llama):
        for module in network.modules():
            if isinstance(module, nn.Embedding | nn.Linear | nn.RMSNorm):
                yield module.weight, isinstance(module, nn.Linear)
    elif isinstance(network, tuple(_WITHOUT_IMAGES.values())):
        for layer in network.modules():
            if isinstance(layer, nn.Embedding | nn.LayerNorm | nn.Linear):
                yield layer.weight, isinstance(layer, nn.Linear)
                if getattr(layer, "bias", None) is not None:
                    yield layer.bias, False
    else:
        yield from ((each, False) for each in network.parameters())
