"""Campaign from its settings to its result, for Python and for :mod:`esm_host.cli.profile`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from esm_host.arguments import argument
from esm_host.atomic import write_bytes, write_json
from esm_host.campaign.estimate import estimate, estimate_of_blocks
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.result import campaign_result, metric_result, without_predictor
from esm_host.campaign.run import Run
from esm_host.campaign.session import (
    PATIENCE_S,
    CampaignDevices,
    check_store,
    connect_devices,
    open_session,
)
from esm_host.campaign.warnings import WarningMeasurer, campaign_warnings
from esm_host.campaign.watcher import CampaignWatcher, complete, hears
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.dataset.cost import device_times
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import GROUP_FACT, Store
from esm_host.dataset.table import Dataset
from esm_host.encoding.base import Encoder
from esm_host.errors import BusyError, DatasetError, DeviceError, UsageError
from esm_host.extension.campaign_loop import CampaignLoop, Outcome
from esm_host.extension.loop import Loop
from esm_host.extension.settings import Changes, Settings
from esm_host.extension.training import Learner
from esm_host.report import plots
from esm_host.sampling import make_sampler
from esm_host.transfer.held_out import HELD_OUT_FACT, judge, judge_adapted
from esm_host.workflows.resuming import without_effect, without_effect_yet
from esm_host.workflows.warm_start import FirstArchitectures, WarmStart, warm_start
from esm_models.space import SearchSpace
from esm_protos.text import counted

RESUMABLE = frozenset(Changes.__annotations__)
"""Settings that a resumed campaign may change, because stored measurements stay comparable.
``device`` may be another address of the same device."""


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """Result of a campaign.

    Attributes:
        converged: Whether the target accuracy was reached.
        reason: Reason for the end, with names of arguments still marked
            (:mod:`esm_host.arguments`).
        result: Content of ``result.json``.
        datasets: All measured samples of each metric, by its name, the leading one first.
        failures: Messages of the architectures that could not be measured, by key.
    """

    converged: bool
    reason: str
    result: dict[str, Any]
    datasets: Mapping[str, Dataset]
    failures: Mapping[str, str]

    @property
    def dataset(self) -> Dataset:
        """Measured samples of the leading metric."""
        return next(iter(self.datasets.values()))


def run_campaign(
    settings: Settings,
    folder: RunFolder,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
    wait: bool = True,
    watcher: object | None = None,
) -> CampaignResult:
    """Run or resume a campaign; if it is interrupted, its measurements are kept.

    Invalid settings are reported before anything is measured.

    Args:
        settings: Settings of the campaign.
        folder: Folder of the campaign.
        resume: Whether to continue the folder's campaign.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Object with any of the methods of :class:`CampaignWatcher`; None for none.

    Raises:
        UsageError: a setting is invalid.
        ModelsError: a setting of the search space is invalid.
        DatasetError: the folder is unusable or holds another campaign.
        BusyError: another program uses the folder, or the device is in use and ``wait`` is False.
        DeviceError: the device is unreachable or refuses.
    """
    if not patience_s >= 0:
        raise UsageError(f"{argument('patience_s')} {patience_s:g}: give seconds, 0 or more")
    watcher = complete(watcher)
    space = settings.search_space()
    known = warm_start(settings, space, folder.path) if settings.warm_start and not resume else None
    encoder = known.encoder(settings) if known else folder.encoder(settings, space)
    folder.predictors(settings, encoder)(0)  # reports a missing library now
    stored = folder.read_settings() if resume else None
    _check_space(settings, space)
    if stored is None or stored.verify != settings.verify:  # an older version took any number
        _check_verify(settings, space)
    # If the sampler chooses, every block is a round.
    if settings.initial <= 2 * settings.block_size and not settings.chooses:
        watcher.warn(
            "fewer than three blocks before the first training: too few for quality control; "
            f"give a smaller {argument('block_size')}"
        )
    with ExitStack() as stack:

        def connected(is_awaited: bool) -> CampaignDevices:
            return stack.enter_context(
                connect_devices(settings, space, is_awaited, patience_s, wait, watcher.warn)
            )

        try:
            found = connected(False)
        except (BusyError, DeviceError):
            if stored is None:
                raise
            # Only a campaign that goes on needs a device.
            if ended := _ended(settings, folder, space, encoder, watcher, stored):
                return ended
            found = connected(True)
        folder.prepare(resume)
        with folder.locked():
            return _run(settings, folder, space, encoder, known, found, watcher, stored)


def _ended(
    settings: Settings,
    folder: RunFolder,
    space: SearchSpace,
    encoder: Encoder,
    watcher: CampaignWatcher,
    stored: Settings,
) -> CampaignResult | None:
    """Return the result of a resumed campaign that needs no device; None if it would measure."""
    folder.prepare(resume=True)
    if settings.device != stored.device or not folder.database.exists():
        return None
    with folder.locked(), closing(folder.open_store()) as store:
        if not store.rounds():
            return None
        check_store(store, settings, space, folder)
        measurements = Measurements(store, settings.spec, settings.raw)
        learner = _learner(folder, settings, encoder)
        loop = Loop(space, settings, learner=learner, seconds=device_times(store, settings))
        outcome = CampaignLoop(
            loop, settings, store, measurements, None, watcher, settings.lead
        ).ended()
        if outcome is None:
            return None
        write_json(folder.settings, settings.to_json())
        is_group = store.fact(GROUP_FACT) is not None
        _warn_of_changes(stored, settings, outcome, store, False, is_group, watcher)
        device = store.last_device()
        return _conclude(folder, settings, store, measurements, encoder, outcome, device, watcher)


def _learner(folder: RunFolder, settings: Settings, encoder: Encoder) -> Learner:
    return Learner(encoder, folder.predictors(settings, encoder), settings)


def _warn_of_changes(
    stored: Settings,
    settings: Settings,
    outcome: Outcome,
    store: Store,
    is_measured: bool,
    is_group: bool,
    watcher: CampaignWatcher,
) -> None:
    """Warn of each changed setting of a resumed campaign that had no effect."""
    checked = len(store.held_out())
    for line in without_effect(
        stored, settings, outcome, checked=checked, is_measured=is_measured, is_group=is_group
    ):
        watcher.warn(line)


def _check_space(settings: Settings, space: SearchSpace) -> None:
    bins = settings.depth_bins(space)
    needed = settings.initial + settings.references
    contexts = space.context_count
    if needed > space.count() * contexts:
        there = counted(space.count(), "architecture")
        there += f" in {contexts} contexts" if contexts > 1 else ""
        raise UsageError(
            f"{argument('initial')} {settings.initial} and {argument('references')} "
            f"{settings.references} exceed the space's {there}: give fewer"
        )
    for index in range(bins.count):
        if not space.possible_depths & set(bins.depths(index)):
            raise UsageError(
                f"{argument('bins')} {bins.count} makes a bin of depths that the space does not "
                "have "
                f"({', '.join(map(str, bins.depths(index)))}): give fewer"
            )


def _check_verify(settings: Settings, space: SearchSpace) -> None:
    bins = settings.depth_bins(space).count if settings.judge == "bins" else 1
    if 0 < settings.verify < max(bins, 2):
        reason = f"fewer than the {bins} depth bins, each of which a check needs a model of"
        if bins < 2:
            reason = "too few for a confidence interval"
        raise UsageError(
            f"{argument('verify')} {settings.verify} is {reason}: give {max(bins, 2)} or more, or "
            "0 for no check"
        )


def _run(
    settings: Settings,
    folder: RunFolder,
    space: SearchSpace,
    encoder: Encoder,
    known: WarmStart | None,
    found: CampaignDevices,
    watcher: CampaignWatcher,
    stored: Settings | None,
) -> CampaignResult:
    heard = hears(watcher, "on_estimate")
    wanted = heard or settings.budget_s is not None
    is_new = not folder.settings.exists()
    if is_new:
        if wanted:
            _estimate(settings, space, found, watcher)  # a refused budget leaves no campaign
        if known is not None:
            known.keep(settings, folder)
        # Before the first measurement: a folder with settings can be resumed.
        write_json(folder.settings, settings.to_json())
    with open_session(settings, folder, space, found, watcher) as session:
        store, measurements = session.store, session.measurements
        if store.blocks():
            if heard and (told := estimate_of_blocks(store, settings)) is not None:
                watcher.on_estimate(told)
        elif wanted and not is_new:
            _estimate(settings, space, found, watcher)
        # The settings of a resumed campaign may have changed.
        write_json(folder.settings, settings.to_json())
        folder.share()
        draw_first = (
            FirstArchitectures(
                settings,
                folder.sources_encoder(space),
                folder.kept_method(settings, space).sources,
                make_sampler(settings.sampling, space, settings.depth_bins(space)),
                lambda keys: store.add_fact(HELD_OUT_FACT, keys),
            )
            if settings.warm_start
            else None
        )
        loop = Loop(
            space,
            settings,
            learner=_learner(folder, settings, encoder),
            draw_first=draw_first,
            seconds=device_times(store, settings),
        )
        blocks = len(store.blocks())
        measurer = WarningMeasurer(
            session.collector,
            lambda: campaign_warnings(store, measurements, settings),
            watcher.warn,
        )
        outcome = CampaignLoop(
            loop, settings, store, measurements, measurer, watcher, settings.lead
        ).run()
        if stored is not None:
            is_measured, is_group = len(store.blocks()) > blocks, len(found.members) > 1
            _warn_of_changes(stored, settings, outcome, store, is_measured, is_group, watcher)
        device = asdict(found.first)
        return _conclude(folder, settings, store, measurements, encoder, outcome, device, watcher)


def _estimate(
    settings: Settings, space: SearchSpace, found: CampaignDevices, watcher: CampaignWatcher
) -> None:
    """Tell the watcher what a new campaign takes, by a probe.

    Raises:
        UsageError: the budget is too small.
    """
    here = next(member for member in found.members if member.name in found.answers)
    told = estimate(here.profiler, space, settings, settings.initial)
    if told is None:  # the first round reports what fails
        return
    watcher.on_estimate(told)
    models = settings.initial + settings.verify
    least_s, most_s = models * told.model_low_s, models * told.model_s
    if settings.budget_s is not None and settings.budget_s < least_s:
        raise UsageError(
            f"{settings.named_budget} is too short for {models} models, which take about "
            f"{least_s:.0f} to {most_s:.0f} s: give more, or fewer {argument('initial')} or "
            f"{argument('verify')}"
        )


def finish_campaign(
    settings: Settings, folder: RunFolder, watcher: object | None = None
) -> CampaignResult:
    """Train on a campaign's measurements so far and write its result, without a device.

    The campaign can still be resumed.

    Raises:
        UsageError: the folder holds no campaign.
        DatasetError: the folder is unusable, or holds no measurements.
        BusyError: another program uses the folder.
        DeviceError: there are too few measurements to learn from.
    """
    folder.prepare(resume=True)
    watcher = complete(watcher)
    for line in without_effect_yet(folder.read_settings(), settings):
        watcher.warn(line)
    space = settings.search_space()
    encoder = folder.encoder(settings, space)
    with folder.locked(), closing(folder.open_store()) as store:
        if not store.blocks():
            raise DatasetError(
                f"{folder.path} holds no measurements yet: omit {argument('finish')}"
            )
        write_json(folder.settings, settings.to_json())  # the predictor may have changed
        measurements = Measurements(store, settings.spec, settings.raw)
        loop = Loop(space, settings, learner=_learner(folder, settings, encoder))
        outcome, last = CampaignLoop(
            loop, settings, store, measurements, None, watcher, settings.lead
        ).finish()
        unfinished = len(store.rounds()) <= max(store.plan())
        return _conclude(
            folder,
            settings,
            store,
            measurements,
            encoder,
            outcome,
            store.last_device(),
            watcher,
            last if unfinished else None,
        )


def _conclude(
    folder: RunFolder,
    settings: Settings,
    store: Store,
    measurements: Measurements,
    encoder: Encoder,
    outcome: Outcome,
    device: Mapping[str, Any],
    watcher: CampaignWatcher,
    unfinished: Mapping[str, Any] | None = None,
) -> CampaignResult:
    """Learn the other metrics, and write the result of a campaign."""
    result = campaign_result(store, measurements, settings, device, outcome.converged, unfinished)
    lead, *others = settings.metrics
    outcomes = {lead: outcome}
    about = {lead.name: metric_result(lead, result["rounds"][-1], settings, outcome.converged)}
    for metric in others:
        loop = Loop(encoder.space, settings, learner=_learner(folder, settings, encoder))
        learning = CampaignLoop(loop, settings, store, measurements, None, watcher, metric)
        try:
            outcomes[metric], last = learning.finish()
        except DeviceError as error:
            about[metric.name] = without_predictor(metric, str(error))
            for path in folder.files(metric):
                path.unlink(missing_ok=True)
            watcher.warn(f"no predictor of {metric.title}: {error.marked}")
        else:
            about[metric.name] = metric_result(metric, last, settings, outcomes[metric].reached)
    result["metrics"] = about
    datasets = {metric.name: measurements.of(metric) for metric in settings.metrics}
    failures = measurements.table().failures
    if settings.warm_start:
        result["transfer"] = _judged(
            folder, settings, encoder, datasets[lead.name], store.fact(HELD_OUT_FACT) or ()
        )
    _write(folder, settings, outcomes, result)
    folder.share()
    return CampaignResult(outcome.converged, outcome.reason, result, datasets, failures)


def _judged(
    folder: RunFolder,
    settings: Settings,
    encoder: Encoder,
    dataset: Dataset,
    held_out: Collection[str],
) -> dict[str, Any]:
    """Return the accuracy of predictions that learn from sources."""
    trusted = dataset.only(settings.trusted_verdicts)
    expected = folder.sources_encoder(encoder.space)
    about = {
        "method": settings.method,
        "method_options": dict(settings.method_options),
        "sampler": settings.first_sampler,
        "sources": list(expected.models.names),
    }
    if settings.adapts:
        make = folder.predictors(settings, encoder)
        return about | judge_adapted(trusted, held_out, encoder, make, settings.seed)
    return about | judge(trusted, held_out, expected, settings.weights, settings.seed)


def _write(
    folder: RunFolder,
    settings: Settings,
    outcomes: Mapping[CampaignMetric, Outcome],
    result: dict[str, Any],
) -> None:
    """Write the predictors, their predictions, the plots and, last, the result."""
    for metric, outcome in outcomes.items():
        files = folder.files(metric)
        folder.keep_onnx(outcome.predictor, metric)
        pairs = zip(outcome.dataset.architectures, outcome.predicted_ms.tolist(), strict=True)
        heading = f"architecture_key,{metric.predicted}"
        lines = [heading, *(f"{a.key},{value!r}" for a, value in pairs)]
        write_bytes(files.predictions, ("\n".join(lines) + "\n").encode())
    _draw(folder, Run(folder.path, settings, result))
    write_json(folder.result, result)


def _draw(folder: RunFolder, run: Run) -> None:
    """Write the plots of a campaign."""
    settings = run.settings
    charts = {
        "predicted_against_measured": plots.predicted_against_measured(
            plots.of_metric(run.measurements(), settings.lead), settings.lead.shown_unit
        ),
        "accuracy_by_round": plots.accuracy_by_round(run.accuracy(), settings.target_percent),
        "reference_stability": plots.reference_stability(
            run.blocks(), run.references(), settings.reference_tolerance_percent
        ),
    }
    title = alt.TitleParams(f"{run.space.name} on {settings.device}", anchor="start")
    for name, chart in charts.items():
        plots.save(chart.properties(title=title), folder.plots[name])
