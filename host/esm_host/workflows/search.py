"""Search from beginning to end: assembled, run, and written to its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from esm_host.arguments import argument
from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder, resume_command
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
from esm_host.typed import typed
from esm_host.workflows.campaign_site import campaign_sites, metrics_of
from esm_models.space import SearchSpace


class ProxyResult(Protocol):
    """Result of a search with a proxy device."""

    @property
    def verified(self) -> Verification: ...

    def to_json(self) -> dict[str, Any]: ...

    def describe(self, count: int) -> str:
        """Describe the proxy's contribution to a front of ``count`` architectures."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search.

    Attributes:
        front: Architectures on the front with their quantities, measured if anything was
            measured, else predicted.
        closest: Candidates closest to the limits, if the front is empty.
        verified: Verification by measurement; None if nothing was measured.
        problem: Problem of the search.
        result: Content of the result file.
        by_proxy: Result of the proxy search; None without a proxy.
    """

    front: Candidates
    closest: Candidates
    verified: Verification | None
    problem: Problem
    result: dict[str, Any]
    by_proxy: ProxyResult | None = None


@typed
def run_search(
    settings: SearchSettings,
    output: str | Path,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
    wait: bool = True,
    watcher: object | None = None,
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> SearchResult:
    """Search, and measure candidates on the devices of the campaigns.

    Measurements go into the campaigns' stores, and their predictors learn from them. An
    interrupted search can be resumed.

    Args:
        settings: Settings of the search.
        output: Folder of the search, which is created.
        resume: Whether to continue the folder's search with these settings; it may measure more.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Object with any of the methods of :class:`CampaignWatcher`; None for none.
        on_round: Callback with all rounds, called before the candidates of the last one are
            measured.

    Raises:
        UsageError: a setting is invalid, or a context is more than 10 times beyond the measured
            ones.
        DatasetError: a campaign or the folder is unusable.
        BusyError: another program uses a campaign's folder, or a device is in use and ``wait`` is
            False.
        DeviceError: a device is unreachable or refuses.
    """
    folder, watcher = SearchFolder(Path(output)), complete(watcher)
    runs = [load_run(path) for path in settings.runs]
    if settings.measure:  # a shared campaign may have progressed elsewhere
        for run in runs:
            RunFolder(run.path).prepare(resume=True)
        runs = [load_run(path) for path in settings.runs]
    space = _common_space(runs, settings.contexts)
    for run in runs:
        contexts = run.measured_contexts
        if contexts and (text := contexts.guess(space.extremes())):
            watcher.warn(text)
    _check_metrics(settings, runs)
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
        sites_of = campaign_sites(
            runs, settings.devices, patience_s, wait, watcher, settings.metrics
        )
        with sites_of as sites:
            write_json(folder.settings, settings.to_json())  # after the campaigns are locked
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
                site.keep_predictors()
    else:
        write_json(folder.settings, settings.to_json())
        pairs = zip(runs, settings.devices, strict=True)
        metrics, share = settings.metrics, settings.probability
        posed = problem([metrics_of(run, metrics, share, name) for run, name in pairs])
        outcome = method.search(posed)
        front, closest = outcome.front, outcome.closest
    about = None if by_proxy is None else by_proxy.to_json()
    result = write_front(folder, settings, front, verified, posed, about)
    return SearchResult(front, closest, verified, posed, result, by_proxy)


def _proxy_search(settings: SearchSettings, run: Run) -> Callable[..., ProxyResult]:
    """Return a search that begins with the front of another device.

    Raises:
        UsageError: the source does not exist or has another space.
        DatasetError: the source is damaged.
    """
    cls = load_class("esm_host.research.proxy_search:ProxySearch", argument("proxy"))
    found: Callable[..., ProxyResult] = cls(settings, run)
    return found


def _keeping(
    folder: SearchFolder, posed: Problem, on_round: Callable[[Sequence[Round]], None] | None
) -> Callable[[Sequence[Round]], None]:
    """Return a callback that writes all rounds before the last one is measured."""

    def keep(rounds: Sequence[Round]) -> None:
        write_rounds(folder, rounds, posed.space)
        if on_round is not None:
            on_round(rounds)

    return keep


def _common_space(runs: Sequence[Run], contexts: Mapping[str, int]) -> SearchSpace:
    """Return the space of campaigns in the contexts of a search.

    Raises:
        UsageError: a campaign has no predictor, their spaces differ, or a context has no value.
        InvalidSpaceError: a context does not exist, or its value is out of range.
    """
    first, *others = runs
    for run in runs:
        if run.result is None:
            raise UsageError(
                f"{run.path} has no predictor yet: {resume_command(run.path)} trains it"
            )
    for other in others:
        if other.space.code_shape != first.space.code_shape or (
            other.space.name != first.space.name
            or other.space.resolutions != first.space.resolutions
            or [*other.space.contexts] != [*first.space.contexts]
        ):
            raise UsageError(
                f"{first.path} and {other.path} have different spaces: give campaigns of one space"
            )
    space = first.space.at(**contexts)
    for name, values in space.contexts.items():
        if len(values) > 1:
            raise UsageError(
                f"{first.path} has networks in several contexts, {name} of "
                f"{', '.join(map(str, values))}: give {argument('contexts')} {name}={max(values)}, "
                "or another value"
            )
    return space


def _check_metrics(settings: SearchSettings, runs: Sequence[Run]) -> None:
    """Check that the campaigns have predictors of what the search is about.

    Raises:
        UsageError: a campaign does not learn a metric.
        DatasetError: a campaign has too few values of a metric.
    """
    for run in runs:
        for metric in settings.metrics:
            run.of(metric.name).check_predictor()


def _check_names(settings: SearchSettings) -> None:
    """Check that the devices' quantities have different names.

    Raises:
        UsageError: two campaign folders have the same name.
    """
    if len(set(settings.devices)) < len(settings.devices):
        raise UsageError("two campaign folders have the same name: rename one of them")


def _prepare(folder: SearchFolder, settings: SearchSettings, resume: bool) -> None:
    if resume:
        known = folder.read_settings()
        if replace(known, measure=settings.measure) != settings:
            raise UsageError(f"{folder.path} holds another search: give only {argument('resume')}")
        if settings.measure < known.measure:
            raise UsageError(
                f"{argument('measure')} {settings.measure}: the search in {folder.path} has "
                f"{known.measure} already; give more, or omit it"
            )
        return
    if folder.settings.exists() and (folder.rounds.exists() or folder.front.exists()):
        raise RunExistsError(
            f"{folder.path} holds a search: {argument('resume')} continues it; or give another "
            f"{argument('output')}"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder.path} cannot be created: {error.strerror}") from error
