"""What several test files need."""

from esm_models.architecture import Architecture
from esm_models.space import SearchSpace


def smallest(space: SearchSpace) -> Architecture:
    """The architecture of fewest blocks, all of the first option."""
    return space.extremes()[0]


def largest(space: SearchSpace) -> Architecture:
    """The architecture of most blocks, all of the last option."""
    return space.extremes()[1]
