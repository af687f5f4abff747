"""What is known of networks before any is trained or measured: zero-cost proxies."""

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

Floats = NDArray[np.float64]

_PREFIX = "zc_"
_LOGARITHMIC = ("fisher", "flops", "grad_norm", "params", "snip", "synflow")
"""Of which the authors of NASFLAT take the logarithm of one plus the value."""


class Supplement(Protocol):
    """Encodes architectures, as an :class:`esm_host.encoding.base.Encoder` does."""

    def encode_codes(self, codes: Codes) -> NDArray[np.floating]:
        """``(n, *space.code_shape)`` -> ``(n, d)``."""
        ...


class ProxyTable:
    """Proxies that others computed, looked up by architecture.

    Each is from 0 to 1 over the table, after a logarithm if it spans many orders of magnitude or
    is a count: as NASFLAT's authors prepare theirs, but for GRASP, which they standardise.

    Args:
        codes: ``(n, *space.code_shape)``.
        values: raw proxies, ``(n, d)``.
        names: of the proxies, ``d``; which are logarithmic depends on them.
    """

    def __init__(
        self, space: SearchSpace, codes: Codes, values: ArrayLike, names: Sequence[str]
    ) -> None:
        raw = np.array(values, dtype=np.float64)
        if raw.shape != (len(codes), len(names)) or not len(codes):
            raise ValueError(f"{raw.shape} values of {len(names)} proxies, {len(codes)} codes")
        if not np.isfinite(raw).all():
            raise ValueError("proxies must be finite: drop what was not computed")
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
        """Of a Parquet table as :func:`esm_host.dataset.benchmarks.read_benchmark` takes, its
        columns ``zc_PROXY``.

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
            raise DatasetError(f"{path} is no table of proxies ({error})") from error

    def __len__(self) -> int:
        """Number of proxies."""
        return len(self.names)

    def encode_codes(self, codes: Codes) -> Floats:
        """``(n, *space.code_shape)`` -> ``(n, len(self))``.

        Raises:
            ValueError: an architecture is not in the table.
        """
        rows = [self._rows.get(row.tobytes(), -1) for row in _bytes(codes)]
        if -1 in rows:
            missing = rows.index(-1)
            raise ValueError(
                f"{rows.count(-1)} architectures are not in the table of proxies, such as number "
                f"{missing}: choose them from the table, or use AnalyticProxies"
            )
        return self._values[rows]


class AnalyticProxies:
    """Proxies of any architecture of a space, counted from its graph.

    Of the whole network the FLOPs, the bytes that are moved and the number of operators, in all
    and by kind of operator, its parameters, and its blocks: all as logarithms, above those of the
    space's smallest architecture. Proxies that need weights and a minibatch (gradient norms,
    SynFlow, NWOT, Zen and others) are not among them: networks here are graphs for a runtime
    that only infers.
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
        """Number of proxies."""
        return len(self.names)

    def encode_codes(self, codes: Codes) -> Floats:
        """``(n, *space.code_shape)`` -> ``(n, len(self))``."""
        return self._logarithms(codes) - self._least

    def _logarithms(self, codes: Codes) -> Floats:
        counts = self._cost.encode_codes(codes)[:, self._whole].astype(np.float64)
        blocks = (self.space.blocks_of(codes) >= 0).sum(axis=(1, 2))
        logarithms: Floats = np.log1p(np.column_stack([counts, blocks]))
        return logarithms


class Concatenated:
    """Several encodings side by side, such as NASFLAT's CAZ: CATE, Arch2Vec and proxies (section
    3.3)."""

    def __init__(self, *parts: Supplement) -> None:
        if not parts:
            raise ValueError("nothing to put side by side: pass an encoding or more")
        self.parts = parts

    def encode_codes(self, codes: Codes) -> Floats:
        """``(n, *space.code_shape)`` -> ``(n, sum of d)``."""
        parts = [np.asarray(part.encode_codes(codes), dtype=np.float64) for part in self.parts]
        return np.concatenate(parts, axis=1)


def _bytes(codes: Codes) -> Codes:
    return np.ascontiguousarray(codes, dtype=np.int16)
