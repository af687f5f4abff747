"""A campaign that begins with what is known of other devices."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from esm_host.encoding.sources import SourceModels, SourcesEncoder
from esm_host.errors import UsageError
from esm_host.extension.settings import Settings
from esm_host.sampling.base import Sampler
from esm_host.sources import registry
from esm_host.transfer.choose import most_informative, prior_features
from esm_host.transfer.source_models import learn
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

POOL = 1500
"""Architectures that the first ones are chosen from."""


def source_models(settings: Settings, space: SearchSpace, folder: Path) -> SourceModels:
    """What a campaign's sources come to.

    Args:
        folder: of the campaign; others beside it are sources if all are asked for.

    Raises:
        UsageError: there is no source of the space, or one that is named does not exist.
        DatasetError: one that is named is damaged.
    """
    found = registry.fitting(space, settings.source_names, folder.parent, but=folder)
    if not found:
        if any(source.fits(space) for source in registry.everything(folder.parent, space)):
            raise UsageError(
                f"all that is known of {space.name} is of other resolutions, widths, batches or "
                f"dtypes than {registry.describe(space)}, or of less than {registry.LEAST} "
                "architectures: name what to learn from, as esm-host sources list calls it"
            )
        raise UsageError(
            f"no latencies of {space.name} are known of any other device: give some to esm-host "
            "import, name a campaign's folder, or begin without them"
        )
    return learn(space, found)


class Informative:
    """Draws the architectures that tell most.

    Args:
        held_out: of all that are drawn, so many by chance.
        keep: is given the keys of these.
    """

    def __init__(
        self,
        encoder: SourcesEncoder,
        sampler: Sampler,
        held_out: int,
        keep: Callable[[list[str]], None],
    ) -> None:
        self._encoder = encoder
        self._sampler = sampler
        self._held_out = held_out
        self._keep = keep

    def __call__(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]:
        count = n - self._held_out
        pool = self._sampler.sample(max(POOL, 2 * n), rng, bin_index, exclude)
        by_chance, pool = pool[: self._held_out], pool[self._held_out :]
        encodings = self._encoder.encode(pool)
        rows = most_informative(prior_features(encodings, self._encoder.layout), count)
        if by_chance:
            self._keep([architecture.key for architecture in by_chance])
        return [*(pool[row] for row in rows), *by_chance]
