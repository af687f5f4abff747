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
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.dataset.table import Figures
from esm_host.extension.training import train
from esm_host.predictors.base import Predictor
from esm_host.search.anchors import most_alike
from esm_host.search.bounds import LatencyBounds
from esm_host.search.latency import LatencyMeasure, measured_at_most
from esm_host.search.problem import Measure
from esm_models.architecture import Architecture
from esm_models.space import Codes
from esm_protos.messages import RunOrder

_ANCHORS = 5
_OTHER_PACE = 1.1


def latency_of(run: Run, probability: float, name: str) -> Measure:
    """Return the latencies of a campaign, measured or predicted.

    Args:
        run: The campaign.
        probability: Probability that a predicted latency is not exceeded.
        name: Name of the device; empty for a single one.
    """
    return _latency(run, run.figures(), run.predictor, probability, name)


class CampaignSite:
    """Site of a search: a campaign's measurements, its predictor, and its device for new ones.

    New measurements go into the campaign's store.

    Args:
        run: The campaign.
        session: Open session of the campaign.
        watcher: Receiver of events.
        name: Name of the device; empty for a single one.
        turn: Lock held while the site measures, shared by all campaigns of one device.
    """

    def __init__(
        self, run: Run, session: CampaignSession, watcher: CampaignWatcher, name: str, turn: Lock
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
        self._fit: tuple[int, Predictor] | None = None

    def known(self) -> Codes:
        return self._space.encode([a for each in self._store.plan().values() for a in each])

    def latency(self, probability: float) -> Measure:
        figures = self._measurements.figures()
        return _latency(self._run, figures, self._fitted(), probability, self._name)

    def measure(self, codes: Codes) -> None:
        plan = self._store.plan()
        there = {a.key for each in plan.values() for a in each}
        fresh = [a for a in self._space.decode(codes) if a.key not in there]
        if fresh:
            # Rounds below REFERENCE_ROUND do not count as the campaign's own when it resumes.
            number = min(plan) - 1
            self._store.add_plan(number, fresh)
            self._watcher.on_round(REFERENCE_ROUND - number, len(fresh))
        rounds = sorted((n for n in self._store.plan() if n < REFERENCE_ROUND), reverse=True)
        before = max((block.number for block in self._store.blocks()), default=0)
        with self._turn:
            for number in rounds:  # skips what is already measured
                self._collector.collect(number, self._anchors)
        self._check_pace(before)

    def keep_predictor(self) -> None:
        """Store the campaign's predictor, trained on the new measurements too."""
        folder = RunFolder(self._run.path)
        folder.keep_onnx(self._fitted())
        folder.share()

    def _fitted(self) -> Predictor:
        """Return the predictor, fitted to all measurements."""
        blocks = len(self._store.blocks())
        if self._fit is None or self._fit[0] != blocks:
            settings, dataset = self._settings, self._measurements.dataset()
            self._fit = blocks, train(self._make(0), self._encoder, dataset, settings)
        return self._fit[1]

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
) -> Iterator[list[CampaignSite]]:
    """Connect to the devices of campaigns and reserve them until the context ends.

    Args:
        runs: Campaigns.
        names: Names of their devices.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Receiver of events.

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
            sites.append(CampaignSite(run, session, watcher, name, turns[settings.device]))
        yield sites


def _latency(
    run: Run,
    figures: Figures,
    predictor: Predictor,
    probability: float,
    name: str,
) -> Measure:
    judged = run.measurements()
    # Use the current figures: new measurements refine the pace of all blocks.
    latency_ms = dict(zip((a.key for a in figures.architectures), figures.latency_ms, strict=True))
    return LatencyMeasure(
        LatencyBounds(
            predictor,
            run.encoder,
            judged["architecture_key"].map(latency_ms).to_numpy(),
            judged["predicted_ms"].to_numpy(),
        ),
        run.space.encode(figures.architectures),
        figures.latency_ms,
        measured_at_most(figures.latency_ms, figures.interval, probability),
        probability,
        name,
    )
