"""A campaign that begins with what is known of other devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder
from esm_host.encoding.base import Encoder
from esm_host.encoding.sources import GROUP, SourcesEncoder
from esm_host.errors import UsageError
from esm_host.extension.settings import Settings
from esm_host.plugins import load_class
from esm_host.sampling.base import Sampler
from esm_host.sources import registry
from esm_host.transfer import make_method, sampler_and_encoding
from esm_host.transfer.choose import most_informative, prior_features
from esm_host.transfer.kept import reduced
from esm_host.transfer.samplers import sample
from esm_host.transfer.source import Source
from esm_host.transfer.source_models import learn
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

POOL = 1500
"""Architectures that the first ones are chosen from."""
SHARED = "shared"
"""The sampler that takes architectures which the sources have measured, and none of a pool."""


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Knowledge of other devices that a new campaign starts with, before its folder is made.

    Attributes:
        expected: what the sources' models expect of an architecture.
        sources: as much of them as the campaign's method learns from.
    """

    expected: SourcesEncoder
    sources: Sequence[Source]

    def encoder(self, settings: Settings) -> Encoder:
        """Return the one that the campaign's predictor learns from."""
        space = self.expected.space
        return settings.encoder(space) if settings.adapts else self.expected

    def keep(self, settings: Settings, folder: RunFolder) -> None:
        """Write into the campaign's folder what it needs of the sources, which may go then."""
        self.expected.models.save(folder.sources)
        if settings.adapts or settings.first_sampler == SHARED:
            folder.kept_method(settings, self.expected.space).keep(self.sources)


def warm_start(settings: Settings, space: SearchSpace, folder: Path) -> WarmStart:
    """Find a new campaign's sources, and whether its method and its sampler can work with them.

    Args:
        folder: of the campaign; others beside it are sources if all are asked for.

    Raises:
        UsageError: there is no source of the space, one that is named does not exist, or the method
            or the sampler cannot work with them, or lacks a library.
        DatasetError: one that is named is damaged.
    """
    method = make_method(settings.method, settings.seed, **settings.method_options)
    encoding = sampler_and_encoding(settings.first_sampler)[1]
    if encoding:
        _encodings("check_encodings")(encoding)
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
    method.check(space, [source.name for source in found])
    expected = SourcesEncoder(space, learn(space, found))
    return WarmStart(expected, reduced(settings.method, space, found, settings.seed))


class FirstArchitectures:
    """Draws the first architectures of a warm start, by the campaign's sampler.

    Args:
        expected: what the sources' models expect of an architecture.
        sources: what they measured, where the sampler takes of that.
        sampler: draws the pool, and those that are held out.
        keep: is given the keys of these.
    """

    def __init__(
        self,
        settings: Settings,
        expected: SourcesEncoder,
        sources: Callable[[], Sequence[Source]],
        sampler: Sampler,
        keep: Callable[[list[str]], None],
    ) -> None:
        self._settings = settings
        self._expected = expected
        self._sources = sources
        self._sampler = sampler
        self._keep = keep

    def __call__(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]:
        held_out = self._settings.held_out
        pool = self._sampler.sample(max(POOL, 2 * n), rng, bin_index, exclude)
        by_chance, pool = pool[:held_out], pool[held_out:]
        if by_chance:
            self._keep([architecture.key for architecture in by_chance])
        chosen: list[Architecture] = []
        if self._settings.first_sampler == SHARED:
            taken = {*exclude, *(architecture.key for architecture in by_chance)}
            chosen = self._shared(n - held_out, taken)
            drawn = {architecture.key for architecture in chosen}
            pool = [architecture for architecture in pool if architecture.key not in drawn]
        count = min(n - held_out - len(chosen), len(pool))
        rows = self._rows(pool, count, rng)
        return [*chosen, *(pool[row] for row in rows), *by_chance]

    def _shared(self, count: int, taken: Collection[str]) -> list[Architecture]:
        """Return what most sources measured, in the order in which HELP draws its references."""
        from esm_host.transfer.known import KnownLatencies  # slow to load

        codes = KnownLatencies(self._sources()).shared()
        order = np.random.default_rng(self._settings.seed).permutation(len(codes))
        shared = self._expected.space.decode(codes[order])
        return [architecture for architecture in shared if architecture.key not in taken][:count]

    def _rows(
        self, pool: list[Architecture], count: int, rng: np.random.Generator
    ) -> NDArray[np.intp]:
        name, encoding = sampler_and_encoding(self._settings.first_sampler)
        space = self._expected.space
        if name == "informative":
            encodings = self._expected.encode(pool)
            return most_informative(prior_features(encodings, self._expected.layout), count)
        codes = space.encode(pool)
        latency_ms, encoded = None, None
        if name == "latency-oracle":
            first, end = self._expected.layout.groups[GROUP]
            expected = self._expected.encode(pool)[:, first:end].astype(np.float64)
            latency_ms = np.exp(expected).mean(axis=1)
        if encoding:
            supplement = _encodings("supplement_of")(encoding, space)
            encoded = supplement.encode_codes(codes)
            encoded = (encoded - encoded.mean(axis=0)) / np.maximum(encoded.std(axis=0), 1e-9)
        kind = "random" if name == SHARED else name
        return sample(kind, space, codes, count, rng, encodings=encoded, latency_ms=latency_ms)


def _encodings(function: str) -> Callable[..., Any]:
    """Return a function of the encodings that samplers of papers read."""
    found: Callable[..., Any] = load_class(
        f"esm_host.research.encodings.by_name:{function}", argument("sampler")
    )
    return found
