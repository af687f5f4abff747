"""Baseline that scales the depth of one good architecture."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np

from esm_host.errors import UsageError
from esm_models.space import Codes, SearchSpace


def scaled_in_depth(space: SearchSpace, code: Codes, most: int = 2) -> Codes:
    """Return an architecture and all variants with up to ``most`` blocks more or fewer.

    This is heuristic model scaling (Lu et al. 2021, Section 6.1.2). The paper does not say where
    blocks change. Here the last block of a unit is repeated or removed. The other blocks and the
    resolution stay.

    Args:
        space: Search space.
        code: Architecture, ``space.code_shape``.
        most: Largest number of blocks to add or remove.

    Returns:
        Codes, ``(n, *space.code_shape)``: the architecture, then shallower ones, then deeper ones.

    Raises:
        UsageError: the space has a single depth.
    """
    if all(len(depths) == 1 for depths in space.depths):
        raise UsageError(
            f"architectures of {space.name} are all of one depth: scale those of a space with more"
        )
    options = space.blocks_of(code[None])[0]
    depths = (options >= 0).sum(axis=1)
    # Each unit at its largest depth.
    full = np.take_along_axis(
        options, np.minimum(np.arange(space.max_unit_depth), depths[:, None] - 1), axis=1
    )
    found = [code]
    for sign in (-1, 1):
        for blocks in range(1, most + 1):
            for units in combinations_with_replacement(range(space.unit_count), blocks):
                wanted = depths + sign * np.bincount(units, minlength=space.unit_count)
                if all(depth in known for depth, known in zip(wanted, space.depths, strict=True)):
                    scaled = code.copy()
                    present = np.arange(space.max_unit_depth) < wanted[:, None]
                    space.blocks_of(scaled[None])[0] = np.where(present, full, -1)
                    found.append(scaled)
    return np.stack(found)
