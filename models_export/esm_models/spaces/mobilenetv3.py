"""MobileNetV3 search space (ESM, Table I): 4 units of inverted-residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, NamedTuple

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace, round_channels


class Stage(NamedTuple):
    """Settings that the blocks of a stage share.

    Attributes:
        width: Output channels.
        squeeze_excite: Whether blocks have a squeeze-excite module.
        hard_swish: Whether the activation is hard swish instead of ReLU.
        stride: Stride of the first block.
    """

    width: int
    squeeze_excite: bool
    hard_swish: bool
    stride: int = 2


class MobileNetV3Space(SearchSpace):
    """MobileNetV3-Large with free depth, kernel and expansion.

    From ESM's Table I: 4 units, kernel {3, 5, 7}, width expansion {1/2, 2/3, 1}. The stage widths
    and the blocks per unit are missing in the available text. This space has the four stages of
    MobileNetV3-Large that halve the resolution: 24, 40, 80 and 160 channels, with their
    squeeze-excite and activation. Each has 2-4 blocks; the original stages have 2, 3 or 4. The
    expansion ratio is a share of 6, so the blocks expand 3, 4 or 6 times as in Once-for-all. Stem,
    first block and head are the original's. The space has 2.95e15 architectures.
    """

    name = "mobilenetv3"
    depths: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 3, 4),) * 4
    features = (
        Feature("kernel", "k", (3, 5, 7)),
        Feature("expansion", "e", (Fraction(1, 2), Fraction(2, 3), Fraction(1))),
    )
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(24, squeeze_excite=False, hard_swish=False),
        Stage(40, squeeze_excite=True, hard_swish=False),
        Stage(80, squeeze_excite=False, hard_swish=True),
        Stage(160, squeeze_excite=True, hard_swish=True),
    )
    max_expansion = 6

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        with net.scope("stem"):
            x = net.hard_swish(net.conv(net.input, self.channels(16), kernel=3, stride=2))
            first = Stage(16, squeeze_excite=False, hard_swish=False)
            x = self._inverted_residual(net, x, first, kernel=3, expansion=1, stride=1)
        for number, (unit, stage) in enumerate(zip(units, self.stages, strict=True), start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._inverted_residual(
                        net,
                        x,
                        stage,
                        kernel=int(block["kernel"]),
                        expansion=self.max_expansion * float(block["expansion"]),
                        stride=stage.stride if position == 1 else 1,
                    )
        with net.scope("head"):
            x = net.hard_swish(net.conv(x, self.channels(960)))
            x = net.conv(net.global_average_pool(x), self.channels(1280), norm=False)
            x = net.hard_swish(x)
            return net.linear(net.flatten(x), 1000)

    def _inverted_residual(
        self, net: Network, x: str, stage: Stage, kernel: int, expansion: float, stride: int
    ) -> str:
        activation = net.hard_swish if stage.hard_swish else net.relu
        in_channels, out = net.shape(x)[1], self.channels(stage.width)
        middle = round(in_channels * expansion / 8) * 8 if expansion > 1 else in_channels
        y = x
        if expansion > 1:
            y = activation(net.conv(y, middle))
        y = activation(net.conv(y, middle, kernel=kernel, stride=stride, groups=middle))
        if stage.squeeze_excite:
            with net.scope("squeeze_excite"):
                squeezed = round_channels(middle / 4)
                gate = net.conv(net.global_average_pool(y), squeezed, norm=False)
                gate = net.conv(net.relu(gate), middle, norm=False)
                y = net.multiply(y, net.hard_sigmoid(gate))
        y = net.conv(y, out)
        return net.add(x, y) if stride == 1 and in_channels == out else y
