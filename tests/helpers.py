"""What several test files need."""

from esm_host.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace


def smallest(space: SearchSpace) -> Architecture:
    """The architecture of fewest blocks, all of the first option."""
    return space.extremes()[0]


def largest(space: SearchSpace) -> Architecture:
    """The architecture of most blocks, all of the last option."""
    return space.extremes()[1]


def depth_bins(space: SearchSpace, count: int) -> DepthBins:
    """That many bins, or as many as the space has depths."""
    depths = space.max_depth - space.min_depth + 1
    return DepthBins(space.min_depth, space.max_depth, min(count, depths))
