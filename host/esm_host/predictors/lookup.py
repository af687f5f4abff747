"""Lookup tables: sums of a latency per operation or part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats, Predictor
from esm_models.space import Codes, SearchSpace

NOTHING = "none"
"""Label of an option that leaves a block without a path."""


def neighbours(space: SearchSpace) -> Codes:
    """Return a base architecture and all that differ from it in one choice, the base first.

    They are the training set of an operation-wise table ("neighboured architectures", Laube et al.
    2022: 25 of NAS-Bench-201). The paper does not name its base. Ours is the deepest architecture
    of the first and cheapest option, except :data:`NOTHING`. A network without operations has no
    latency to compare with. Each neighbour has one block of another option, one unit of another
    depth, another resolution, one other context, or another choice of the network or of one unit.
    Where all blocks of a unit share an option, they change together.

    Returns:
        Codes, ``(n, *space.code_shape)``.
    """
    usual = [
        next((code for code in options if space.options[code].label != NOTHING), options[0])
        for options in space.block_options
    ]
    deepest = np.full((1, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    for unit, depths in enumerate(space.depths):
        deepest[0, unit, : max(depths)] = usual[unit]
    (base,) = space.join(deepest)
    if space.resolutions:
        base[-1, 0] = space.resolutions.index(max(space.resolutions))
    codes = [base]

    def add(where: tuple[int, int | slice], code: int) -> None:
        codes.append(base.copy())
        codes[-1][where] = code

    for unit, depths in enumerate(space.depths):
        blocks: list[int | slice] = [*range(max(depths))]
        if space.one_option_per_unit:
            blocks = [slice(max(depths))]
        for block in blocks:
            for option in space.block_options[unit]:
                if option != usual[unit]:
                    add((unit, block), option)
        for depth in sorted(set(depths) - {max(depths)}, reverse=True):
            add((unit, slice(depth, None)), -1)
    for choice, size in enumerate(space.choice_sizes):
        for index in range(size):
            if index != base[-1, choice]:
                add((space.unit_count, choice), index)
    found = np.stack(codes)
    choices, largest = space.choices_of(found[:1]), space.contexts_of(found[:1])
    for place, values in enumerate(space.contexts.values()):
        for value in values:
            if value != largest[0, place]:
                contexts = largest.copy()
                contexts[0, place] = value
                other = space.join(space.blocks_of(found[:1]), choices, contexts)
                found = np.concatenate([found, other])
    return found


class LookupPredictor(Predictor):
    """Operation-wise table: a latency per column and a constant, by least squares.

    Of equally good solutions it is the one nearest to the samples' mean. So columns that never vary
    have no effect. On :func:`neighbours` with one-hot columns the entries are the differences to
    the base.
    """

    trains_on_neighbours = True

    def _fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        self.mean_ = np.average(encodings.astype(np.float64), axis=0, weights=weights)
        self.mean_ms_ = float(np.average(latency_ms, weights=weights))
        root = np.sqrt(weights)
        table = np.linalg.lstsq(
            (encodings - self.mean_) * root[:, None], (latency_ms - self.mean_ms_) * root, None
        )[0]
        self.table_ms_ = table.astype(np.float64)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        predicted: Floats = self.mean_ms_ + (encodings - self.mean_) @ self.table_ms_
        return predicted


class LookupBiasPredictor(Predictor):
    """Table of parts timed one by one, with linear bias correction (ESM, III-B).

    The prediction is ``slope * (counts @ table_ms) + offset``. Both numbers are fitted to measured
    networks.

    Args:
        table_ms: Latency of each column of the encoding ``parts``, ms
            (:func:`esm_host.predictors.lookup_file.load_lookup_table`). None until there is a
            table.
    """

    def __init__(self, table_ms: Sequence[float] | Floats | None = None) -> None:
        self.table_ms = table_ms

    def _fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        sums = self._sums(encodings)
        mean, mean_ms = (float(np.average(v, weights=weights)) for v in (sums, latency_ms))
        spread = float(np.average((sums - mean) ** 2, weights=weights))
        if spread > 1e-12 * mean**2:
            together = np.average((sums - mean) * (latency_ms - mean_ms), weights=weights)
            self.slope_ = float(together) / spread
        else:  # an offset cannot be fitted
            self.slope_ = mean_ms / mean if mean else 0.0
        self.offset_ms_ = mean_ms - self.slope_ * mean

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return self.slope_ * self._sums(encodings) + self.offset_ms_

    def _sums(self, encodings: NDArray[np.float32]) -> Floats:
        if self.table_ms is None:
            raise ValueError(
                "lookup-bias needs a table of latencies: measure one with esm-host lookup --json "
                "FILE and give table_ms=load_lookup_table(FILE, encoder)"
            )
        table = np.asarray(self.table_ms, dtype=np.float64)
        if table.shape != encodings.shape[1:]:
            raise ValueError(
                f"the table has shape {table.shape} and encodings have {encodings.shape[1]} "
                "columns: use the encoding 'parts' of the table's space"
            )
        if not np.isfinite(table).all() or (table < 0).any():
            raise ValueError("the table's latencies must be finite milliseconds, none negative")
        sums: Floats = encodings.astype(np.float64) @ table
        return sums
