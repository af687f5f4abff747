"""Search space of detectors like YOLOv5: CSP stages, a neck, and a head without anchors."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from esm_models.errors import InvalidSpaceError
from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit, round_channels

BLOCK = (Feature("kernel", "k", (3, 5)), Feature("expansion", "e", (Fraction(1, 2), Fraction(1))))
WIDTH = Feature("width", "w", (Fraction(1, 2), Fraction(3, 4), Fraction(1)))
DEPTHS = (1, 2, 3)
WIDTHS = (64, 128, 256, 512)
"""Output channels of each stage, times its width."""
NECK = "unit5"
CLASSES = 80
STEP = 32
"""Image pixels per pixel of the smallest scale."""


class DetectorSpace(SearchSpace):
    """Four backbone stages and a neck of cross-stage partial (CSP) blocks, 80 classes.

    A stage halves the image. It splits into two branches of half its width, of which one has the
    blocks, and joins them. A block is a 1x1 and a kxk convolution. In the backbone its input is
    added to the result. After the last stage, three pools of 5 x 5 pixels follow each other (SPPF).
    The neck reads the last three stages: two modules on the way to the larger scales, two on the
    way back. It is the fifth unit. Its blocks are in all four modules, which take the widths of
    the stages.

    The output is (batch, boxes, 4 + 80), from the largest scale to the smallest: the distances
    from a pixel to the four sides of its box, and a score from 0 to 1 for every class.

    As published: order and kind of all layers, from YOLOv5 (version 6), and the widths of the head,
    from YOLOv8. YOLOv5's networks n and s are in the space up to their heads, with widths 1/2 and
    1, and 1, 2, 3, 1 and 1 blocks ``k3e1``. The grid is ours: widths 1/2, 3/4 and 1, depths 1 to 3,
    kernels 3 and 5, inner expansion 1/2 and 1. A distance is one number here, without
    distribution. Boxes in pixels and the suppression of overlaps are left out.

    Raises:
        InvalidSpaceError: the resolution is no multiple of 32.
    """

    name = "detector"
    units = (*(Unit(DEPTHS, BLOCK, (WIDTH,)) for _ in WIDTHS), Unit(DEPTHS, BLOCK))
    min_resolution = STEP
    default_resolution = 640

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.resolution % STEP:
            raise InvalidSpaceError(
                f"{self.resolution} does not suit {self.name}: give a multiple of {STEP}",
                "resolution",
            )

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        *stages, neck = units
        widths = [
            self.channels(base * float(stage["width"]))
            for base, stage in zip(WIDTHS, stages, strict=True)
        ]
        with net.scope("stem"):
            x = _conv(net, net.input, round_channels(widths[0] / 2), 6, stride=2, padding=2)
        scales = []
        for number, (stage, width) in enumerate(zip(stages, widths, strict=True), start=1):
            with net.scope(f"unit{number}.down"):
                x = _conv(net, x, width, 3, stride=2)
            x = _module(net, f"unit{number}", 1, x, width, stage, is_residual=True)
            scales.append(x)
        with net.scope("unit4.pool"):
            scales[-1] = _pooled(net, x, widths[-1])
        return _head(net, _neck(net, scales[1:], widths[1:], neck))


def _conv(
    net: Network,
    x: str,
    channels: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int | None = None,
) -> str:
    return net.silu(net.conv(x, channels, kernel, stride, padding=padding))


def _module(
    net: Network,
    unit: str,
    number: int,
    x: str,
    width: int,
    blocks: Sequence[Option],
    is_residual: bool,
) -> str:
    """Add a module of two branches, of which one has the blocks."""
    inner = round_channels(width / 2)
    with net.scope(f"{unit}.split{number}"):
        y, other = _conv(net, x, inner), _conv(net, x, inner)
    for position, block in enumerate(blocks, start=1):
        with net.scope(f"{unit}.block{position}"):
            z = _conv(net, y, round_channels(inner * float(block["expansion"])))
            z = _conv(net, z, inner, int(block["kernel"]))
            y = net.add(y, z) if is_residual else z
    with net.scope(f"{unit}.join{number}"):
        return _conv(net, net.concat([y, other]), width)


def _pooled(net: Network, x: str, width: int) -> str:
    pools = [_conv(net, x, round_channels(width / 2))]
    for _ in range(3):
        pools.append(net.max_pool(pools[-1], kernel=5, stride=1))
    return _conv(net, net.concat(pools), width)


def _neck(
    net: Network, scales: Sequence[str], widths: Sequence[int], blocks: Sequence[Option]
) -> list[str]:
    """Add the neck on three scales from the largest on, and return its result at each."""
    x = scales[-1]
    smaller: list[str] = []
    results: list[str] = []
    for number, (scale, width) in enumerate(zip(scales[1::-1], widths[1::-1], strict=True), 1):
        with net.scope(f"{NECK}.up{number}"):
            smaller.append(_conv(net, x, width))
            x = net.concat([net.upsample(smaller[-1], 2), scale])
        x = _module(net, NECK, number, x, width, blocks, is_residual=False)
    results.append(x)
    for number, (scale, width) in enumerate(zip(smaller[::-1], widths[1:], strict=True), 1):
        with net.scope(f"{NECK}.down{number}"):
            x = net.concat([_conv(net, x, net.shape(x)[1], 3, stride=2), scale])
        x = _module(net, NECK, 2 + number, x, width, blocks, is_residual=False)
        results.append(x)
    return results


def _head(net: Network, scales: Sequence[str]) -> str:
    """Add the boxes and scores of all scales, (batch, boxes, 4 + classes)."""
    first = net.shape(scales[0])[1]
    found = []
    for number, x in enumerate(scales, start=1):
        with net.scope(f"head.scale{number}"):
            boxes = _branch(net, x, max(16, round_channels(first / 4)), 4)
            scores = net.sigmoid(_branch(net, x, max(first, CLASSES), CLASSES))
            y = net.concat([boxes, scores])
            batch, numbers, rows, columns = net.shape(y)
            y = net.reshape(y, (batch, numbers, rows * columns))
            found.append(net.transpose(y, (0, 2, 1)))
    with net.scope("head"):
        return net.concat(found, axis=1)


def _branch(net: Network, x: str, width: int, results: int) -> str:
    x = _conv(net, _conv(net, x, width, 3), width, 3)
    return net.conv(x, results, norm=False)
