"""Random weights of a weightless graph, drawn from the names and shapes of its initializers.

A graph may omit its initializers. Every device then draws the same values by this rule, so all
devices run the same network. A dense network's latency does not depend on the values, unless
activations become zero, denormal or infinite. He-normal weights keep activations in range
through any depth (He et al. 2015, eq. 10).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WEIGHTLESS_LOCATION = "weightless"
"""External data location of an omitted initializer; no such file exists."""

# Normal deviates are drawn once. Each tensor copies them from its own offset, so 80 MB take as
# long as a copy. The size is prime, so no layer's shape is a divisor of it.
_POOL_SIZE = 1_048_573


@lru_cache(maxsize=1)
def _pool(seed: int) -> NDArray[np.float32]:
    pool = np.random.default_rng(seed).standard_normal(_POOL_SIZE, dtype=np.float32)
    return np.concatenate([pool, pool])  # every offset has a whole pool after it


def draw_weights(name: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Return the values of one initializer.

    Args:
        name: Name of the initializer; different names give different values.
        shape: Shape, output features first, as in ONNX convolutions and ``Gemm(transB=1)``.
        seed: Random seed of the whole network.

    Returns:
        float32 array of ``shape``. With two or more dimensions the values are normal with
        variance 2 / fan-in. The fan-in is the product of all dimensions except the first. With
        one dimension (biases, parameters of a normalisation) they are uniform in [0.5, 1.5).
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
