"""Latencies of any architecture on the source devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esm_host.encoding import make_encoder
from esm_host.predictors.linear import RidgePredictor
from esm_host.transfer.base import Floats
from esm_host.transfer.source import Source
from esm_models.space import Codes


class KnownLatencies:
    """Latencies of sources: measured or, for other architectures, predicted.

    Predictions are by ridge regression on the encoding ``views``, clipped to the range of the
    source's measurements.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._encoder = make_encoder("views", sources[0].space)
        self._measured = [
            dict(zip(keys(source.codes), source.latency_ms.tolist(), strict=True))
            for source in sources
        ]
        self._ridges: dict[int, RidgePredictor] = {}

    def at(self, codes: Codes) -> Floats:
        """Return the latency of each architecture on each source, ms, ``(n, sources)``."""
        wanted = keys(codes)
        latency_ms = np.array(
            [[known.get(key, np.nan) for known in self._measured] for key in wanted]
        )
        for number in np.flatnonzero(np.isnan(latency_ms).any(axis=0)).tolist():
            missing = np.isnan(latency_ms[:, number])
            latency_ms[missing, number] = self._predicted(number, codes[missing])
        return latency_ms

    def shared(self) -> Codes:
        """Return the architectures that most sources measured, in the order of the first source."""
        counts: dict[bytes, int] = {}
        for known in self._measured:
            for key in known:
                counts[key] = counts.get(key, 0) + 1
        most = max(counts.values())
        codes = np.concatenate([source.codes for source in self._sources])
        first = {key: row for row, key in reversed(list(enumerate(keys(codes))))}
        return codes[sorted(row for key, row in first.items() if counts[key] == most)]

    def _predicted(self, number: int, codes: Codes) -> Floats:
        source = self._sources[number]
        if number not in self._ridges:
            x = self._encoder.encode_codes(source.codes)
            self._ridges[number] = RidgePredictor().fit(x, source.latency_ms)
        predicted = self._ridges[number].predict(self._encoder.encode_codes(codes))
        return np.clip(predicted, source.latency_ms.min(), source.latency_ms.max())


def keys(codes: Codes) -> list[bytes]:
    """Return a key per architecture, equal for equal architectures."""
    return [row.tobytes() for row in np.ascontiguousarray(codes, dtype=np.int16)]
