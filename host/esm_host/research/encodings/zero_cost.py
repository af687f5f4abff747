"""Zero-cost proxies: properties of networks without training or measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.dataset.benchmarks import codes_of, read_parquet
from esm_host.encoding.cost import CostEncoder
from esm_host.errors import DatasetError, UsageError
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace
from esm_protos.text import counted

Floats = NDArray[np.float64]

_PREFIX = "zc_"
_LOGARITHMIC = ("fisher", "flops", "grad_norm", "params", "snip", "synflow")
"""Proxies that NASFLAT uses as the logarithm of one plus the value."""


class Supplement(Protocol):
    """Function from architectures to vectors, as of :class:`esm_host.encoding.base.Encoder`."""

    def encode_codes(self, codes: Codes) -> NDArray[np.floating]:
        """Convert ``(n, *space.code_shape)`` to ``(n, d)``."""
        ...


class ProxyTable:
    """Zero-cost proxies read from a table.

    Each is scaled to 0 to 1 over the table. A proxy that is a count or spans many orders of
    magnitude is first replaced by its logarithm. So do the authors of NASFLAT, except that they
    standardise GRASP.

    Args:
        space: Search space.
        codes: Architectures, ``(n, *space.code_shape)``.
        values: Raw proxies, ``(n, d)``.
        names: Names of the ``d`` proxies, which determine the logarithmic ones.
    """

    def __init__(
        self, space: SearchSpace, codes: Codes, values: ArrayLike, names: Sequence[str]
    ) -> None:
        raw = np.array(values, dtype=np.float64)
        if raw.shape != (len(codes), len(names)) or not len(codes):
            raise ValueError(f"{raw.shape} values of {len(names)} proxies, {len(codes)} codes")
        if not np.isfinite(raw).all():
            raise ValueError("proxies must be finite: drop architectures without them")
        for column, name in enumerate(names):
            if name in _LOGARITHMIC:
                raw[:, column] = np.log1p(raw[:, column])
        least, span = raw.min(axis=0), np.ptp(raw, axis=0)
        self.space = space
        self.names = tuple(names)
        self._values: Floats = (raw - least) / np.where(span > 0, span, 1)
        self._rows = {row.tobytes(): number for number, row in enumerate(_bytes(codes))}

    @classmethod
    def read(cls, path: Path) -> ProxyTable:
        """Read the columns ``zc_PROXY`` of a Parquet table.

        The table is one that :func:`esm_host.dataset.benchmarks.read_benchmark` reads.

        Raises:
            UsageError: there is no such file, or it has no such columns.
            DatasetError: it cannot be read.
        """
        frame = read_parquet(path)
        columns = [name for name in frame.columns if name.startswith(_PREFIX)]
        if not columns:
            raise UsageError(f"{path} has no columns {_PREFIX}PROXY: choose a table that does")
        names = [name.removeprefix(_PREFIX) for name in columns]
        try:
            space, codes = codes_of(frame)
            return cls(space, codes, frame[columns].to_numpy(float), names)
        except (KeyError, ValueError, IndexError, ModelsError) as error:
            raise DatasetError(f"{path} is not a table of proxies ({error})") from error

    def __len__(self) -> int:
        """Return the number of proxies."""
        return len(self.names)

    def encode_codes(self, codes: Codes) -> Floats:
        """Convert ``(n, *space.code_shape)`` to ``(n, len(self))``.

        Raises:
            ValueError: an architecture is not in the table.
        """
        rows = [self._rows.get(row.tobytes(), -1) for row in _bytes(codes)]
        if -1 in rows:
            missing = rows.index(-1)
            raise ValueError(
                f"{counted(rows.count(-1), 'architecture')} not in the table of proxies, such as "
                f"number {missing}: choose them from the table, or use AnalyticProxies"
            )
        return self._values[rows]


class AnalyticProxies:
    """Zero-cost proxies counted from the graph of any architecture.

    They are the FLOPs, bytes moved and number of operators, in total and by kind of operator, the
    parameters, and the blocks. All are logarithms relative to the space's smallest architecture.
    Proxies that need weights and a minibatch (gradient norms, SynFlow, NWOT, Zen and others) are
    left out. Our networks are graphs for inference only.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._cost = CostEncoder(space)
        self._whole = [
            number
            for number, name in enumerate(self._cost.columns)
            if name.startswith("all.") and not name.startswith("all.roofline")
        ]
        self.names = (*(self._cost.columns[number] for number in self._whole), "all.blocks")
        self._least = self._logarithms(space.encode(space.extremes()[:1]))

    def __len__(self) -> int:
        """Return the number of proxies."""
        return len(self.names)

    def encode_codes(self, codes: Codes) -> Floats:
        """Convert ``(n, *space.code_shape)`` to ``(n, len(self))``."""
        return self._logarithms(codes) - self._least

    def _logarithms(self, codes: Codes) -> Floats:
        counts = self._cost.encode_codes(codes)[:, self._whole].astype(np.float64)
        blocks = (self.space.blocks_of(codes) >= 0).sum(axis=(1, 2))
        logarithms: Floats = np.log1p(np.column_stack([counts, blocks]))
        return logarithms


class Concatenated:
    """Several encodings side by side.

    An example is NASFLAT's CAZ: CATE, Arch2Vec and proxies (section 3.3).
    """

    def __init__(self, *parts: Supplement) -> None:
        if not parts:
            raise ValueError("there is no encoding: pass one or more")
        self.parts = parts

    def encode_codes(self, codes: Codes) -> Floats:
        """Convert ``(n, *space.code_shape)`` to ``(n, sum of d)``."""
        parts = [np.asarray(part.encode_codes(codes), dtype=np.float64) for part in self.parts]
        return np.concatenate(parts, axis=1)


def _bytes(codes: Codes) -> Codes:
    return np.ascontiguousarray(codes, dtype=np.int16)
