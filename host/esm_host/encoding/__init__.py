"""Encoders of architectures as numbers for predictors, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_host import plugins
from esm_host.errors import EsmError, UsageError
from esm_models.errors import ModelsError
from esm_protos.plugins import Family, described, split

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_models.space import SearchSpace

ENCODERS = {
    "fcc": "esm_host.encoding.vectors:FeatureCombinationCountEncoder",
    "fc": "esm_host.encoding.vectors:FeatureCountEncoder",
    "statistical": "esm_host.encoding.vectors:StatisticalEncoder",
    "feature": "esm_host.encoding.vectors:FeatureEncoder",
    "one-hot": "esm_host.encoding.vectors:OneHotEncoder",
    "operation-one-hot": "esm_host.encoding.vectors:OperationOneHotEncoder",
    "cost": "esm_host.encoding.cost:CostEncoder",
    "parts": "esm_host.encoding.cost:PartsEncoder",
    "scaled-fcc": "esm_host.encoding.cost:ScaledCountEncoder",
    "views": "esm_host.encoding.views:ViewsEncoder",
    "graph": "esm_host.encoding.graphs:GraphEncoder",
    "path": "esm_host.encoding.graphs:PathEncoder",
}
"""Locations of the encoders' classes, by name."""

FAMILY = Family(
    what="encoding",
    group="esm.encodings",
    base="esm_host.encoding.base:Encoder",
    builtin=ENCODERS,
    required=("name",),
)


def encoder_class(name: str) -> type[Encoder]:
    """Return the class of an encoder.

    Raises:
        UsageError: the encoding does not exist or cannot be loaded.
    """
    found: type[Encoder] = plugins.plugin_class(FAMILY, name)
    return found


def make_encoder(name: str, space: SearchSpace) -> Encoder:
    """Return an encoder by name.

    Args:
        name: Name in :data:`ENCODERS`, of an installed package (entry points ``esm.encodings``),
            or ``path/to/file.py:Class``.
        space: Search space to encode.

    Raises:
        UsageError: the encoding does not exist, does not suit the space, or is a user's own and
            fails.
    """
    cls = encoder_class(name)
    if name in ENCODERS:
        return cls(space)
    try:  # report errors now instead of during a campaign
        encoder = cls(space)
        encoder.encode(space.extremes())
    except (EsmError, ModelsError):
        raise
    except Exception as error:  # a user's code may fail in any way
        path, _ = split(name)
        raise UsageError(f"{name} cannot encode {space.name}: {described(error, path)}") from error
    return encoder


__all__ = ["ENCODERS", "FAMILY", "encoder_class", "make_encoder"]
