"""Samplers of architectures, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.plugins import own_failures, plugin_class
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.sampling.base import Sampler
    from esm_host.sampling.bins import DepthBins
    from esm_models.space import SearchSpace

SAMPLERS = {
    "balanced": "esm_host.sampling.balanced:BalancedSampler",
    "informative": "esm_host.sampling.informative:InformativeSampler",
    "random": "esm_host.sampling.random:RandomSampler",
}
"""Locations of the samplers' classes, by name."""

FAMILY = Family(
    what="sampler",
    group="esm.samplers",
    base="esm_host.sampling.base:Sampler",
    builtin=SAMPLERS,
)


def sampler_class(name: str) -> type[Sampler]:
    """Return the class of a sampler.

    Args:
        name: Name in :data:`SAMPLERS`, of an installed package (entry points ``esm.samplers``),
            or ``path/to/file.py:Class``.

    Raises:
        UsageError: the sampler does not exist, cannot be loaded, or chooses without bins.
    """
    found: type[Sampler] = plugin_class(FAMILY, name)
    if found.chooses and not found.by_bin:
        raise UsageError(f"{argument('sampling')} {name}: chooses needs by_bin, set both to True")
    return found


def make_sampler(name: str, space: SearchSpace, bins: DepthBins) -> Sampler:
    """Return a sampler by name.

    Args:
        name: As in :func:`sampler_class`.
        space: Search space.
        bins: Depth bins of the space.

    Raises:
        UsageError: the sampler does not exist or cannot be loaded.
        EsmError: the constructor of a class from a user's file fails.
    """
    cls = sampler_class(name)
    with own_failures(cls, "cannot be built"):
        return cls(space, bins)


__all__ = ["FAMILY", "SAMPLERS", "make_sampler", "sampler_class"]
