"""Encoding by the codes of the search space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Encoding
from esm_models.space import Codes


class CodesEncoder(Encoder):
    """Codes themselves, ``(n, units * slots)``, for predictors with an encoder of their own.

    Neighbouring numbers have no relation. It is not in :data:`esm_host.encoding.ENCODERS`, whose
    encoders suit any predictor.
    """

    name = "codes"
    with_resolution = False
    with_choices = False

    def _columns(self) -> list[str]:
        units, slots = self.space.code_shape
        return [f"unit{unit}.code{slot}" for unit in range(units) for slot in range(slots)]

    def encode_codes(self, codes: Codes) -> Encoding:
        expected = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != expected:
            raise ValueError(f"codes of {self.space.name} are (n, {expected[0]}, {expected[1]})")
        return codes.reshape(len(codes), -1).astype(np.float32)

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        return codes.reshape(len(codes), -1)  # without the resolution of encode_codes
