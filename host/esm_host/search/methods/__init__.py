"""Ways to search, by name; pymoo is loaded when one of its algorithms is asked for."""

from __future__ import annotations

from esm_host.errors import UsageError
from esm_host.search.method import SearchMethod
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import nearest

METHODS = {
    "exhaustive": "every architecture; of small spaces",
    "nsga2": "NSGA-II (Deb et al. 2002)",
    "nsga3": "NSGA-III, of three objectives and more (Deb and Jain 2014)",
    "sms-emoa": "SMS-EMOA, by hypervolume (Beume et al. 2007)",
    "single-weight": "One Proxy's evolution of a weighted sum, weight by weight (Lu et al. 2021)",
}
"""And what each is."""
LISTED = 50_000
"""Architectures of a space up to which all are looked at unless another method is asked for."""


def make_method(
    name: str | None, space: SearchSpace, seed: int = 0, listed: Codes | None = None
) -> SearchMethod:
    """A method by name; by default ``exhaustive`` where there are few architectures, else
    ``nsga2``.

    Args:
        listed: the only architectures that are of any use, where these are known; few, then.

    Raises:
        UsageError: there is no such method, it does not suit the space, or pymoo is not installed.
    """
    if name is None:
        few = listed is not None or space.count() <= LISTED
        name = "exhaustive" if few else "nsga2"
    if name not in METHODS:
        raise UsageError(
            f"unknown method '{name}': {nearest(name, METHODS)}choose {', '.join(METHODS)}"
        )
    if name == "exhaustive":
        from esm_host.search.methods.exhaustive import Exhaustive

        return Exhaustive(listed)
    if name == "single-weight":
        from esm_host.search.methods.single_weight import SingleWeight

        return SingleWeight(seed=seed)
    from esm_host.search.methods.with_pymoo import PymooSearch

    return PymooSearch(name, seed=seed)
