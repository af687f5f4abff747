"""Choice of the architectures to measure on a new device."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.encoding.base import Encoder
from esm_host.sampling.informative import most_informative, prior_features
from esm_models.space import Codes


def choose(
    encoder: Encoder,
    codes: Codes,
    count: int,
    seconds: ArrayLike = 1.0,
    strata: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    """Return rows of a pool to measure on a new device, most informative first, ``(count,)``.

    Args:
        encoder: Encoder whose groups of columns count the same.
        codes: Pool, ``(n, *code_shape)``.
        count: Number of rows.
        seconds: Device time of each row, s, ``(n,)``, or one for all.
        strata: Stratum of each row, ``(n,)``, to choose equal shares; None for one stratum.
    """
    features = prior_features(encoder.encode_codes(codes), encoder.layout.groups)
    return most_informative(features, count, seconds, strata=strata)
