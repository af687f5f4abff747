"""What every sampler does on every search space."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.errors import UsageError
from esm_host.sampling import SAMPLERS, make_sampler
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.base import Sampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_models.errors import InvalidArchitectureError
from esm_models.graph import Network
from esm_models.space import Feature, SearchSpace
from esm_models.spaces import SPACES, load_space
from tests.helpers import depth_bins

BUILTIN = list(SAMPLERS)


class TinySpace(SearchSpace):
    """84 architectures, few enough to list: (2 + 4) * (2 + 4 + 8)."""

    name = "tiny"
    depths = ((1, 2), (1, 2, 3))
    features = (Feature("kernel", "k", (3, 5)),)

    def network(self, net: Network, units: object) -> str:
        raise NotImplementedError


class SparseSpace(TinySpace):
    """Depths 2, 5 and 8 only: a bin may hold none."""

    depths = ((1, 4), (1, 4))


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(request.param)


@pytest.fixture
def sampler(plugin: str, space: SearchSpace) -> Sampler:
    return make_sampler(plugin, space, depth_bins(space, 4))


def test_draws_different_valid_architectures(sampler: Sampler) -> None:
    drawn = sampler.sample(200, np.random.default_rng(0))
    for architecture in drawn:
        sampler.space.validate(architecture)
    assert len({a.key for a in drawn}) == 200


def test_codes_are_outside_of_a_space_where_their_architectures_are(space: SearchSpace) -> None:
    drawn = make_sampler("random", space, depth_bins(space, 1)).sample(40, np.random.default_rng(0))
    codes = space.encode(drawn)
    assert not space.outside(codes).any()
    rng = np.random.default_rng(1)
    for row, (unit, block) in zip(codes, rng.integers(0, codes.shape[1:], (40, 2)), strict=True):
        row[unit, block] = rng.integers(-1, len(space.options))

    def is_outside(row: np.ndarray) -> bool:
        try:
            again = space.encode(space.decode(row[None]))[0]
        except (InvalidArchitectureError, IndexError):
            return True
        return not np.array_equal(again, row)

    assert space.outside(codes).tolist() == [is_outside(row) for row in codes]
    assert space.outside(np.full((1, *space.code_shape), 999, np.int16)).all()


def test_the_generator_decides(sampler: Sampler) -> None:
    first, again, other = (sampler.sample(20, np.random.default_rng(s)) for s in (0, 0, 1))
    assert first == again != other


def test_never_draws_what_is_excluded(sampler: Sampler) -> None:
    first = {a.key for a in sampler.sample(50, np.random.default_rng(0))}
    second = {a.key for a in sampler.sample(50, np.random.default_rng(0), exclude=first)}
    assert len(second) == 50
    assert not first & second


def test_none_and_less_than_none(sampler: Sampler) -> None:
    assert sampler.sample(0, np.random.default_rng(0)) == []
    with pytest.raises(UsageError):
        sampler.sample(-1, np.random.default_rng(0))


def test_an_exhausted_space_gives_what_it_has(plugin: str) -> None:
    space = TinySpace()
    drawn = make_sampler(plugin, space, DepthBins(2, 5, 2)).sample(1000, np.random.default_rng(0))
    assert len(drawn) == space.count() == 84


def test_free_resolutions_are_equally_likely(plugin: str) -> None:
    space = load_space("ofa")
    sampler = make_sampler(plugin, space, depth_bins(space, 5))
    codes = sampler._codes(25_000, None, np.random.default_rng(0))
    counts = np.bincount(codes[:, -1, 0], minlength=len(space.resolutions))
    assert len(counts) == len(space.resolutions) == 25
    assert (np.abs(counts - 1000) < 160).all()  # five standard deviations
    assert (codes[:, -1, 1:] == -1).all()


def test_a_resolution_that_is_given_is_not_drawn() -> None:
    space = load_space("ofa", resolution=160)
    sampler = BalancedSampler(space, depth_bins(space, 5))
    for architecture in sampler.sample(20, np.random.default_rng(0)):
        assert architecture.resolution is None
        space.validate(architecture)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_balanced_draws_stay_in_their_bin(bins: int, seed: int) -> None:
    space = load_space("resnet")
    sampler = BalancedSampler(space, DepthBins(space.min_depth, space.max_depth, bins))
    for index in range(bins):
        drawn = sampler.sample(5, np.random.default_rng(seed), index)
        assert len(drawn) == 5
        assert {a.depth for a in drawn} <= set(sampler.bins.depths(index))


def test_balanced_quotas_are_equal() -> None:
    sampler = BalancedSampler(load_space("resnet"), DepthBins(4, 28, 4))
    assert sampler.quotas(10) == [3, 3, 2, 2]


def test_balanced_is_uniform_over_everything_of_one_depth() -> None:
    """Every one of the architectures of depth 3 comes equally often (chi-squared)."""
    space = TinySpace()
    sampler = BalancedSampler(space, DepthBins(2, 5, 4))
    codes = sampler._codes(24_000, 1, np.random.default_rng(0))
    counts = Counter(a.key for a in space.decode(codes))
    # depth 3 = 1 + 2 or 2 + 1: 2 * 4 + 4 * 2 = 16 architectures
    assert len(counts) == 16
    expected = 24_000 / 16
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < 37.7  # the 99.9th percentile with 15 degrees of freedom


def test_balanced_depths_within_a_bin_are_equally_likely() -> None:
    space = load_space("resnet")
    sampler = BalancedSampler(space, DepthBins(4, 28, 5))
    codes = sampler._codes(10_000, 0, np.random.default_rng(0))
    counts = Counter((codes >= 0).sum(axis=(1, 2)).tolist())
    assert sorted(counts) == list(range(4, 9))
    assert all(abs(count - 2000) < 200 for count in counts.values())


def test_random_crowds_in_the_middle_as_the_paper_says() -> None:
    space = load_space("resnet")
    drawn = RandomSampler(space, DepthBins(4, 28, 5)).sample(2000, np.random.default_rng(0))
    depths = [a.depth for a in drawn]
    middle = sum(12 <= depth <= 20 for depth in depths)
    assert middle > 1400
    assert sum(depth < 7 or depth > 25 for depth in depths) < 60


def test_random_knows_no_bins() -> None:
    with pytest.raises(UsageError, match="sampling balanced"):
        RandomSampler(TinySpace(), DepthBins(2, 5, 2)).sample(1, np.random.default_rng(0), 0)


def test_a_bin_without_architectures_gives_none() -> None:
    space = SparseSpace()
    sampler = BalancedSampler(space, DepthBins(2, 8, 7))
    sizes = [len(sampler.sample(3, np.random.default_rng(0), index)) for index in range(7)]
    assert sizes == [3, 0, 0, 3, 0, 0, 3]


def test_units_of_one_option_stay_so(sampler: Sampler, space: SearchSpace) -> None:
    drawn = sampler.sample(50, np.random.default_rng(0))
    mixed = any(len(set(unit)) > 1 for a in drawn for unit in a.units)
    assert mixed is not space.one_option_per_unit


def test_bins_get_what_was_asked_for_or_are_refused(sampler: Sampler) -> None:
    rng = np.random.default_rng(0)
    assert (sampler.quotas(10) is None) is not sampler.by_bin
    if not sampler.by_bin:
        with pytest.raises(UsageError, match="sampling balanced"):
            sampler.sample(1, rng, 0)
        return
    assert sum(sampler.quotas(10)) == 10
    for index in range(sampler.bins.count):
        depths = set(sampler.bins.depths(index))
        assert {a.depth for a in sampler.sample(5, rng, index)} <= depths
