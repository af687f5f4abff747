"""Several looks at one architecture, from single blocks to the cost of the whole network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Layout
from esm_host.encoding.cost import CostEncoder, ScaledCountEncoder
from esm_host.encoding.vectors import OperationOneHotEncoder
from esm_models.space import Codes, SearchSpace


class ViewsEncoder(Encoder):
    """For a predictor that weighs groups of columns (:attr:`layout`), the few that are shared by
    all architectures before the many that are not.

    Groups: ``operations`` (every block's option), ``counts`` (FCC, and scaled by the resolution
    where that is free), ``totals`` (options over all units), ``costs``
    (:class:`~esm_host.encoding.cost.CostEncoder`) and ``log-costs`` (those of the whole network,
    log(1 + x): what multiplies latencies adds to their logarithm).
    """

    name = "views"
    with_resolution = False

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
        operations = [c for c in self._operations.columns if c != "resolution"]
        return {
            "operations": operations,
            "counts": [f"counts.{name}" for name in self._counts.columns],
            "totals": [f"total.{option.label}" for option in self.space.options],
            "costs": list(self._costs.columns),
            "log-costs": [f"log.{self._costs.columns[number]}" for number in self._whole],
        }

    def _columns(self) -> list[str]:
        return [name for columns in self._groups().values() for name in columns]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        costs = self._costs._encode(codes, resolution)
        options = range(len(self.space.options))
        return np.concatenate(
            [
                self._operations._encode(codes, resolution),
                self._counts._encode(codes, resolution),
                np.stack([(codes == option).sum(axis=(1, 2)) for option in options], axis=1),
                costs,
                np.log1p(costs[:, self._whole].astype(np.float64)),
            ],
            axis=1,
        )
