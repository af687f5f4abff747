"""Quantity of architectures that is read from a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from esm_host.search.front import Floats
from esm_host.search.genes import RowIndex
from esm_models.space import Codes


class TableMeasure:
    """Measure that looks up listed architectures; NaN for all others.

    Args:
        name: Name of the quantity.
        codes: Listed architectures, ``(m, *code_shape)``.
        values: Their values, ``(m,)``.
    """

    def __init__(self, name: str, codes: Codes, values: Floats) -> None:
        self.codes = codes
        self._name = name
        self._rows = RowIndex(codes)
        self._values = np.append(values, np.nan)  # for row -1: not listed

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        return {self._name: self._values[self._rows(codes)]}
