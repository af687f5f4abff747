"""Which architectures of a pool to measure on a new device, chosen before any is (NASFLAT, section
4; Akhauri and Abdelfattah 2024)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from esm_host.encoding.cost import CostEncoder
from esm_models.space import Codes, SearchSpace

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


def random(count: int, pool: int, rng: np.random.Generator) -> Rows:
    """Any."""
    return rng.choice(pool, count, replace=False)


def spread(values: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """One at random of each of ``count`` groups of about the same size, from those with the least
    values to those with the greatest."""
    groups = np.array_split(np.argsort(np.asarray(values), kind="stable"), count)
    return np.array([rng.choice(group) for group in groups], dtype=np.intp)


def by_cosine(encodings: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """:func:`spread` over the mean cosine similarity to all of the pool, ``(n, d)``: from what is
    like no other to what is like many.

    Section 4.2 wants little similarity on average; the groups are the authors' repository's.
    """
    x = np.asarray(encodings, dtype=np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1)
    return spread(unit @ unit.mean(axis=0), count, rng)


def by_k_means(encodings: ArrayLike, count: int, rng: np.random.Generator) -> Rows:
    """Of each of ``count`` clusters what is nearest to its centre; at random what is missing where
    encodings ``(n, d)`` are too alike for so many clusters."""
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
    """Rows of a pool, none twice, ``(count,)``.

    Args:
        name: of :data:`POOL_SAMPLERS`: ``random``; ``parameters``, spread over the numbers of
            parameters; ``latency-oracle``, spread over latencies that are known of the whole
            pool; ``cosine`` and ``k-means``, spread over encodings.
        codes: the pool, ``(n, *space.code_shape)``.
        encodings: of the pool, ``(n, d)``, for ``cosine`` and ``k-means``; columns should be of
            one scale.
        latency_ms: of the pool on a reference device, ``(n,)``, for ``latency-oracle``.

    Raises:
        ValueError: the pool is too small, there is no such sampler, or what it needs is missing.
    """
    if not 0 <= count <= len(codes):
        raise ValueError(f"{count} of {len(codes)} architectures: choose 0 to {len(codes)}")
    if name not in POOL_SAMPLERS:
        raise ValueError(f"unknown sampler '{name}': choose {', '.join(POOL_SAMPLERS)}")
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
