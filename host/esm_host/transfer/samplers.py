"""Samplers of a pool, which choose all architectures before any is measured.

The samplers are those of NASFLAT (Akhauri and Abdelfattah 2024, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from esm_host.encoding.cost import CostEncoder
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import unknown

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


def random(count: int, pool: int, rng: np.random.Generator) -> Rows:
    """Return random rows."""
    return rng.choice(pool, count, replace=False)


def spread(values: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """Return a random row of each of ``count`` groups of equal size, by rising values."""
    groups = np.array_split(np.argsort(np.asarray(values), kind="stable"), count)
    return np.array([rng.choice(group) for group in groups], dtype=np.intp)


def by_cosine(encodings: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """Return rows spread over the mean cosine similarity to the pool.

    Section 4.2 asks for low similarity on average. The groups are those of the authors' repository.

    Args:
        encodings: Encodings, ``(n, d)``.
        count: Number of rows.
        rng: Random generator.
    """
    x = np.asarray(encodings, dtype=np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1)
    return spread(unit @ unit.mean(axis=0), count, rng)


def by_k_means(encodings: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """Return the row nearest to the centre of each of ``count`` clusters.

    Missing rows are drawn at random if encodings are too similar for so many clusters.

    Args:
        encodings: Encodings, ``(n, d)``.
        count: Number of rows.
        rng: Random generator.
    """
    from sklearn.cluster import KMeans  # slow to load

    x = np.asarray(encodings, dtype=np.float64)
    seed = int(rng.integers(2**31))
    clusters = min(count, len(np.unique(x, axis=0)))
    with threadpool_limits(1):
        found = KMeans(clusters, n_init=1, random_state=seed).fit(x)
    distance = np.linalg.norm(x - found.cluster_centers_[found.labels_], axis=1)
    members = (np.flatnonzero(found.labels_ == cluster) for cluster in range(clusters))
    chosen = [each[np.argmin(distance[each])] for each in members if len(each)]
    left = np.setdiff1d(np.arange(len(x)), chosen)
    more = rng.choice(left, count - len(chosen), replace=False)
    return np.array([*chosen, *more], dtype=np.intp)


_BY_ENCODING: dict[str, Callable[[ArrayLike, int, np.random.Generator], Rows]] = {
    "cosine": by_cosine,
    "k-means": by_k_means,
}

POOL_SAMPLERS = ("random", "parameters", "latency-oracle", *_BY_ENCODING)
"""Samplers in :data:`esm_host.transfer.SAMPLERS` that choose from any pool."""


def sample(
    name: str,
    space: SearchSpace,
    codes: Codes,
    count: int,
    rng: np.random.Generator,
    *,
    encodings: ArrayLike | None = None,
    latency_ms: ArrayLike | None = None,
) -> Rows:
    """Return distinct rows of a pool, ``(count,)``.

    Args:
        name: Name in :data:`POOL_SAMPLERS`. ``parameters`` spreads over the number of parameters,
            ``latency-oracle`` over known latencies, ``cosine`` and ``k-means`` over encodings.
        space: Search space.
        codes: The pool, ``(n, *space.code_shape)``.
        count: Number of rows.
        rng: Random generator.
        encodings: Encodings of the pool with columns of one scale, ``(n, d)``, for ``cosine`` and
            ``k-means``.
        latency_ms: Latencies of the pool on a reference device, ``(n,)``, for ``latency-oracle``.

    Raises:
        ValueError: the pool is too small, there is no such sampler, or its input is missing.
    """
    if not 0 <= count <= len(codes):
        raise ValueError(f"{count} of {len(codes)} architectures: choose 0 to {len(codes)}")
    if name not in POOL_SAMPLERS:
        raise ValueError(unknown("sampler", name, POOL_SAMPLERS))
    if count == 0:
        return np.zeros(0, dtype=np.intp)
    if name == "random":
        return random(count, len(codes), rng)
    if name == "parameters":
        cost = CostEncoder(space)
        column = cost.columns.index("all.mparameters")
        return spread(cost.encode_codes(codes)[:, column], count, rng)
    if name == "latency-oracle":
        return spread(_given("latency_ms", name, latency_ms, len(codes)), count, rng)
    return _BY_ENCODING[name](_given("encodings", name, encodings, len(codes)), count, rng)


def _given(what: str, name: str, values: ArrayLike | None, n: int) -> Floats:
    if values is None:
        raise ValueError(f"sampler {name} needs {what} of the pool")
    array = np.asarray(values, dtype=np.float64)
    if len(array) != n or not np.isfinite(array).all():
        raise ValueError(f"{what} of {len(array)} architectures: give {n}, all finite")
    return array
