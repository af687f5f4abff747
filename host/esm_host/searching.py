"""A search from beginning to end: put together from its parts, run, and written to its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_host.arguments import argument
from esm_host.atomic import write_json
from esm_host.campaign_site import CampaignSite, campaign_sites, latency_of
from esm_host.errors import RunExistsError, UsageError
from esm_host.folder import RunFolder
from esm_host.measuring import PATIENCE_S
from esm_host.run import Run, load_run
from esm_host.search.costs import NetworkCost
from esm_host.search.known import Known
from esm_host.search.method import SearchMethod
from esm_host.search.methods import make_method
from esm_host.search.objectives import read_measure
from esm_host.search.problem import Found, Measure, Problem
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_host.search.verify import Round, Verified, verified_search
from esm_host.search.written import read_rounds, write_front, write_rounds
from esm_host.sources import registry
from esm_host.sources.source import Source
from esm_host.transfer.kept import reduced
from esm_host.watcher import CampaignWatcher, Watcher
from esm_models.space import SearchSpace

if TYPE_CHECKING:
    from esm_host.search.one_proxy import VerifiedByProxy

_MOST_SAMPLES = 200
"""Measured to compare a proxy and to adapt it, at most: whatever the budget is, the same ones."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search came to.

    Attributes:
        front: architectures on it, with their quantities: measured, or predicted where nothing
            was to be measured.
        closest: of what keeps not all limits, what comes closest, where the front is empty.
        verified: how it was measured; None if it was not.
        problem: that was posed.
        by_proxy: what became of the proxy, where there was one.
    """

    front: Found
    closest: Found
    verified: Verified | None
    problem: Problem
    result: dict[str, Any]
    by_proxy: VerifiedByProxy | None = None


def run_search(
    settings: SearchSettings,
    output: str | Path,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
    wait: bool = True,
    watcher: CampaignWatcher | None = None,
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> Searched:
    """Searches, and measures what it finds with the campaigns' devices; broken off, it goes on
    from what was measured.

    What is measured is kept in the campaigns' stores, and their predictors learn from it.

    Args:
        output: folder, which is made.
        resume: go on with the folder's search, whose settings these are; it may measure more.
        patience_s: how long to wait for a device that went away.
        wait: False gives up on a device that somebody else uses.
        on_round: is told all rounds before what the last one chose is measured.

    Raises:
        UsageError: something that was asked for makes no sense.
        DatasetError: a campaign or the folder is unusable.
        BusyError: somebody else uses a campaign's folder, or a device and ``wait`` is False.
        DeviceError: a device is gone or refuses.
    """
    folder, watcher = SearchFolder(Path(output)), watcher or Watcher()
    runs = [load_run(path) for path in settings.runs]
    if settings.measure:  # a team's campaign may have gone on elsewhere
        for run in runs:
            RunFolder(run.path).prepare(resume=True)
        runs = [load_run(path) for path in settings.runs]
    space = _common_space(runs)
    _check_names(settings)
    own = [read_measure(wish, space) for wish in settings.wishes if wish.source]
    listed = next((measure.codes for measure in own if isinstance(measure, Known)), None)
    method = make_method(settings.method, space, settings.seed, listed)

    def problem(latencies: Sequence[Measure]) -> Problem:
        measures = [*latencies, NetworkCost(space), *own]
        return Problem(space, measures, settings.all_objectives, settings.all_limits)

    _prepare(folder, settings, resume)
    proxy, by_proxy = _proxy(settings, runs[0]) if settings.proxy else None, None
    if settings.measure:
        with campaign_sites(runs, settings.devices, patience_s, wait, watcher) as sites:
            write_json(folder.settings, settings.to_json())  # once nobody else uses the campaigns
            if proxy is None:
                searched = _verified(settings, folder, problem, sites, method, on_round)
            else:
                searched, by_proxy = _by_proxy(
                    settings, folder, problem, runs[0], sites[0], proxy, method, on_round
                )
            for site in sites:
                site.keep_predictor()
    else:
        write_json(folder.settings, settings.to_json())
        pairs = zip(runs, settings.devices, strict=True)
        posed = problem([latency_of(run, settings.probability, name) for run, name in pairs])
        outcome = method.search(posed)
        searched = outcome.front, outcome.closest, None, posed
    result = write_front(folder, settings, searched[0], *searched[2:], by_proxy)
    return Searched(*searched, result, by_proxy)


def _verified(
    settings: SearchSettings,
    folder: SearchFolder,
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[CampaignSite],
    method: SearchMethod,
    on_round: Callable[[Sequence[Round]], None] | None,
) -> tuple[Found, Found, Verified | None, Problem]:
    posed = problem([site.latency(settings.probability) for site in sites])
    verified = verified_search(
        problem,
        sites,
        method,
        settings.measure,
        settings.batch,
        settings.probability,
        past=read_rounds(folder, posed),
        on_round=_keeping(folder, posed, on_round),
    )
    return verified.front, verified.closest, verified, posed


def _keeping(
    folder: SearchFolder, posed: Problem, on_round: Callable[[Sequence[Round]], None] | None
) -> Callable[[Sequence[Round]], None]:
    """Return what writes all rounds before the last one's choice is measured."""

    def keep(rounds: Sequence[Round]) -> None:
        write_rounds(folder, rounds, posed.space)
        if on_round is not None:
            on_round(rounds)

    return keep


def _proxy(settings: SearchSettings, run: Run) -> Source:
    """The source that is to be the proxy, as one of the campaign's own space.

    Of several devices the one whose predictor ranks most as the campaign measured.

    Raises:
        UsageError: there is no such source, it is of another space, or the campaign itself.
        DatasetError: it is damaged.
    """
    from esm_host.transfer.methods.proxy import ProxyPredictor  # slow to load

    found = registry.fitting(run.space, [settings.proxy], run.path.parent)
    sources = reduced("proxy", run.space, found, settings.seed)
    if any(Path(source.name).resolve() == run.path.resolve() for source in sources):
        raise UsageError(
            f"{argument('proxy')} '{settings.proxy}' is the campaign itself: give another device"
        )
    if len(sources) == 1:
        return sources[0]
    measured = run.dataset().only(run.settings.trusted_verdicts)
    alike = ProxyPredictor().learn(sources)
    alike.adapt(run.space.encode(measured.architectures), measured.latency_ms)
    return next(source for source in sources if source.name == alike.proxy_)


def _by_proxy(
    settings: SearchSettings,
    folder: SearchFolder,
    problem: Callable[[Sequence[Measure]], Problem],
    run: Run,
    site: CampaignSite,
    proxy: Source,
    method: SearchMethod,
    on_round: Callable[[Sequence[Round]], None] | None,
) -> tuple[tuple[Found, Found, Verified | None, Problem], VerifiedByProxy]:
    from esm_host.search.one_proxy import verified_by_proxy  # slow to load

    posed = problem([site.latency(settings.probability)])
    measured = run.measurements()
    own = set(measured.loc[measured["round"] >= 0, "architecture_key"])
    architectures = [a for a in run.dataset().architectures if a.key in own]
    drawn = run.sample(len(own) + _MOST_SAMPLES, "random", settings.seed)
    limits = settings.max_latency_ms
    found = verified_by_proxy(
        problem,
        site,
        proxy,
        run.space.encode(architectures),
        run.space.encode([a for a in drawn if a.key not in own]),
        method,
        settings.measure,
        settings.probability,
        limits[0] if limits else math.inf,
        read_rounds(folder, posed),
        _keeping(folder, posed, on_round),
        settings.seed,
    )
    verified = found.verified
    return (verified.front, verified.closest, verified, posed), found


def _common_space(runs: Sequence[Run]) -> SearchSpace:
    first, *others = runs
    for run in runs:
        if run.result is None:
            raise UsageError(
                f"{run.path} has no predictor yet: esm-host profile --run {run.path} --resume "
                "makes it"
            )
    for other in others:
        if other.space.code_shape != first.space.code_shape or (
            other.space.name != first.space.name
            or other.space.resolutions != first.space.resolutions
        ):
            raise UsageError(
                f"{first.path} and {other.path} are of different search spaces: a search is of one"
            )
    return first.space


def _check_names(settings: SearchSettings) -> None:
    """Raises UsageError unless the devices' quantities can be told apart."""
    if len(set(settings.devices)) < len(settings.devices):
        raise UsageError("two campaigns' folders have one name: rename one of them")


def _prepare(folder: SearchFolder, settings: SearchSettings, resume: bool) -> None:
    if resume:
        known = folder.read_settings()
        if replace(known, measure=settings.measure) != settings:
            raise UsageError(f"{folder.path} holds another search: give {argument('resume')} alone")
        if settings.measure < known.measure:
            raise UsageError(
                f"{argument('measure')} {settings.measure}: the search in {folder.path} was asked "
                "for "
                f"{known.measure}; give more, or leave it out"
            )
        return
    if folder.settings.exists() and (folder.rounds.exists() or folder.front.exists()):
        raise RunExistsError(
            f"{folder.path} holds a search: {argument('resume')} goes on with it; or give another "
            f"{argument('output')}"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder.path} cannot be made: {error.strerror}") from error
