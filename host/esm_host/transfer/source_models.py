"""Linear models of the source devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from esm_host.encoding.sources import SourceModels, SourcesEncoder
from esm_host.encoding.views import ViewsEncoder
from esm_host.predictors.design import Design
from esm_host.predictors.process import Process
from esm_host.transfer.source import Source
from esm_models.space import SearchSpace


def sources_encoder(space: SearchSpace, sources: Sequence[Source]) -> SourcesEncoder:
    """Return the encoder of a transfer: the sources' predictions beside what the network tells.

    The command and the benchmarks both learn sources by it.
    """
    return SourcesEncoder(space, learn(space, sources))


def learn(space: SearchSpace, sources: Sequence[Source]) -> SourceModels:
    """Fit a linear model of log latency to each source.

    Each is a Gaussian process with linear kernels, which suits fifty measurements as well as a
    thousand. It takes a fraction of a second per source.

    Args:
        space: Space for which architectures are encoded; sources may be of other settings of it.
        sources: Sources to fit.
    """
    views = ViewsEncoder(space)
    encoded: dict[int, NDArray[np.float32]] = {}
    intercept, weights = np.zeros(len(sources)), np.zeros((len(views), len(sources)))
    for number, source in enumerate(sources):
        if id(source.codes) not in encoded:  # devices of a table share their architectures
            encoded[id(source.codes)] = views.encode_codes(source.codes)
        x = encoded[id(source.codes)]
        process = Process(list(views.layout.groups), (), "log")
        with threadpool_limits(1):  # threads slow down matrices this small
            process.fit(Design.of(x, views.layout), x, source.latency_ms, np.ones(len(x)))
        intercept[number], weights[:, number] = process.linear_function()
    return SourceModels(tuple(source.name for source in sources), intercept, weights)
