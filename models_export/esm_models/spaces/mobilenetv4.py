"""MobileNetV4 search space (Qin et al. 2024): three stages of universal inverted bottlenecks."""

from __future__ import annotations

from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit

BLOCK = (
    Feature("start", "s", (0, 3, 5)),
    Feature("middle", "m", (0, 3, 5)),
    Feature("expansion", "e", (2, 4, 6)),
)
"""Kernels of the two depthwise convolutions, 0 for none, and the expansion ratio."""
WIDTHS = (80, 160, 256)
DEPTHS = ((1, 2, 3), (4, 6, 8), (7, 9, 11))


class MobileNetV4Space(SearchSpace):
    """MobileNetV4-Conv-M with free depth and a choice of each block.

    A universal inverted bottleneck is a depthwise convolution without activation, a 1x1
    convolution to ``expansion`` times the channels, a depthwise convolution, and a 1x1 convolution
    without activation. Each depthwise convolution may be absent: with both it is the paper's
    ExtraDW, with the second alone an inverted bottleneck, with the first alone ConvNext-like, and
    with none FFN. The last depthwise convolution has the stride. If the shapes agree, the input is
    added to the result.

    As published: kernels 3 and 5, the widths 80, 160 and 256 of stages that halve the image, the
    stem of a convolution and a fused inverted bottleneck, and the head. Conv-M is one of the
    networks, with 2, 8 and 11 blocks. The grid is ours: its expansion ratios are those of Conv-M,
    where the paper's search has a constant 4, and its depths are 1 to 3, 4 to 8 and 7 to 11. The
    first block of a stage is never FFN in the paper. Here it then has the stride on its first 1x1
    convolution.
    """

    name = "mobilenetv4"
    units = tuple(Unit(depths, BLOCK) for depths in DEPTHS)
    default_resolution = 256

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        with net.scope("stem"):
            x = net.relu(net.conv(net.input, self.channels(32), kernel=3, stride=2))
            x = net.relu(net.conv(x, 4 * net.shape(x)[1], kernel=3, stride=2))
            x = net.conv(x, self.channels(48))
        for number, (unit, width) in enumerate(zip(units, WIDTHS, strict=True), start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._block(net, x, block, width, stride=2 if position == 1 else 1)
        with net.scope("head"):
            x = net.relu(net.conv(x, self.channels(960)))
            x = net.relu(net.conv(net.global_average_pool(x), self.channels(1280)))
            return net.linear(net.flatten(x), 1000)

    def _block(self, net: Network, x: str, block: Option, width: int, stride: int) -> str:
        before, out = net.shape(x)[1], self.channels(width)
        start, middle = int(block["start"]), int(block["middle"])
        inner = before * int(block["expansion"])
        y = x
        if start:
            y = net.conv(y, before, kernel=start, stride=1 if middle else stride, groups=before)
        y = net.relu(net.conv(y, inner, stride=1 if start or middle else stride))
        if middle:
            y = net.relu(net.conv(y, inner, kernel=middle, stride=stride, groups=inner))
        y = net.conv(y, out)
        return net.add(x, y) if stride == 1 and before == out else y
