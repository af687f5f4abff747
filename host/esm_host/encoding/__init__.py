"""Architectures as numbers that a predictor can learn from."""

from __future__ import annotations

from esm_host.encoding.base import Encoder, Encoding
from esm_host.encoding.cost import CostEncoder, PartsEncoder, ScaledCountEncoder
from esm_host.encoding.graphs import GraphEncoder, PathEncoder
from esm_host.encoding.vectors import (
    FeatureCombinationCountEncoder,
    FeatureCountEncoder,
    FeatureEncoder,
    OneHotEncoder,
    OperationOneHotEncoder,
    StatisticalEncoder,
)
from esm_host.encoding.views import ViewsEncoder
from esm_host.errors import UsageError
from esm_models.space import SearchSpace
from esm_protos.nearest import nearest

ENCODERS: dict[str, type[Encoder]] = {
    encoder.name: encoder
    for encoder in (
        FeatureCombinationCountEncoder,
        FeatureCountEncoder,
        StatisticalEncoder,
        FeatureEncoder,
        OneHotEncoder,
        OperationOneHotEncoder,
        CostEncoder,
        PartsEncoder,
        ScaledCountEncoder,
        ViewsEncoder,
        GraphEncoder,
        PathEncoder,
    )
}


def make_encoder(name: str, space: SearchSpace) -> Encoder:
    """An encoder by name.

    Raises:
        UsageError: there is no such encoding, or it does not suit the space.
    """
    if name not in ENCODERS:
        hint = nearest(name, ENCODERS)
        raise UsageError(f"unknown encoding '{name}': {hint}choose {', '.join(ENCODERS)}")
    return ENCODERS[name](space)


__all__ = ["ENCODERS", "Encoder", "Encoding", "make_encoder"]
