"""Depth bins cover every depth once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.errors import UsageError
from esm_host.sampling.bins import DepthBins


@given(st.integers(0, 50), st.integers(0, 60), st.data())
def test_bins_partition_the_depths_about_equally(low: int, more: int, data: st.DataObject) -> None:
    bins = DepthBins(low, low + more, data.draw(st.integers(1, more + 1)))
    ranges = [bins.depths(index) for index in range(bins.count)]
    assert [d for r in ranges for d in r] == list(range(low, low + more + 1))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    for index, depths in enumerate(ranges):
        assert set(bins.of(np.array(depths)).tolist()) == {index}


@pytest.mark.parametrize("count", [0, -1, 26])
def test_impossible_bins_name_the_possible(count: int) -> None:
    with pytest.raises(UsageError, match="give 1 to 25"):
        DepthBins(4, 28, count)


def test_a_single_depth_is_singular() -> None:
    with pytest.raises(UsageError, match=r"the space has 1 depth \(4 to 4\)"):
        DepthBins(4, 4, 2)
