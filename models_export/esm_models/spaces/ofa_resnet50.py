"""Once-for-all's ResNet-50 search space (Cai et al. 2020)."""

from __future__ import annotations

from fractions import Fraction

from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit, round_channels

WIDTHS = (256, 512, 1024, 2048)
STRIDES = (1, 2, 2, 2)
SHARES = (Fraction(13, 20), Fraction(4, 5), Fraction(1))


class OFAResNet50Space(SearchSpace):
    """Four units of bottleneck blocks, each unit with a width of its own.

    A unit has its base depth of 2, 2, 4 or 2 blocks and up to two more. Its width is 0.65, 0.8 or 1
    times that of ResNet-50, and each block's inner width is 0.2, 0.25 or 0.35 times that. The stem
    has a width in the same steps, and may have a residual convolution. Blocks of a smaller image
    begin with an average pool on the shortcut. Each architecture has its own resolution, 128 to 224
    in steps of 4, unless the space has a fixed one.
    """

    name = "ofa-resnet50"
    units = tuple(
        Unit(
            depths=(base, base + 1, base + 2),
            features=(
                Feature("expansion", "e", (Fraction(1, 5), Fraction(1, 4), Fraction(7, 20))),
            ),
            choices=(Feature("width", "w", SHARES),),
        )
        for base in (2, 2, 4, 2)
    )
    choices = (Feature("stem_width", "w", SHARES), Feature("stem_blocks", "b", (0, 1)))
    resolutions = tuple(range(128, 225, 4))

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        with net.scope("stem"):
            width = self.channels(64 * float(units["stem_width"]))
            middle = round_channels(width / 2)
            x = net.relu(net.conv(net.input, middle, kernel=3, stride=2))
            if units["stem_blocks"]:
                x = net.add(x, net.relu(net.conv(x, middle, kernel=3)))
            x = net.max_pool(net.relu(net.conv(x, width, kernel=3)))
        for number, (unit, base, stride) in enumerate(
            zip(units, WIDTHS, STRIDES, strict=True), start=1
        ):
            out = self.channels(base * float(unit["width"]))
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._bottleneck(net, x, out, block, stride if position == 1 else 1)
        with net.scope("head"):
            return net.linear(net.flatten(net.global_average_pool(x)), 1000)

    def _bottleneck(self, net: Network, x: str, out: int, block: Option, stride: int) -> str:
        middle = round_channels(out * float(block["expansion"]))
        shortcut = net.same_average_pool(x, 2, 2) if stride > 1 else x
        if stride > 1 or net.shape(x)[1] != out:
            shortcut = net.conv(shortcut, out)
        y = net.relu(net.conv(x, middle))
        y = net.relu(net.conv(y, middle, kernel=3, stride=stride))
        return net.relu(net.add(net.conv(y, out), shortcut))
