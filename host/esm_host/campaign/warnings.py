"""Warnings about a campaign as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esm_host.dataset.collect import RoundQuality
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import Store
from esm_host.evaluation.verdict import more_threads
from esm_host.extension.campaign_loop import RoundMeasurer
from esm_host.extension.settings import Settings
from esm_host.timing.compare import provider_table
from esm_protos.providers import ProviderInfo

_TOLERATED = 0.05
"""Share of the budget by which rounds exceed it on a steady device."""


def campaign_warnings(
    store: Store, measurements: Measurements, settings: Settings
) -> dict[str, str]:
    """Return the warnings by name, each one line with marked names of arguments."""
    found = {
        "threads": _more_threads(store, measurements, settings),
        "budget": _over_budget(store, settings),
    }
    return {name: text for name, text in found.items() if text}


def _more_threads(store: Store, measurements: Measurements, settings: Settings) -> str:
    used, spec = measurements.threads_used(), settings.spec
    if not used:
        return ""
    known = provider_table(store.last_device())
    provider = next((p for p in known if p.name == spec.provider), ProviderInfo(spec.provider))
    return more_threads(provider, used, spec.threads, spec.session)


def _over_budget(store: Store, settings: Settings) -> str:
    if settings.budget_s is None:
        return ""
    busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
    over_s = busy_s - settings.budget_s
    if over_s <= _TOLERATED * settings.budget_s:
        return ""
    return (
        f"the campaign took {busy_s:.0f} s of device time, {over_s:.0f} s "
        f"({100 * over_s / settings.budget_s:.0f} %) more than {settings.named_budget}"
    )


class WarningMeasurer:
    """Measurer of rounds that passes on each warning once, after the round that caused it.

    Args:
        measurer: Measurer of the rounds.
        warnings: Function that returns the warnings so far, by name.
        warn: Callback for a warning.
    """

    def __init__(
        self,
        measurer: RoundMeasurer,
        warnings: Callable[[], Mapping[str, str]],
        warn: Callable[[str], None],
    ) -> None:
        self._measurer = measurer
        self._warnings = warnings
        self._warn = warn
        self._told: set[str] = set()

    def collect(self, round_number: int) -> RoundQuality:
        quality = self._measurer.collect(round_number)
        for name, text in self._warnings().items():
            if name not in self._told:
                self._told.add(name)
                self._warn(text)
        return quality
