"""Search methods by name. A method is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_host.plugins import Entry, build, plugin_class
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.search.method import SearchMethod
    from esm_models.space import Codes, SearchSpace

_PYMOO = "esm_host.search.methods.with_pymoo:PymooSearch"

METHODS = {
    "exhaustive": Entry(
        "esm_host.search.methods.exhaustive:Exhaustive", "every architecture; for small spaces"
    ),
    "nsga2": Entry(_PYMOO, "NSGA-II (Deb et al. 2002)", {"algorithm": "nsga2"}),
    "nsga3": Entry(
        _PYMOO,
        "NSGA-III, for three objectives and more (Deb and Jain 2014)",
        {"algorithm": "nsga3"},
    ),
    "sms-emoa": Entry(
        _PYMOO, "SMS-EMOA, by hypervolume (Beume et al. 2007)", {"algorithm": "sms-emoa"}
    ),
    "single-weight": Entry(
        "esm_host.search.methods.single_weight:SingleWeight",
        "One Proxy's evolution of a weighted sum, weight by weight (Lu et al. 2021)",
    ),
}
"""Methods that come with the project."""
LISTED = 50_000
"""Largest space that is searched exhaustively by default."""

FAMILY = Family(
    what="method",
    group="esm.search_methods",
    base="esm_host.search.method:SearchMethod",
    builtin={name: each.where for name, each in METHODS.items()},
)


def make_method(
    name: str | None, space: SearchSpace, seed: int = 0, listed: Codes | None = None
) -> SearchMethod:
    """Return a search method by name.

    The default is ``exhaustive`` for small spaces and listed architectures, else ``nsga2``.

    Args:
        name: Name in :data:`METHODS`, of an installed package (entry points
            ``esm.search_methods``), or ``path/to/file.py:Class``; None for the default.
        space: Search space.
        seed: Random seed.
        listed: The few architectures with a value, if the values come from a table.

    Raises:
        UsageError: there is no such method, it does not suit the space, or pymoo is not installed.
    """
    if name is None:
        few = listed is not None or space.count() <= LISTED
        name = "exhaustive" if few else "nsga2"
    cls: type[SearchMethod] = plugin_class(FAMILY, name)
    given = METHODS[name].params if name in METHODS else {}
    return build(cls, name, given, seed=seed, listed=listed)
