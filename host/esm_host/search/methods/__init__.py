"""Search methods by name. pymoo is imported only for its own algorithms."""

from __future__ import annotations

from esm_host.errors import UsageError
from esm_host.search.method import SearchMethod
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import nearest

METHODS = {
    "exhaustive": "every architecture; for small spaces",
    "nsga2": "NSGA-II (Deb et al. 2002)",
    "nsga3": "NSGA-III, for three objectives and more (Deb and Jain 2014)",
    "sms-emoa": "SMS-EMOA, by hypervolume (Beume et al. 2007)",
    "single-weight": "One Proxy's evolution of a weighted sum, weight by weight (Lu et al. 2021)",
}
"""Methods and their descriptions."""
LISTED = 50_000
"""Largest space that is searched exhaustively by default."""


def make_method(
    name: str | None, space: SearchSpace, seed: int = 0, listed: Codes | None = None
) -> SearchMethod:
    """Return a search method by name.

    The default is ``exhaustive`` for small spaces and listed architectures, else ``nsga2``.

    Args:
        name: Name of the method; None for the default.
        space: Search space.
        seed: Random seed.
        listed: The few architectures with a value, if the values come from a table.

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
