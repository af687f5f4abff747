"""A search from beginning to end: put together from its parts, run, and written to its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from esm_host.arguments import argument
from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder, resuming
from esm_host.campaign.run import Run, load_run
from esm_host.campaign.session import PATIENCE_S
from esm_host.campaign.watcher import complete
from esm_host.errors import RunExistsError, UsageError
from esm_host.plugins import load_class
from esm_host.search.costs import NetworkCost
from esm_host.search.methods import make_method
from esm_host.search.objectives import read_measure
from esm_host.search.problem import Candidates, Measure, Problem
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_host.search.table import TableMeasure
from esm_host.search.verify import Round, Verification, verified_search
from esm_host.search.written import read_rounds, write_front, write_rounds
from esm_host.workflows.campaign_site import campaign_sites, latency_of
from esm_models.space import SearchSpace


class ProxyResult(Protocol):
    """Result of a search with a proxy."""

    @property
    def verified(self) -> Verification: ...

    def to_json(self) -> dict[str, Any]: ...

    def describe(self, count: int) -> str:
        """Return what became of the proxy, and of the ``count`` on the front, in words."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search.

    Attributes:
        front: architectures on it, with their quantities: measured, or predicted where nothing
            was to be measured.
        closest: of what keeps not all limits, what comes closest, where the front is empty.
        verified: how it was measured; None if it was not.
        problem: that was posed.
        by_proxy: what became of the proxy, where there was one.
    """

    front: Candidates
    closest: Candidates
    verified: Verification | None
    problem: Problem
    result: dict[str, Any]
    by_proxy: ProxyResult | None = None


def run_search(
    settings: SearchSettings,
    output: str | Path,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
    wait: bool = True,
    watcher: object | None = None,
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> SearchResult:
    """Searches, and measures what it finds with the campaigns' devices; broken off, it goes on
    from what was measured.

    What is measured is kept in the campaigns' stores, and their predictors learn from it.

    Args:
        output: folder, which is made.
        resume: go on with the folder's search, whose settings these are; it may measure more.
        patience_s: how long to wait for a device that went away.
        wait: False gives up on a device that somebody else uses.
        watcher: has those methods of :class:`CampaignWatcher` that it cares for.
        on_round: is told all rounds before what the last one chose is measured.

    Raises:
        UsageError: something that was asked for makes no sense.
        DatasetError: a campaign or the folder is unusable.
        BusyError: somebody else uses a campaign's folder, or a device and ``wait`` is False.
        DeviceError: a device is gone or refuses.
    """
    folder, watcher = SearchFolder(Path(output)), complete(watcher)
    runs = [load_run(path) for path in settings.runs]
    if settings.measure:  # a team's campaign may have gone on elsewhere
        for run in runs:
            RunFolder(run.path).prepare(resume=True)
        runs = [load_run(path) for path in settings.runs]
    space = _common_space(runs)
    _check_names(settings)
    own = [read_measure(spec, space) for spec in settings.objective_specs if spec.source]
    listed = next((measure.codes for measure in own if isinstance(measure, TableMeasure)), None)
    method = make_method(settings.method, space, settings.seed, listed)

    def problem(latencies: Sequence[Measure]) -> Problem:
        measures = [*latencies, NetworkCost(space), *own]
        return Problem(space, measures, settings.all_objectives, settings.all_limits)

    _prepare(folder, settings, resume)
    proxied = _proxy_search(settings, runs[0]) if settings.proxy else None
    by_proxy: ProxyResult | None = None
    verified: Verification | None = None
    if settings.measure:
        with campaign_sites(runs, settings.devices, patience_s, wait, watcher) as sites:
            write_json(folder.settings, settings.to_json())  # once nobody else uses the campaigns
            posed = problem([site.latency(settings.probability) for site in sites])
            past, keep = read_rounds(folder, posed), _keeping(folder, posed, on_round)
            if proxied is None:
                verified = verified_search(
                    problem,
                    sites,
                    method,
                    settings.measure,
                    settings.batch,
                    settings.probability,
                    past=past,
                    on_round=keep,
                )
            else:
                by_proxy = proxied(problem, sites[0], method, past, keep)
                verified = by_proxy.verified
            front, closest = verified.front, verified.closest
            for site in sites:
                site.keep_predictor()
    else:
        write_json(folder.settings, settings.to_json())
        pairs = zip(runs, settings.devices, strict=True)
        posed = problem([latency_of(run, settings.probability, name) for run, name in pairs])
        outcome = method.search(posed)
        front, closest = outcome.front, outcome.closest
    about = None if by_proxy is None else by_proxy.to_json()
    result = write_front(folder, settings, front, verified, posed, about)
    return SearchResult(front, closest, verified, posed, result, by_proxy)


def _proxy_search(settings: SearchSettings, run: Run) -> Callable[..., ProxyResult]:
    """Return a search that begins with the front of another device.

    Raises:
        UsageError: there is no such source, or it is of another space.
        DatasetError: it is damaged.
    """
    cls = load_class("esm_host.research.proxy_search:ProxySearch", argument("proxy"))
    found: Callable[..., ProxyResult] = cls(settings, run)
    return found


def _keeping(
    folder: SearchFolder, posed: Problem, on_round: Callable[[Sequence[Round]], None] | None
) -> Callable[[Sequence[Round]], None]:
    """Return what writes all rounds before the last one's choice is measured."""

    def keep(rounds: Sequence[Round]) -> None:
        write_rounds(folder, rounds, posed.space)
        if on_round is not None:
            on_round(rounds)

    return keep


def _common_space(runs: Sequence[Run]) -> SearchSpace:
    first, *others = runs
    for run in runs:
        if run.result is None:
            raise UsageError(f"{run.path} has no predictor yet: {resuming(run.path)} makes it")
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
