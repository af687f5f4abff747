"""DenseNet search space (ESM, Table I): 5 units of densely connected layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm_models.graph import Network
from esm_models.space import Codes, Feature, Option, SearchSpace


class DenseNetSpace(SearchSpace):
    """DenseNet-BC with free depth and one kernel size per unit.

    From ESM's Table I: 5 units, kernel {1, 3, 5, 7, 9} chosen once per unit. The blocks per unit
    are missing in the available text. This space has 1-6, up to the 6 layers of the first unit of
    every original DenseNet; 2.43e7 architectures. Growth rate 32, bottleneck of 4 times the
    growth, compression 1/2 and the stem are the original's. Normalisation before a concatenated
    input cannot be folded into a convolution, so those BatchNormalization operators stay.
    """

    name = "densenet"
    depths = (tuple(range(1, 7)),) * 5
    features = (Feature("kernel", "k", (1, 3, 5, 7, 9)),)
    one_option_per_unit = True
    min_resolution = 64  # stem and four transitions halve the image six times

    def place(self, scope: str) -> int:
        """Return the column of a scope; transitions and head follow the blocks."""
        first = scope.partition(".")[0]
        if not first.startswith("transition") and first != "head":
            return super().place(scope)
        number = self.unit_count if first == "head" else int(first.removeprefix("transition"))
        return self.unit_count * self.max_unit_depth + number

    def places(self, blocks: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Return numbers from the unit, its input channels and, for a block, its option."""
        growth, choices = self.channels(32), len(self.options) + 2
        channels = np.full(len(blocks), self.channels(64))
        places, ends = [np.zeros((len(blocks), 1), np.int64)], []
        for number, unit in enumerate(np.moveaxis(blocks.astype(np.int64), 1, 0)):
            inputs = channels[:, None] + growth * np.arange(self.max_unit_depth)
            first = choices * (self.unit_count * inputs + number)
            places.append(np.where(unit < 0, 1, first + 2 + unit))
            channels = channels + growth * (unit >= 0).sum(axis=1)
            ends.append(choices * (self.unit_count * channels + number))
            channels = channels // 2
        return np.concatenate([*places, np.stack(ends, axis=1)], axis=1)

    def showcase(self) -> Codes:
        """Return every combination of depths, with every kernel in all units."""
        depths = np.array(list(itertools.product(*self.depths)))[::-1]
        present = np.arange(self.max_unit_depth) < depths[..., None]
        return np.concatenate(
            [np.where(present, code, -1).astype(np.int16) for code in range(len(self.options))]
        )

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        growth = self.channels(32)
        with net.scope("stem"):
            x = net.relu(net.conv(net.input, self.channels(64), kernel=7, stride=2))
            x = net.max_pool(x)
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    y = net.conv(net.relu(net.batch_norm(x)), 4 * growth)
                    y = net.conv(net.relu(y), growth, kernel=int(block["kernel"]), norm=False)
                    x = net.concat([x, y])
            if number < len(units):
                with net.scope(f"transition{number}"):
                    x = net.conv(net.relu(net.batch_norm(x)), net.shape(x)[1] // 2, norm=False)
                    x = net.average_pool(x)
        with net.scope("head"):
            x = net.global_average_pool(net.relu(net.batch_norm(x)))
            return net.linear(net.flatten(x), 1000)
