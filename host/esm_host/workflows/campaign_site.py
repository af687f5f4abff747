"""A campaign's device as a search's site: where it measures (:mod:`esm_host.search.verify`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np

from esm_host.atomic import write_bytes
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run
from esm_host.campaign.session import CampaignSession, connected, open_session
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
    """Latencies as a campaign left them: measured, or predicted.

    Args:
        probability: of a predicted one being at most what it says.
        name: of the device, where there are several.
    """
    return _latency(run, run.figures(), run.predictor, probability, name)


class CampaignSite:
    """What a campaign measured is known, its predictor tells the rest, and its device measures
    more, into its store.

    Args:
        turn: is held while it measures: the same for all campaigns of one device.
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
            # Below the references' round: a campaign that goes on does not count them as its own.
            number = min(plan) - 1
            self._store.add_plan(number, fresh)
            self._watcher.on_round(REFERENCE_ROUND - number, len(fresh))
        rounds = sorted((n for n in self._store.plan() if n < REFERENCE_ROUND), reverse=True)
        before = max((block.number for block in self._store.blocks()), default=0)
        with self._turn:
            for number in rounds:  # what is there already costs nothing
                self._collector.collect(number, self._anchors)
        self._check_pace(before)

    def keep_predictor(self) -> None:
        """The campaign's, which has learnt from what was measured since."""
        folder = RunFolder(self._run.path)
        exported = self._fitted().to_onnx()
        if exported is not None:
            write_bytes(folder.predictor_onnx, exported)
        folder.share()

    def _fitted(self) -> Predictor:
        """To all that was measured."""
        blocks = len(self._store.blocks())
        if self._fit is None or self._fit[0] != blocks:
            settings, dataset = self._settings, self._measurements.dataset()
            self._fit = blocks, train(self._make(0), self._encoder, dataset, settings)
        return self._fit[1]

    def _anchors(self, chosen: Sequence[Architecture]) -> list[Architecture]:
        """Of the campaign's own architectures those that are most like the chosen ones. None where
        models run one after the other, for then they have no pace in common."""
        if self._settings.spec.protocol is not RunOrder.INTERLEAVED:
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
        """Warns where the device is not what it was in the campaign, by what came after a block."""
        table = self._measurements.table()
        paces = table.quality.factors[[block.number > before for block in table.blocks]]
        now = float(np.median(paces)) if len(paces) else 1.0
        if not 1 / _OTHER_PACE < now < _OTHER_PACE:
            takes = f"{self._settings.device} takes {now:.2f} times as long as"
            if any(table.agent):
                self._watcher.warn(f"{takes} usual: {self._what_becomes_of_it()}")
            else:
                self._watcher.warn(
                    f"{takes} in most of the campaign {self._run.path}: that is divided out, "
                    "figures are at the campaign's pace; if that was not the usual one, profile "
                    "again"
                )

    def _what_becomes_of_it(self) -> str:
        if self._settings.raw:
            return "figures are as measured"
        return "figures are at its usual pace"


@contextmanager
def campaign_sites(
    runs: Sequence[Run],
    names: Sequence[str],
    patience_s: float,
    wait: bool,
    watcher: CampaignWatcher,
) -> Iterator[list[CampaignSite]]:
    """The devices of campaigns, reserved until the end.

    Raises:
        BusyError: somebody else uses a campaign's folder, or a device and ``wait`` is False.
        DeviceError: a device is gone or refuses.
    """
    turns: defaultdict[str, Lock] = defaultdict(Lock)
    with ExitStack() as stack:
        sites = []
        for run, name in zip(runs, names, strict=True):
            folder, settings, space = RunFolder(run.path), run.settings, run.space
            found = stack.enter_context(
                connected(settings, space, True, patience_s, wait, watcher.warn)
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
    # As they are now: whatever is measured tells more of the pace of all blocks.
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
