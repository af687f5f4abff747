"""Which architectures are measured first, and how more are drawn; samplers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_host.plugins import plugin_class
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.sampling.base import Sampler
    from esm_host.sampling.bins import DepthBins
    from esm_models.space import SearchSpace

SAMPLERS = {
    "balanced": "esm_host.sampling.balanced:BalancedSampler",
    "random": "esm_host.sampling.random:RandomSampler",
}
"""Name -> where its class is."""

FAMILY = Family(
    what="sampler",
    group="esm.samplers",
    base="esm_host.sampling.base:Sampler",
    builtin=SAMPLERS,
)


def sampler_class(name: str) -> type[Sampler]:
    """Return the class behind a name.

    Args:
        name: in :data:`SAMPLERS`, of an installed package (entry points ``esm.samplers``), or
            ``path/to/file.py:Class``.

    Raises:
        UsageError: there is no such sampler, or it cannot be loaded.
    """
    found: type[Sampler] = plugin_class(FAMILY, name)
    return found


def make_sampler(name: str, space: SearchSpace, bins: DepthBins) -> Sampler:
    """Return a sampler by name.

    Raises:
        UsageError: as :func:`sampler_class`.
    """
    return sampler_class(name)(space, bins)


__all__ = ["FAMILY", "SAMPLERS", "make_sampler", "sampler_class"]
