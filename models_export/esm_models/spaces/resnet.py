"""ResNet search space (ESM, Table I): 4 units of 1-7 bottleneck blocks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace


class ResNetSpace(SearchSpace):
    """ResNet-50's bottleneck network with free depth, kernel and bottleneck width.

    From ESM's Table I: 4 units, 1-7 blocks per unit, kernel {3, 5, 7}, width expansion
    {1/2, 2/3, 1}; 8.38e26 architectures. The stage widths are missing in the available text. This
    space has ResNet-50's output widths (256, 512, 1024, 2048). The expansion ratio multiplies the
    bottleneck's width, a quarter of those. Stem, strides and head are ResNet-50's, with the stride
    on the middle convolution.
    """

    name = "resnet"
    depths = (tuple(range(1, 8)),) * 4
    features = (
        Feature("kernel", "k", (3, 5, 7)),
        Feature("expansion", "e", (Fraction(1, 2), Fraction(2, 3), Fraction(1))),
    )
    widths = (256, 512, 1024, 2048)
    strides = (1, 2, 2, 2)

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        with net.scope("stem"):
            x = net.relu(net.conv(net.input, self.channels(64), kernel=7, stride=2))
            x = net.max_pool(x)
        for number, (unit, width, stride) in enumerate(
            zip(units, self.widths, self.strides, strict=True), start=1
        ):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._bottleneck(net, x, width, block, stride if position == 1 else 1)
        with net.scope("head"):
            return net.linear(net.flatten(net.global_average_pool(x)), 1000)

    def _bottleneck(self, net: Network, x: str, width: int, block: Option, stride: int) -> str:
        out = self.channels(width)
        middle = self.channels(width / 4 * float(block["expansion"]))
        shortcut = x
        if stride > 1 or net.shape(x)[1] != out:
            shortcut = net.conv(x, out, stride=stride)
        y = net.relu(net.conv(x, middle))
        y = net.relu(net.conv(y, middle, kernel=int(block["kernel"]), stride=stride))
        return net.relu(net.add(net.conv(y, out), shortcut))
