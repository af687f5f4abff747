"""Encoding that joins several views of an architecture, from blocks to total cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Layout, choice_columns
from esm_host.encoding.cost import CostEncoder, ScaledCountEncoder
from esm_host.encoding.vectors import OperationOneHotEncoder
from esm_models.space import Codes, SearchSpace


class ViewsEncoder(Encoder):
    """Groups of columns (:attr:`layout`), for a predictor that weights groups.

    Groups:
        ``operations``: Option of every block.
        ``counts``: FCC, and scaled by the resolution if that varies.
        ``totals``: Options over all units.
        ``costs``: :class:`~esm_host.encoding.cost.CostEncoder`.
        ``log-costs``: log(1 + x) of the costs of the whole network, as factors of a latency add to
            its logarithm.
        ``choices``: Choices of the network and of units, if there are any.

    Contexts act through the costs alone. So predictions between and beyond the measured values
    follow the work that a context makes.
    """

    name = "views"
    with_resolution = False
    with_choices = False

    def __init__(self, space: SearchSpace) -> None:
        self._operations = OperationOneHotEncoder(space)
        self._counts = ScaledCountEncoder(space)
        self._costs = CostEncoder(space)
        self._whole = [
            number
            for number, name in enumerate(self._costs.columns)
            if name.startswith(("all.", "written."))
        ]
        super().__init__(space)

    @property
    def layout(self) -> Layout:
        groups, first = {}, 0
        for name, columns in self._groups().items():
            groups[name] = (first, first + len(columns))
            first += len(columns)
        return Layout(groups)

    def _groups(self) -> dict[str, list[str]]:
        choices, self._tables = choice_columns(self.space)
        groups = {
            "operations": self._operations.own_columns,
            "counts": [f"counts.{name}" for name in self._counts.own_columns],
            "totals": [f"total.{option.label}" for option in self.space.options],
            "costs": list(self._costs.columns),
            "log-costs": [f"log.{self._costs.columns[number]}" for number in self._whole],
        }
        return {**groups, "choices": choices} if choices else groups

    def _columns(self) -> list[str]:
        return [name for columns in self._groups().values() for name in columns]

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        costs = self._costs._encode_all(codes, resolution)
        options = range(len(self.space.options))
        blocks, chosen = self.space.blocks_of(codes), self.space.choices_of(codes)
        return np.concatenate(
            [
                self._operations._encode(blocks, resolution),
                self._counts._encode(blocks, resolution),
                np.stack([(blocks == option).sum(axis=(1, 2)) for option in options], axis=1),
                costs,
                np.log1p(costs[:, self._whole].astype(np.float64)),
                *(table[chosen[:, place]] for place, table in self._tables),
            ],
            axis=1,
        )
