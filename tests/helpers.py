"""What several test files need."""

from esm_models.architecture import Architecture
from esm_models.space import SearchSpace


def smallest(space: SearchSpace) -> Architecture:
    """The architecture of fewest blocks, all of the first option."""
    label = space.options[0].label
    return Architecture(space.name, tuple((label,) * min(depths) for depths in space.depths))


def largest(space: SearchSpace) -> Architecture:
    """The architecture of most blocks, all of the last option."""
    label = space.options[-1].label
    return Architecture(space.name, tuple((label,) * max(depths) for depths in space.depths))
