"""Which architectures are measured on a new device: every sampler, and what each one is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.encoding import make_encoder
from esm_host.transfer.samplers import POOL_SAMPLERS, sample
from esm_models.spaces import load_space

SPACE = load_space("nasbench201")


def pool(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (n, 1, 6)).astype(np.int16)


def known(codes: np.ndarray) -> dict[str, np.ndarray]:
    encodings = make_encoder("operation-one-hot", SPACE).encode_codes(codes)
    return {"encodings": encodings, "latency_ms": 1.0 + codes.sum(axis=(1, 2))}


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(POOL_SAMPLERS),
    st.integers(1, 40),
    st.floats(0, 1),
    st.integers(0, 100),
    st.booleans(),
)
def test_every_sampler(name: str, n: int, share: float, seed: int, alike: bool) -> None:
    codes = pool(n, seed)
    if alike:
        codes[:] = codes[0]
    count = round(share * n)

    def chosen(number: int) -> list[int]:
        rng = np.random.default_rng(number)
        return sample(name, SPACE, codes, count, rng, **known(codes)).tolist()

    rows = chosen(seed)
    assert len(rows) == len(set(rows)) == count
    assert set(rows) <= set(range(n))
    assert rows == chosen(seed)


@pytest.mark.parametrize("name", POOL_SAMPLERS)
def test_seeds_differ(name: str) -> None:
    codes = pool(200, 0)
    chosen = {
        tuple(sample(name, SPACE, codes, 5, np.random.default_rng(seed), **known(codes)))
        for seed in range(6)
    }
    assert len(chosen) > 1


@pytest.mark.parametrize("name", POOL_SAMPLERS)
def test_no_more_than_there_are(name: str) -> None:
    codes = pool(7, 0)
    with pytest.raises(ValueError, match="8 of 7 architectures: choose 0 to 7"):
        sample(name, SPACE, codes, 8, np.random.default_rng(0), **known(codes))


def test_what_is_missing_is_named() -> None:
    codes, rng = pool(9, 0), np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown sampler 'best': choose random"):
        sample("best", SPACE, codes, 3, rng)
    with pytest.raises(ValueError, match="k-means needs encodings"):
        sample("k-means", SPACE, codes, 3, rng)
    with pytest.raises(ValueError, match="latency-oracle needs latency_ms"):
        sample("latency-oracle", SPACE, codes, 3, rng)
    with pytest.raises(ValueError, match="give 9, all finite"):
        sample("latency-oracle", SPACE, codes, 3, rng, latency_ms=np.full(9, np.nan))


@given(st.integers(0, 1000))
def test_latencies_are_spread(seed: int) -> None:
    rng = np.random.default_rng(seed)
    latency_ms = rng.permutation(60) + 1.0
    rows = sample("latency-oracle", SPACE, pool(60, 0), 6, rng, latency_ms=latency_ms)
    assert [int(value - 1) // 10 for value in latency_ms[rows]] == [0, 1, 2, 3, 4, 5]


def test_parameters_are_spread() -> None:
    """One convolution of each pool member is of 3x3 or 1x1; the others have no weights."""
    labels = [option.label for option in SPACE.options]
    codes = np.full((40, 1, 6), labels.index("skip_connect"), dtype=np.int16)
    codes[:20, 0, 0] = labels.index("nor_conv_3x3")
    for seed in range(5):
        rows = sample("parameters", SPACE, codes, 2, np.random.default_rng(seed))
        assert rows[0] >= 20 > rows[1]


def test_the_least_similar_come_first() -> None:
    encodings = np.ones((50, 3))
    encodings[17] = [-1, 1, 0]
    rng = np.random.default_rng(0)
    codes = pool(50, 0)
    rows = sample("cosine", SPACE, codes, 50, rng, encodings=encodings)
    assert rows[0] == 17
    # Length does not count.
    scaled = encodings * np.arange(1, 51)[:, None]
    again = sample("cosine", SPACE, codes, 50, rng, encodings=scaled)
    assert again[0] == 17


def test_each_cluster_is_met_at_its_centre() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    encodings = np.concatenate([centre + rng.uniform(-1, 1, (12, 2)) for centre in centres])
    rows = sample("k-means", SPACE, pool(48, 0), 4, rng, encodings=encodings)
    assert sorted(row // 12 for row in rows) == [0, 1, 2, 3]
    for row in rows:
        cluster = encodings[row // 12 * 12 : row // 12 * 12 + 12]
        distance = np.linalg.norm(cluster - cluster.mean(axis=0), axis=1)
        assert distance[row % 12] == distance.min()
