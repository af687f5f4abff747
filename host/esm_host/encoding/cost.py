"""Encodings by the work of an architecture and by the count of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from esm_host.arguments import argument
from esm_host.encoding.base import Encoder
from esm_host.encoding.vectors import FeatureCombinationCountEncoder
from esm_host.errors import UsageError
from esm_models.cost import KINDS, RARE_KINDS
from esm_models.part_table import Content, PartTable, part_table
from esm_models.parts import REST, Part
from esm_models.space import Codes, SearchSpace

RIDGES = (1, 4, 16, 64)
"""FLOP per byte at which arithmetic and memory take equally long.

They are a few on a small core, tens on a server or a GPU.
"""


class _Cache:
    """Vectors of a table's rows and parts, shared by encoders of one kind."""

    def __init__(self, width: int, version: int = 0) -> None:
        self.version = version
        self.parts: dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        self.sums = sparse.csr_array((0, width))


_CACHES: dict[tuple[type[Encoder], PartTable], _Cache] = {}


class _Sums(Encoder):
    """Sum of a vector per part."""

    with_resolution = False
    with_choices = False

    def __init__(self, space: SearchSpace) -> None:
        self._table = part_table(space)
        super().__init__(space)
        self._cache = _CACHES.setdefault((type(self), self._table), _Cache(len(self)))

    def _vector(self, region: str, part: Part) -> NDArray[np.float64]:
        """Return the vector of a part in that region, ``(len(self),)``."""
        raise NotImplementedError

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        return self._sums(codes)

    def _sums(self, codes: Codes, pruned: bool = True) -> NDArray[np.float64]:
        table = self._table
        rows = table.rows(codes, pruned)
        if self._cache.version != table.version:
            self._cache = _CACHES[type(self), table] = _Cache(len(self), table.version)
        known = self._cache.sums.shape[0]
        if known < len(table.contents):
            new = self._rows(table.contents[known:])
            self._cache.sums = sparse.vstack([self._cache.sums, new], format="csr")
        count, places = rows.shape
        ones = np.ones(rows.size)
        starts = np.arange(0, rows.size + 1, places)
        held = sparse.csr_array((ones, rows.ravel(), starts), shape=(count, len(table.contents)))
        sums: NDArray[np.float64] = (held @ self._cache.sums).toarray()
        return sums

    def _rows(self, contents: Sequence[Content]) -> sparse.csr_array:
        """Return the sum of the parts' vectors of each content."""
        rows, columns, values = [], [], []
        for row, content in enumerate(contents):
            for (region, number), count in content.items():
                if (region, number) not in self._cache.parts:
                    vector = self._vector(region, self._table.parts[number])
                    (places,) = np.nonzero(vector)
                    self._cache.parts[region, number] = places, vector[places]
                places, what = self._cache.parts[region, number]
                rows.append(np.full(len(places), row))
                columns.append(places)
                values.append(count * what)
        shape = (len(contents), len(self))
        if not rows:
            return sparse.csr_array(shape)
        where = np.concatenate(rows), np.concatenate(columns)
        return sparse.coo_array((np.concatenate(values), where), shape=shape).tocsr()


class CostEncoder(_Sums):
    """Work of one inference, counted from the graph.

    Per region (unit or stage, and the rest) and kind of operator: millions of FLOPs, megabytes read
    and written, and the number of operators. Per region and :data:`RIDGES`: the roofline's time,
    the sum over operators of max(FLOPs / ridge, bytes), in millions of bytes. All of these for the
    whole network, too, and its millions of parameters.

    If the space's graphs lack blocks without effect, whole networks are counted with them as well
    (``written``), for frameworks that run them. No column shrinks if a block is added. So a model
    with nonnegative weights is physically plausible. Batch, resolution and contexts act through the
    counts.
    """

    name = "cost"

    def __init__(self, space: SearchSpace) -> None:
        table = part_table(space)
        if table.additive:
            pairs = set(table.kinds)
        else:
            found = {kind for _, kind in table.kinds}
            usual = [kind for kind in KINDS if kind in found or kind not in RARE_KINDS]
            pairs = {(region, kind) for region in table.regions for kind in usual}
        self._regions = sorted({REST, *(region for region, _ in pairs)})
        self._kinds = [kind for kind in KINDS if kind in {kind for _, kind in pairs}]
        self._pairs = [
            (region, kind)
            for region in self._regions
            for kind in self._kinds
            if (region, kind) in pairs or (region == REST and not table.additive)
        ]
        super().__init__(space)
        self._place = {name: number for number, name in enumerate(self.columns)}

    def _columns(self) -> list[str]:
        measures = ("mflops", "mbytes", "operators")
        groups = [f"{region}.{kind}" for region, kind in self._pairs]
        groups += [f"all.{kind}" for kind in self._kinds]
        names = [
            *(f"{group}.{measure}" for group in groups for measure in measures),
            *(f"{r}.roofline{ridge}" for r in (*self._regions, "all") for ridge in RIDGES),
            *(f"all.{measure}" for measure in (*measures, "mparameters")),
        ]
        whole = [name for name in names if name.startswith("all.")]
        self._whole = [names.index(name) for name in whole]
        return names + [f"written.{name}" for name in whole] * self.space.prunes

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        sums = self._sums(codes)
        if self.space.prunes:
            start = len(self) - len(self._whole)
            sums[:, start:] = self._sums(codes, pruned=False)[:, self._whole]
        return sums

    def _vector(self, region: str, part: Part) -> NDArray[np.float64]:
        vector = np.zeros(len(self))
        region = region if region in self._regions else REST
        for operator in part.operators:
            measured = {
                "mflops": operator.flops / 1e6,
                "mbytes": operator.bytes / 1e6,
                "operators": 1.0,
            }
            for measure, value in measured.items():
                for group in (f"{region}.{operator.kind}", f"all.{operator.kind}", "all"):
                    vector[self._place[f"{group}.{measure}"]] += value
            for ridge in RIDGES:
                value = max(operator.flops / ridge, operator.bytes) / 1e6
                for group in (region, "all"):
                    vector[self._place[f"{group}.roofline{ridge}"]] += value
        vector[self._place["all.mparameters"]] = part.parameters / 1e6
        return vector


class PartsEncoder(_Sums):
    """Number of times that an architecture has each part of its space.

    A lookup table has a latency per column. Columns are in the order of the parts' keys.

    Raises:
        InvalidSpaceError: the space's parts cannot be listed.
    """

    name = "parts"

    def __init__(self, space: SearchSpace) -> None:
        table = part_table(space)
        table.complete()
        self.parts = tuple(sorted(table.parts, key=lambda part: part.key))
        """Part of each column."""
        self._place = {part.key: number for number, part in enumerate(self.parts)}
        super().__init__(space)

    def _columns(self) -> list[str]:
        return [f"part.{part.key}" for part in self.parts]

    def _vector(self, region: str, part: Part) -> NDArray[np.float64]:
        vector = np.zeros(len(self))
        if part.key not in self._place:
            raise UsageError(
                f"a lookup table of {self.space.name} has no part {part.name} of another context: "
                f"make the table in that context, with {argument('contexts')}"
            )
        vector[self._place[part.key]] = 1
        return vector


class ScaledCountEncoder(FeatureCombinationCountEncoder):
    """FCC, scaled by the resolution if architectures have one.

    Further columns are then the counts times the share of the largest input's pixels, and that
    share. Work grows with the pixels, weights do not.
    """

    name = "scaled-fcc"
    with_resolution = False

    def _columns(self) -> list[str]:
        plain = super()._columns()
        if not self.space.resolutions:
            return plain
        return [*plain, *(f"{name}.scaled" for name in plain), "pixels"]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        plain = np.asarray(super()._encode(codes, resolution), dtype=np.float64)
        if not self.space.resolutions:
            return plain
        pixels = (resolution[:, None] / max(self.space.resolutions)) ** 2
        return np.concatenate([plain, plain * pixels, pixels], axis=1)
