"""One architecture, deeper and shallower."""

from __future__ import annotations

import numpy as np
import pytest

from esm_host.errors import UsageError
from esm_host.research.depth_scaling import scaled_in_depth
from esm_host.sampling.random import RandomSampler
from esm_host.search.genes import distinct
from esm_models.space import Codes
from esm_models.spaces import load_space
from tests.helpers import depth_bins, largest, smallest


@pytest.fixture(params=["ofa", "resnet", "densenet"])
def some(request: pytest.FixtureRequest):
    space = load_space(request.param)
    sampler = RandomSampler(space, depth_bins(space, 4))
    return space, space.encode(sampler.sample(20, np.random.default_rng(0)))


def blocks(space, codes: Codes) -> np.ndarray:
    return (space.blocks_of(codes) >= 0).sum(axis=(1, 2))


def test_architectures_of_the_space_within_two_blocks(some) -> None:
    space, codes = some
    for code in codes:
        scaled = scaled_in_depth(space, code)
        for architecture in space.decode(scaled):
            space.validate(architecture)
        np.testing.assert_array_equal(scaled[0], code)
        assert len(distinct(scaled)) == len(scaled) > 1
        more = blocks(space, scaled) - blocks(space, code[None])
        assert set(np.abs(more[1:])) <= {1, 2}
        assert (np.diff(np.sign(more[1:])) >= 0).all()  # shallower ones first


def test_the_last_block_of_a_unit_is_repeated_or_goes(some) -> None:
    space, codes = some
    for code in codes:
        before = space.blocks_of(code[None])[0].tolist()
        for after in space.blocks_of(scaled_in_depth(space, code)).tolist():
            for old, new in zip(before, after, strict=True):
                old = [option for option in old if option >= 0]
                new = [option for option in new if option >= 0]
                shared = min(len(old), len(new))
                assert new[:shared] == old[:shared]
                assert set(new[shared:]) <= {old[-1]}


def test_the_resolution_stays() -> None:
    space = load_space("ofa")
    code = space.encode([smallest(space)])[0]
    scaled = scaled_in_depth(space, code)
    assert set(space.resolution_of(scaled)) == {128}
    # Nothing can go; one more in five places, or two.
    assert len(scaled) == 1 + 5 + 15


def test_at_most_so_many_blocks() -> None:
    space = load_space("ofa")
    assert len(scaled_in_depth(space, space.encode([largest(space)])[0], most=1)) == 1 + 5


def test_refuses_a_space_of_one_depth() -> None:
    space = load_space("nasbench201")
    with pytest.raises(UsageError, match="all of one depth"):
        scaled_in_depth(space, space.encode([smallest(space)])[0])
