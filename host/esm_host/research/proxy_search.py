"""Search of a campaign that begins with the front of a proxy device (Lu et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from esm_host.arguments import argument
from esm_host.campaign.run import Run
from esm_host.errors import UsageError
from esm_host.research.search_by_proxy import CampaignSamples, ProxyVerification, verify_by_proxy
from esm_host.research.transfer.proxy import ProxyPredictor
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Measure, Problem
from esm_host.search.settings import SearchSettings
from esm_host.search.verify import Round, Site
from esm_host.sources import registry
from esm_host.transfer.kept import reduced
from esm_host.transfer.source import Source

_MOST_SAMPLES = 200
"""Largest number of samples to compare and adapt a proxy, independent of the budget."""


class ProxySearch:
    """Search of a campaign with the proxy of its settings.

    Args:
        settings: Settings of the search, with ``proxy``.
        run: Campaign.

    Raises:
        UsageError: there is no such source, it is of another space, or it is the campaign itself.
        DatasetError: the source is damaged.
    """

    def __init__(self, settings: SearchSettings, run: Run) -> None:
        self._settings = settings
        self._run = run
        self._proxy = _proxy(settings, run)

    def __call__(
        self,
        problem: Callable[[Sequence[Measure]], Problem],
        site: Site,
        method: SearchMethod,
        past: Sequence[Round],
        on_round: Callable[[Sequence[Round]], None],
    ) -> ProxyVerification:
        """Measure the front of the proxy or of its adapted predictor.

        The arguments are those of :func:`~esm_host.research.search_by_proxy.verify_by_proxy`.
        """
        settings, run = self._settings, self._run
        measured = run.measurements()
        own = set(measured.loc[measured["round"] >= 0, "architecture_key"])
        architectures = [a for a in run.of("latency").dataset().architectures if a.key in own]
        count = len(own) + _MOST_SAMPLES
        drawn = run.sample(count, "random", settings.seed, settings.contexts)
        codes = run.space.encode(architectures)
        samples = CampaignSamples(
            codes[run.space.at(**settings.contexts).in_contexts(codes)],
            run.space.encode([a for a in drawn if a.key not in own]),
        )
        return verify_by_proxy(
            problem, site, self._proxy, samples, method, settings, past, on_round
        )


def _proxy(settings: SearchSettings, run: Run) -> Source:
    """Return the proxy as a source of the campaign's space.

    Of several devices it is the one whose predictor ranks most as the campaign measured.
    """
    found = registry.fitting(run.space, [settings.proxy], run.path.parent)
    sources = reduced("proxy", run.space, found, settings.seed)
    if any(Path(source.name).resolve() == run.path.resolve() for source in sources):
        raise UsageError(
            f"{argument('proxy')} '{settings.proxy}' is the campaign itself: give another device"
        )
    if len(sources) == 1:
        return sources[0]
    measured = run.of("latency").dataset().only(run.settings.trusted_verdicts)
    nearest = ProxyPredictor().learn(sources)
    nearest.adapt(run.space.encode(measured.architectures), measured.latency_ms)
    return next(source for source in sources if source.name == nearest.proxy_)
