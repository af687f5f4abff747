"""Campaign as the place where a search measures (:mod:`esm_host.search.verify`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np

from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run
from esm_host.campaign.session import CampaignSession, connect_devices, open_session
from esm_host.campaign.watcher import CampaignWatcher
from esm_host.dataset.campaign_metric import LATENCY, CampaignMetric
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.dataset.table import Figures
from esm_host.extension.training import train
from esm_host.predictors.base import IntervalPredictor, Predictor
from esm_host.search.anchors import most_alike
from esm_host.search.bounds import LatencyBounds
from esm_host.search.latency import DeviceMeasure, LatencyMeasure, measured_at_most
from esm_host.search.problem import Measure
from esm_models.architecture import Architecture
from esm_models.space import Codes
from esm_protos.messages import RunOrder

_ANCHORS = 5
_OTHER_PACE = 1.1


def metrics_of(
    run: Run, metrics: Sequence[CampaignMetric], probability: float, name: str
) -> Measure:
    """Return metrics of a campaign's architectures, measured or predicted.

    Args:
        run: The campaign.
        metrics: The metrics, each learnt by the campaign.
        probability: Probability that a predicted value is not exceeded.
        name: Name of the device; empty for a single one.
    """
    views = [(metric, run.of(metric.name)) for metric in metrics]
    parts = [
        _measure(view, view.figures(), view.predictor, probability, name, metric)
        for metric, view in views
    ]
    return DeviceMeasure(parts, name)


class CampaignSite:
    """Site of a search: a campaign's measurements, its predictor, and its device for new ones.

    New measurements go into the campaign's store.

    Args:
        run: The campaign.
        session: Open session of the campaign.
        watcher: Receiver of events.
        name: Name of the device; empty for a single one.
        turn: Lock held while the site measures, shared by all campaigns of one device.
        metrics: Metrics that the search is about.
    """

    def __init__(
        self,
        run: Run,
        session: CampaignSession,
        watcher: CampaignWatcher,
        name: str,
        turn: Lock,
        metrics: Sequence[CampaignMetric] = (LATENCY,),
    ) -> None:
        self._run = run
        self._space = run.space
        self._settings = run.settings
        self._encoder = run.encoder
        self._make = RunFolder(run.path).predictors(run.settings, run.encoder)
        self._store = session.store
        self._measurements = session.measurements
        self._collector = session.collector
        self._watcher = watcher
        self._name = name
        self._turn = turn
        self._views = {metric: run.of(metric.name) for metric in metrics}
        self._fits: dict[CampaignMetric, tuple[int, Predictor]] = {}

    def known(self) -> Codes:
        return self._space.encode([a for each in self._store.plan().values() for a in each])

    def latency(self, probability: float) -> Measure:
        parts = [
            _measure(
                view,
                self._measurements.figures(metric),
                self._fitted(metric),
                probability,
                self._name,
                metric,
            )
            for metric, view in self._views.items()
        ]
        return DeviceMeasure(parts, self._name)

    def measure(self, codes: Codes, number: int = 0) -> None:
        plan = self._store.plan()
        there = {a.key for each in plan.values() for a in each}
        fresh = [a for a in self._space.decode(codes) if a.key not in there]
        if fresh:
            # Rounds below REFERENCE_ROUND do not count as the campaign's own when it resumes.
            self._store.add_plan(min(plan) - 1, fresh)
            self._watcher.on_round(number, len(fresh))
        rounds = sorted((n for n in self._store.plan() if n < REFERENCE_ROUND), reverse=True)
        before = max((block.number for block in self._store.blocks()), default=0)
        with self._turn:
            for planned in rounds:  # skips what is already measured
                self._collector.collect(planned, self._anchors)
        self._check_pace(before)

    def keep_predictors(self) -> None:
        """Store the campaign's predictors, trained on the new measurements too."""
        folder = RunFolder(self._run.path)
        for metric in self._run.learnt:
            folder.keep_onnx(self._fitted(metric), metric)
        folder.share()

    def _fitted(self, metric: CampaignMetric) -> Predictor:
        """Return a predictor, fitted to all measurements but those of the last check."""
        blocks = len(self._store.blocks())
        if self._fits.get(metric, (None,))[0] != blocks:
            settings, dataset = self._settings, self._measurements.training_set(metric)
            fitted = train(self._make(0), self._encoder, dataset, settings)
            self._fits[metric] = blocks, fitted
        return self._fits[metric][1]

    def _anchors(self, chosen: Sequence[Architecture]) -> list[Architecture]:
        """Return the campaign's architectures that are most similar to the chosen ones.

        Empty for sequential runs, whose models have no common pace.
        """
        if self._settings.spec.run_order is not RunOrder.INTERLEAVED:
            return []
        figures = self._measurements.figures()
        trusted = self._settings.trusted_verdicts
        own = [
            architecture
            for architecture, number, verdict in zip(
                figures.architectures, figures.rounds, figures.verdicts, strict=True
            )
            if number > REFERENCE_ROUND and verdict in trusted
        ]
        encoder = self._run.sources_encoder if self._settings.adapts else self._encoder
        rows = most_alike(encoder.encode(own), encoder.encode(chosen), _ANCHORS)
        return [own[row] for row in rows.tolist()]

    def _check_pace(self, before: int) -> None:
        """Warn if the device's pace after block ``before`` differs from the campaign's."""
        table = self._measurements.table()
        paces = table.quality.factors[[block.number > before for block in table.blocks]]
        now = float(np.median(paces)) if len(paces) else 1.0
        if not 1 / _OTHER_PACE < now < _OTHER_PACE:
            takes = f"{self._settings.device} takes {now:.2f} times as long as"
            if any(table.agent):
                self._watcher.warn(f"{takes} usual: {self._scale_note()}")
            else:
                self._watcher.warn(
                    f"{takes} in most of the campaign {self._run.path}. Latencies are divided by "
                    "this and refer to the campaign's pace; if that was unusual, profile again"
                )

    def _scale_note(self) -> str:
        if self._settings.raw:
            return "latencies are as measured"
        return "latencies refer to its usual pace"


@contextmanager
def campaign_sites(
    runs: Sequence[Run],
    names: Sequence[str],
    patience_s: float,
    wait: bool,
    watcher: CampaignWatcher,
    metrics: Sequence[CampaignMetric] = (LATENCY,),
) -> Iterator[list[CampaignSite]]:
    """Connect to the devices of campaigns and reserve them until the context ends.

    Args:
        runs: Campaigns.
        names: Names of their devices.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Receiver of events.
        metrics: Metrics that the search is about.

    Raises:
        BusyError: another program uses a campaign's folder, or a device is in use and ``wait`` is
            False.
        DeviceError: a device is unreachable or refuses.
    """
    turns: defaultdict[str, Lock] = defaultdict(Lock)
    with ExitStack() as stack:
        sites = []
        for run, name in zip(runs, names, strict=True):
            folder, settings, space = RunFolder(run.path), run.settings, run.space
            found = stack.enter_context(
                connect_devices(settings, space, True, patience_s, wait, watcher.warn)
            )
            stack.enter_context(folder.locked())
            session = stack.enter_context(open_session(settings, folder, space, found, watcher))
            turn = turns[settings.device]
            sites.append(CampaignSite(run, session, watcher, name, turn, metrics))
        yield sites


def _measure(
    run: Run,
    figures: Figures,
    predictor: Predictor,
    probability: float,
    name: str,
    metric: CampaignMetric,
) -> Measure:
    judged = run.measurements()
    # Use the current figures: new measurements refine the pace of all blocks.
    values = dict(zip((a.key for a in figures.architectures), figures.latency_ms, strict=True))
    predict = LatencyBounds(
        predictor,
        run.encoder,
        judged["architecture_key"].map(values).to_numpy(),
        judged[metric.predicted].to_numpy(),
    )
    codes = run.space.encode(figures.architectures)
    at_most = measured_at_most(figures.latency_ms, figures.interval, probability)
    if isinstance(predictor, IntervalPredictor) and figures.interval.any():
        # What is chosen because it was measured to be fast was often measured too fast. The
        # predictor has learnt this measurement and those of similar networks. NaN stays NaN.
        at_most = np.maximum(at_most, predict(codes, probability)[1])
    return LatencyMeasure(predict, codes, figures.latency_ms, at_most, probability, name, metric)
