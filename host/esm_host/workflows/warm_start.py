"""Warm start of a campaign with latencies of other devices."""

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
from esm_host.transfer.choose import choose
from esm_host.transfer.kept import reduced
from esm_host.transfer.samplers import sample
from esm_host.transfer.source import Source
from esm_host.transfer.source_models import sources_encoder
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

POOL = 1500
"""Number of candidates for the first architectures."""
SHARED = "shared"
"""Sampler that takes architectures measured by the sources instead of random candidates."""


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Sources of a new campaign, before its folder is created.

    Attributes:
        expected: Encoder with the predictions of the sources' models.
        sources: Sources, reduced to what the campaign's method learns from.
    """

    expected: SourcesEncoder
    sources: Sequence[Source]

    def encoder(self, settings: Settings) -> Encoder:
        """Return the encoder of the campaign's predictor."""
        space = self.expected.space
        return settings.encoder(space) if settings.adapts else self.expected

    def keep(self, settings: Settings, folder: RunFolder) -> None:
        """Write what the campaign needs of its sources into its folder."""
        self.expected.models.save(folder.sources)
        if settings.adapts or settings.first_sampler == SHARED:
            folder.kept_method(settings, self.expected.space).keep(self.sources)


def warm_start(settings: Settings, space: SearchSpace, folder: Path) -> WarmStart:
    """Load a new campaign's sources and check that its method and sampler can use them.

    Args:
        settings: Settings of the campaign.
        space: Search space of the campaign.
        folder: Folder of the campaign; ``"all"`` includes the campaigns beside it.

    Raises:
        UsageError: the space has no source, a named source does not exist, the method or the
            sampler cannot use them, or a library is missing.
        DatasetError: a named source is damaged.
    """
    method = make_method(settings.method, settings.seed, **settings.method_options)
    encoding = sampler_and_encoding(settings.first_sampler)[1]
    if encoding:
        _encodings("check_encodings")(encoding)
    found = registry.fitting(space, settings.source_names, folder.parent, but=folder)
    if not found:
        known = registry.everything(folder.parent, space)
        if any(source.space.name == space.name for source in known):
            raise UsageError(
                f"no source matches {registry.describe(space)} with at least {registry.LEAST} "
                "architectures: name the sources to learn from, as in "
                "esm-host sources list"
            )
        raise UsageError(
            f"there are no latencies of {space.name} from other devices: add some with esm-host "
            "import, name a campaign's folder, or begin without a warm start"
        )
    method.check(space, [source.name for source in found])
    expected = sources_encoder(space, found)
    return WarmStart(expected, reduced(settings.method, space, found, settings.seed))


class FirstArchitectures:
    """Drawing of the first architectures of a warm start, with the campaign's sampler.

    Args:
        settings: Settings of the campaign.
        expected: Encoder with the predictions of the sources' models.
        sources: Function that returns the sources, for samplers that need them.
        sampler: Sampler of the candidates and the held-out set.
        keep: Callback that stores the keys of the held-out set.
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
        """Return the architectures that most sources measured, in HELP's order of references."""
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
        codes = space.encode(pool)
        if name == "informative":
            return choose(self._expected, codes, count)
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
    """Return a function of the encodings that published samplers use."""
    found: Callable[..., Any] = load_class(
        f"esm_host.research.encodings.by_name:{function}", argument("sampler")
    )
    return found
