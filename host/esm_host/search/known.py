"""What was found out of architectures elsewhere, as a quantity to search by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from esm_host.search.front import Floats
from esm_host.search.genes import Rows
from esm_models.space import Codes


class Known:
    """A quantity of architectures that a table lists; NaN, so unfit, of all others.

    Args:
        name: of the quantity.
        codes: ``(m, *code_shape)``.
        values: ``(m,)``.
    """

    def __init__(self, name: str, codes: Codes, values: Floats) -> None:
        self.codes = codes
        self._name = name
        self._rows = Rows(codes)
        self._values = np.append(values, np.nan)  # which row -1 is

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        return {self._name: self._values[self._rows(codes)]}
