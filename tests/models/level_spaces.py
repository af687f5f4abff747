"""Search spaces with choices of the network, of units and of blocks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from esm_models.graph import Network
from esm_models.space import Feature, SearchSpace, Unit


class StagedSpace(SearchSpace):
    """Units with a width of their own, after a stem of free width."""

    name = "staged"
    units = tuple(
        Unit(
            depths=depths,
            features=(Feature("kernel", "k", (3, 5)), Feature("expansion", "e", (1, 2))),
            choices=(Feature("width", "w", widths),),
        )
        for depths, widths in (((2, 3, 4), (16, 24, 32)), ((1, 2, 3), (40, 48)))
    )
    choices = (Feature("stem", "s", (8, 16)),)
    default_resolution = 32

    def network(self, net: Network, units: Any) -> str:
        x = net.relu(net.conv(net.input, units["stem"], kernel=3, stride=2))
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    middle = unit["width"] * block["expansion"]
                    x = net.relu(net.conv(x, middle, kernel=block["kernel"]))
                    x = net.conv(x, unit["width"])
        return net.linear(net.flatten(net.global_average_pool(x)), 10)


class UnequalSpace(SearchSpace):
    """Units with grids of their own, one of them optional, words, and free resolutions."""

    name = "unequal"
    units = (
        Unit(
            (0, 1, 2),
            (Feature("expansion", "e", (Fraction(1, 5), Fraction(1, 4))),),
            (Feature("width", "w", (16, 24, 32)),),
        ),
        Unit(
            (1, 2, 3),
            (
                Feature("expansion", "e", (Fraction(1, 4), Fraction(1, 2))),
                Feature("kernel", "k", (3, 5)),
            ),
            (Feature("width", "w", (40, 48)),),
        ),
        Unit((1,), (Feature("kernel", "k", (3, 5)),)),
    )
    choices = (Feature("stem", "s", (8, 16)), Feature("activation", "", ("relu", "hswish")))
    resolutions = (32, 48)

    def network(self, net: Network, units: Any) -> str:
        activation = net.relu if units["activation"] == "relu" else net.hard_swish
        x = net.conv(net.input, units["stem"], kernel=3, stride=2)
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    width = unit["width"] if number < 3 else 64
                    x = activation(net.conv(x, width, kernel=block.values.get("kernel", 1)))
        return net.linear(net.flatten(net.global_average_pool(x)), 10)
