"""The weights that a weightless graph stands for.

A graph may leave its initializers out; whoever runs it draws them by this rule, from names and
shapes alone, so that two devices run the very same network. A dense network's latency does not
depend on the values as long as no activation is zero, denormal or infinite for want of scale:
He-normal weights keep activations in range through any depth (He et al. 2015, eq. 10).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WEIGHTLESS_LOCATION = "weightless"
"""Where such an initializer says its data lies, as external data; there is no such file."""

# Normal deviates are drawn once and reused from another offset for every tensor: filling 80 MB
# then takes as long as copying it. Prime, so that no layer's shape resonates with it.
_POOL_SIZE = 1_048_573


@lru_cache(maxsize=1)
def _pool(seed: int) -> NDArray[np.float32]:
    pool = np.random.default_rng(seed).standard_normal(_POOL_SIZE, dtype=np.float32)
    return np.concatenate([pool, pool])  # so that every offset has a whole pool after it


def draw_weights(name: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """The array of one initializer.

    Args:
        name: the initializer's name; other names give other values.
        shape: output features first, as ONNX has it for convolutions and ``Gemm(transB=1)``.
        seed: of the whole network.

    Returns:
        float32 array of ``shape``. Two or more dimensions: normal with variance 2 / fan-in,
        the fan-in being the product of all dimensions but the first. One dimension (biases,
        scales, means and variances of a normalisation): uniform in [0.5, 1.5), never negative,
        never near zero.
    """
    size = math.prod(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    if len(shape) < 2:
        values = np.random.default_rng(list(digest[:8])).random(size, dtype=np.float32)
        return (values + np.float32(0.5)).reshape(shape)
    offset = int.from_bytes(digest[:8], "big") % _POOL_SIZE
    values = np.resize(_pool(seed)[offset : offset + min(size, _POOL_SIZE)], size)
    values *= np.float32(math.sqrt(2 / math.prod(shape[1:])))
    return values.reshape(shape)
