"""Search space of ProxylessNAS on MobileNetV2 (Cai et al. 2019; Once-for-all, Cai et al. 2020)."""

from __future__ import annotations

from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit

BLOCK = (Feature("kernel", "k", (3, 5, 7)), Feature("expansion", "e", (3, 4, 6)))
STAGES = ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))
"""Output channels and stride of each unit."""


class ProxylessSpace(SearchSpace):
    """Five units of 2 to 4 inverted-residual blocks of MobileNetV2, and one of a single block.

    This is the main space of One Proxy Device Is Enough (Lu et al. 2022). Kernels are 3, 5 or 7,
    expansion ratios 3, 4 or 6. The stem has 32 channels and a block of 16, the head 1,280.
    ``width_mult`` 1.3 is Once-for-all's network. Each architecture has its own resolution, 128 to
    224 in steps of 4, unless the space has a fixed one.
    """

    name = "proxyless"
    units = (*(Unit((2, 3, 4), BLOCK) for _ in range(5)), Unit((1,), BLOCK))
    resolutions = tuple(range(128, 225, 4))

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        with net.scope("stem"):
            x = net.relu6(net.conv(net.input, self.channels(32), kernel=3, stride=2))
            x = self._inverted_residual(net, x, 16, kernel=3, expansion=1, stride=1)
        for number, (unit, (width, stride)) in enumerate(zip(units, STAGES, strict=True), start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._inverted_residual(
                        net,
                        x,
                        width,
                        kernel=int(block["kernel"]),
                        expansion=int(block["expansion"]),
                        stride=stride if position == 1 else 1,
                    )
        with net.scope("head"):
            x = net.relu6(net.conv(x, max(1280, self.channels(1280))))
            return net.linear(net.flatten(net.global_average_pool(x)), 1000)

    def _inverted_residual(
        self, net: Network, x: str, width: int, kernel: int, expansion: int, stride: int
    ) -> str:
        before, out = net.shape(x)[1], self.channels(width)
        middle = before * expansion
        y = net.relu6(net.conv(x, middle)) if expansion > 1 else x
        y = net.relu6(net.conv(y, middle, kernel=kernel, stride=stride, groups=middle))
        y = net.conv(y, out)
        return net.add(x, y) if stride == 1 and before == out else y
