"""Architectures as the search space codes them, for predictors that encode them by themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Encoding
from esm_models.space import Codes


class CodesEncoder(Encoder):
    """The codes themselves, ``(n, units * slots)``. Neighbouring numbers mean nothing.

    Not among :data:`esm_host.encoding.ENCODERS`, which any predictor may be given.
    """

    name = "codes"
    with_resolution = False

    def _columns(self) -> list[str]:
        units, slots = self.space.code_shape
        return [f"unit{unit}.code{slot}" for unit in range(units) for slot in range(slots)]

    def encode_codes(self, codes: Codes) -> Encoding:
        expected = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != expected:
            raise ValueError(f"codes of {self.space.name} are (n, {expected[0]}, {expected[1]})")
        return codes.reshape(len(codes), -1).astype(np.float32)

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        return codes.reshape(len(codes), -1)  # what encode_codes has, but for the resolution
