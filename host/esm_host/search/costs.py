"""Device-independent costs of architectures: FLOPs, parameters and memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from esm_host.search.front import Floats
from esm_models.part_table import part_table
from esm_models.space import Codes, SearchSpace


class NetworkCost:
    """Measure of the work and size of networks whose numbers take four bytes.

    Quantities:
        ``flops``: Two per multiply-add.
        ``parameters``: Number of weights.
        ``memory_bytes``: Least memory of an inference: all weights, plus the largest inputs and
            output of an operator.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._table = part_table(space)
        self._known: tuple[object, Floats] | None = None

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        rows = self._table.rows(codes)
        flops, parameters, activations = self._of_contents()
        weights = parameters[rows].sum(axis=1)
        return {
            "flops": flops[rows].sum(axis=1),
            "parameters": weights,
            "memory_bytes": 4 * weights + activations[rows].max(axis=1),
        }

    def _of_contents(self) -> Floats:
        """Return FLOPs, parameters and the most bytes an operator moves, ``(3, rows)``.

        The rows are those of the part table.
        """
        state = len(self._table.contents), self._table.version
        if self._known is not None and self._known[0] == state:
            return self._known[1]
        parts = [
            (
                part.flops,
                part.parameters,
                max((operator.activation_bytes for operator in part.operators), default=0),
            )
            for part in self._table.parts
        ]
        found = np.zeros((3, len(self._table.contents)))
        for row, content in enumerate(self._table.contents):
            for (_, number), count in content.items():
                flops, parameters, activations = parts[number]
                found[0, row] += count * flops
                found[1, row] += count * parameters
                found[2, row] = max(found[2, row], activations)
        self._known = state, found
        return found
