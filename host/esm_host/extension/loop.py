"""Train, evaluate, extend (ESM, Fig. 5): until every bin passes or the budget ends.

The loop sees roles only: something that collects, samples, encodes and predicts. All its state
is in the store, so that a campaign broken off anywhere goes on from what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.dataset.collect import MOST_DEVIATION, RoundQuality
from esm_host.dataset.cost import device_time
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import Store
from esm_host.dataset.table import Dataset
from esm_host.encoding.base import Encoder
from esm_host.errors import DeviceError
from esm_host.evaluation.accuracy import BinAccuracy, accuracy_by_bin, accuracy_percent
from esm_host.extension.allocate import allocate, by_shortfall
from esm_host.extension.committee import choose, cross_validate
from esm_host.extension.settings import Settings
from esm_host.extension.training import train
from esm_host.predictors.base import Predictor
from esm_host.sampling.base import Sampler
from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture

CANDIDATES = 30
"""Architectures that the cost-aware extension looks at for each that it plans."""


class Collects(Protocol):
    """Measures what is planned."""

    def collect(self, number: int) -> RoundQuality:
        """Measure what is missing of a round."""


class LoopWatcher(Protocol):
    """Is told how the loop goes on."""

    def on_round(self, number: int, architectures: int) -> None:
        """A round begins; so many architectures are planned for it."""

    def on_training(self) -> None: ...

    def on_evaluated(self, result: dict[str, Any]) -> None:
        """A round is over; ``result`` is its entry in result.json."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where the loop ended.

    Attributes:
        predictor: trained on everything that was measured.
        predicted_ms: out-of-fold predictions for the data set, ``(n,)``.
    """

    converged: bool
    reason: str
    dataset: Dataset
    predicted_ms: NDArray[np.float64]
    predictor: Predictor


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """A data set, its out-of-fold predictions, ``(n,)``, and the predictors that made them."""

    dataset: Dataset
    predicted_ms: NDArray[np.float64]
    committee: list[Predictor]


class Draw(Protocol):
    """Draws so many architectures of a bin, none of the excluded keys; fewer where it ends."""

    def __call__(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]: ...


class Loop:
    """One campaign.

    Args:
        make_predictor: a fresh, unfitted predictor; the number tells the members of a
            cross-validation apart, which are to start from different weights.
        collector: not needed to :meth:`finish`.
        draw_first: the first round's, from the whole space; the sampler's, bin by bin, if None.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        measurements: Measurements,
        collector: Collects | None,
        sampler: Sampler,
        encoder: Encoder,
        bins: DepthBins,
        make_predictor: Callable[[int], Predictor],
        watcher: LoopWatcher,
        draw_first: Draw | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._measurements = measurements
        self._collector = collector
        self._sampler = sampler
        self._encoder = encoder
        self._bins = bins
        self._make_predictor = make_predictor
        self._watcher = watcher
        self._draw_first = draw_first
        self._last: _Evaluation | None = None

    def run(self) -> Outcome:
        """Runs, or goes on, until every bin passes or the budget ends."""
        number = len(self._store.rounds())
        if number == 0:
            self._plan_first()
        elif number not in self._samples():  # else the last round was broken off: finish it
            # Judged anew: the target, the budget or whom to trust may have changed since.
            qc = self._store.rounds()[-1]["qc"]
            outcome = self._outcome(self._judge(number - 1, qc))
            if outcome is not None or not self._extend(number):
                return outcome or self._finish(False, "the search space has no more architectures")
        while True:
            result = self._round(number)
            outcome = self._outcome(result)
            if outcome is not None:
                return outcome
            number += 1
            if not self._extend(number):
                return self._finish(False, "the search space has no more architectures")

    def finish(self) -> tuple[Outcome, dict[str, Any]]:
        """Learn from what is there, whatever is planned; nothing is measured or kept.

        Returns:
            The end, and what a round of it would be in result.json.

        Raises:
            DeviceError: it is too little to learn from.
        """
        planned = sum(map(len, self._samples().values()))
        worst = float(np.max(self._measurements.table().quality.worst, initial=0.0))
        worst = min(worst, MOST_DEVIATION)
        qc = {"passed": False, "worst_reference_deviation_percent": 100 * worst}
        result = self._judged({**qc, "remeasured_blocks": 0})
        reason = f"finished with {result['measured_models']} of {planned} planned architectures"
        return self._finish(self._converged(result), reason), result

    # Rounds

    def _round(self, number: int) -> dict[str, Any]:
        planned = self._store.plan()[number]
        self._watcher.on_round(number, len(planned))
        assert self._collector is not None
        quality = self._collector.collect(number)
        qc = {
            "passed": quality.passed,
            "worst_reference_deviation_percent": 100 * quality.worst_reference_deviation,
            "remeasured_blocks": quality.remeasured_blocks,
        }
        return self._judge(number, qc)

    def _judge(self, number: int, qc: dict[str, Any]) -> dict[str, Any]:
        """Trains and evaluates on all that was measured up to a round, and keeps the result."""
        result = self._judged(qc)
        self._store.keep_round(number, result)
        self._watcher.on_evaluated(result)
        return result

    def _judged(self, qc: dict[str, Any]) -> dict[str, Any]:
        """Train and evaluate on all that was measured so far."""
        self._watcher.on_training()
        start = time.monotonic()
        measured = self._measurements.dataset()
        dataset = self._trusted(measured)
        self._last = self._evaluate(dataset)
        predicted = self._last.predicted_ms
        bins = accuracy_by_bin(dataset.depth, dataset.latency_ms, predicted, self._bins)
        return {
            "measured_models": len(measured),
            "failed_models": sum(map(len, self._samples().values())) - len(measured),
            "trusted_models": len(dataset),
            "accuracy_percent": accuracy_percent(dataset.latency_ms, predicted),
            "bins": [_bin_json(entry) for entry in bins],
            "qc": qc,
            "verdicts": measured.verdict_counts(),
            "training_seconds": time.monotonic() - start,
        }

    def _outcome(self, result: dict[str, Any]) -> Outcome | None:
        """The end, if the last round was good enough or the budget is spent."""
        if self._converged(result):
            return self._finish(True, "the target accuracy is reached")
        planned = sum(map(len, self._samples().values()))
        if planned >= self._settings.max_models:
            return self._finish(False, f"--max-models {self._settings.max_models} is reached")
        return None

    def _converged(self, result: dict[str, Any]) -> bool:
        target = self._settings.target_accuracy_percent
        if self._settings.judge == "overall":
            return bool(result["accuracy_percent"] >= target)
        return all(_passes(entry, target) for entry in result["bins"])

    def _finish(self, converged: bool, reason: str) -> Outcome:
        last = self._evaluation()
        dataset = last.dataset
        predictor = train(self._make_predictor(0), self._encoder, dataset, self._settings)
        return Outcome(converged, reason, dataset, last.predicted_ms, predictor)

    def _evaluation(self) -> _Evaluation:
        """The last round's; made again, and the same, when the campaign was broken off since."""
        if self._last is None:
            self._last = self._evaluate(self._trusted(self._measurements.dataset()))
        return self._last

    def _trusted(self, measured: Dataset) -> Dataset:
        """What is learned from; raises DeviceError where it is too little for that."""
        dataset = measured.only(self._settings.trusted_verdicts)
        if len(dataset) < 2 * self._settings.folds:
            planned = sum(map(len, self._samples().values()))
            failures = self._measurements.table().failures
            raise DeviceError(
                f"{len(measured)} of {planned} architectures could be measured, {len(dataset)} of "
                f"them with a verdict that {argument('train_on')} accepts: too few to learn from; "
                "the first "
                f"failure: {next(iter(failures.values()), 'none')}"
            )
        return dataset

    def _evaluate(self, dataset: Dataset) -> _Evaluation:
        predicted, committee = cross_validate(
            self._make_predictor,
            self._encoder.encode(dataset.architectures),
            dataset.latency_ms,
            dataset.weights(self._settings.weights),
            self._bins.of(dataset.depth),
            self._settings.folds,
            self._settings.seed,
        )
        return _Evaluation(dataset, predicted, committee)

    # Planning

    def _samples(self) -> dict[int, list[Architecture]]:
        # Neither references nor what searches chose: both have negative numbers.
        return {number: chosen for number, chosen in self._store.plan().items() if number >= 0}

    def _plan_first(self) -> None:
        if 0 not in self._samples():
            total = self._settings.initial
            if self._draw_first is not None:
                self._plan(0, total, None, self._draw_first)
            else:
                self._plan(0, total, self._sampler.quotas(total), self._sampler.sample)

    def _extend(self, number: int) -> bool:
        """Plans the next round unless it is planned; False when nothing is left."""
        if number in self._samples():
            return True
        planned = sum(map(len, self._samples().values()))
        step = min(self._settings.step, self._settings.max_models - planned)
        if self._sampler.quotas(step) is None:
            return self._plan(number, step, None, self._sampler.sample)
        settings = self._settings
        target = settings.target_accuracy_percent
        bins = self._store.rounds()[-1]["bins"]
        if settings.extension == "cost-aware":
            quotas = by_shortfall(step, [entry["accuracy_percent"] for entry in bins], target)
            return self._plan(number, step, quotas, self._draw_instructive())
        passing = [_passes(entry, target) for entry in bins]
        quotas = allocate(step, passing, settings.weight_below, settings.weight_above)
        return self._plan(number, step, quotas, self._sampler.sample)

    def _draw_instructive(self) -> Draw:
        """Draws many, and keeps those that teach most per second of the device's time."""
        committee = self._evaluation().committee
        cost = device_time(self._store, self._settings.spec)

        def draw(
            n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
        ) -> list[Architecture]:
            pool = self._sampler.sample(CANDIDATES * n, rng, bin_index, exclude)
            rows = choose(committee, self._encoder.encode(pool), cost.seconds, n)
            return [pool[row] for row in rows]

        return draw

    def _plan(self, number: int, total: int, quotas: list[int] | None, draw: Draw) -> bool:
        rng = np.random.default_rng([self._settings.seed, number])
        # Neither again what was drawn before, nor the references.
        seen = {a.key for planned in self._store.plan().values() for a in planned}
        drawn: list[Architecture] = []
        if quotas is None:
            drawn = draw(total, rng, None, seen)
        else:
            for index, quota in enumerate(quotas):
                fresh = draw(quota, rng, index, seen | {a.key for a in drawn})
                drawn.extend(fresh)
            if len(drawn) < total:  # a small bin is exhausted: the others take its share
                taken = seen | {a.key for a in drawn}
                drawn.extend(draw(total - len(drawn), rng, None, taken))
        # Bins mix within blocks, so that a bad block costs every bin a little.
        order = rng.permutation(len(drawn))
        if drawn:
            self._store.add_plan(number, [drawn[index] for index in order])
        return bool(drawn)


def _passes(entry: dict[str, Any], target_percent: float) -> bool:
    accuracy = entry["accuracy_percent"]
    return accuracy is not None and accuracy >= target_percent


def _bin_json(entry: BinAccuracy) -> dict[str, Any]:
    data = asdict(entry)
    if not entry.samples:
        data["accuracy_percent"] = None  # JSON has no NaN
    return data
