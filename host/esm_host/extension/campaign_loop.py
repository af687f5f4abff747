"""Loop of a campaign: each round is planned, measured and evaluated.

All state is in the campaign's journal, so an interrupted campaign can continue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.dataset.campaign_metric import LATENCY, CampaignMetric
from esm_host.dataset.collect import MOST_DEVIATION, RoundQuality
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.dataset.table import Dataset
from esm_host.errors import DeviceError
from esm_host.evaluation.accuracy import BinAccuracy
from esm_host.extension.loop import Loop
from esm_host.extension.settings import TrainingSettings
from esm_host.predictors.base import Predictor
from esm_models.architecture import Architecture


class Journal(Protocol):
    """Record of the plan and the results of all rounds."""

    def plan(self) -> dict[int, list[Architecture]]:
        """Return the architectures by round; negative rounds do not belong to the loop."""

    def add_plan(
        self, round_number: int, architectures: Sequence[Architecture], /, is_check: bool = False
    ) -> None:
        """Store a round's architectures before they are measured."""

    def checks(self) -> set[int]:
        """Return the numbers of the rounds that are checks."""

    def held_out(self) -> set[str]:
        """Return the keys of the models that the predictor is not trained on."""

    def rounds(self) -> list[dict[str, Any]]:
        """Return the results of the finished rounds, in order."""

    def keep_round(self, round_number: int, result: Mapping[str, Any], /) -> None:
        """Store the result of a finished round; it replaces an earlier one."""


class RoundMeasurer(Protocol):
    """Measurement of planned rounds."""

    def collect(self, round_number: int, /) -> RoundQuality:
        """Measure the architectures of a round that are not yet measured."""


class LoopWatcher(Protocol):
    """Receiver of the events of a loop."""

    def on_round(self, number: int, architectures: int) -> None:
        """Report that a round begins, and its number of planned architectures."""

    def on_check(self, architectures: int) -> None:
        """Report that a round begins that checks the predictor on random architectures."""

    def on_training(self) -> None: ...

    def on_evaluated(self, result: dict[str, Any]) -> None:
        """Report that a round ended; ``result`` is its entry in result.json."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Outcome of a campaign's loop.

    Attributes:
        converged: Whether the target accuracy was reached.
        reason: Reason of the end, with marked names of arguments.
        dataset: Training set and the models of the last check.
        predicted_ms: Predictions of the data set by predictors that have not seen them, ms or in
            the unit of the metric, shape ``(n,)``.
        predictor: Predictor trained on the whole training set.
        reached: Whether the accuracy reaches the target, checked or not.
    """

    converged: bool
    reason: str
    dataset: Dataset
    predicted_ms: NDArray[np.float64]
    predictor: Predictor
    reached: bool


class CampaignLoop:
    """Loop of one campaign.

    Args:
        loop: New ask/tell loop.
        settings: Settings of training.
        journal: Record of the rounds.
        measurements: Measurements of the campaign.
        measurer: Measurement of rounds; None is enough for :meth:`finish`.
        watcher: Receiver of events.
        metric: Metric that the loop learns.
    """

    def __init__(
        self,
        loop: Loop,
        settings: TrainingSettings,
        journal: Journal,
        measurements: Measurements,
        measurer: RoundMeasurer | None,
        watcher: LoopWatcher,
        metric: CampaignMetric = LATENCY,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._journal = journal
        self._measurements = measurements
        self._measurer = measurer
        self._watcher = watcher
        self._metric = metric

    def run(self) -> Outcome:
        """Run or resume the loop until it ends.

        Raises:
            DeviceError: the device refuses or is unreachable, or too few models could be
                measured.
        """
        planned, finished = self._restored(), self._journal.rounds()
        if planned and len(finished) == len(planned):
            # Evaluate again: target, budget or trusted verdicts may have changed.
            self._judge(len(finished) - 1, finished[-1]["qc"])
        number = len(finished)
        while True:
            if number == len(planned):  # otherwise complete the interrupted round first
                chosen = self._loop.ask()
                if not chosen:
                    return self._outcome(self._loop.ending)
                self._journal.add_plan(number, chosen, is_check=number in self._loop.checks)
                planned.append(chosen)
            if number in self._loop.checks:
                self._watcher.on_check(len(planned[number]))
            else:
                self._watcher.on_round(number, len(planned[number]))
            self._round(number)
            number += 1

    def ended(self) -> Outcome | None:
        """Return the outcome of a loop that has nothing left to measure; None if it goes on.

        Raises:
            DeviceError: there are too few measurements to learn from.
        """
        planned, finished = self._restored(), self._journal.rounds()
        if not finished or len(finished) < len(planned):
            return None
        result = self._judged(finished[-1]["qc"])
        if self._loop.ask():
            return None
        self._keep(len(finished) - 1, result)
        return self._outcome(self._loop.ending)

    def finish(self) -> tuple[Outcome, dict[str, Any]]:
        """Train on the measurements so far; nothing is measured or stored.

        Returns:
            Outcome, and its round as an entry of result.json.

        Raises:
            DeviceError: there are too few measurements to learn from.
        """
        self._loop.restore(self._planned(), checks=self._journal.checks())
        worst = float(np.max(self._measurements.table().quality.worst, initial=0.0))
        worst = min(worst, MOST_DEVIATION)
        qc = {"passed": False, "worst_reference_deviation_percent": 100 * worst}
        result = self._judged({**qc, "remeasured_blocks": 0})
        planned = sum(map(len, self._planned()))
        reason = f"finished with {result['measured_models']} of {planned} planned architectures"
        return self._outcome(reason), result

    def _planned(self) -> list[list[Architecture]]:
        """Return the loop's rounds, without references and searches."""
        return [chosen for number, chosen in self._journal.plan().items() if number >= 0]

    def _restored(self) -> list[list[Architecture]]:
        """Restore the loop and return its rounds."""
        planned = self._planned()
        taken = {a.key for each in self._journal.plan().values() for a in each}
        self._loop.restore(planned, taken, self._journal.checks())
        return planned

    def _round(self, number: int) -> None:
        assert self._measurer is not None
        quality = self._measurer.collect(number)
        qc = {
            "passed": quality.passed,
            "worst_reference_deviation_percent": 100 * quality.worst_reference_deviation,
            "remeasured_blocks": quality.remeasured_blocks,
        }
        self._judge(number, qc)

    def _judge(self, number: int, qc: dict[str, Any]) -> None:
        """Train and evaluate on all measurements so far, and store the result of a round."""
        self._keep(number, self._judged(qc))

    def _keep(self, number: int, result: dict[str, Any]) -> None:
        """Store the result of a round."""
        self._journal.keep_round(number, result)
        self._watcher.on_evaluated(result)

    def _judged(self, qc: dict[str, Any]) -> dict[str, Any]:
        """Train and evaluate on all measurements so far."""
        self._watcher.on_training()
        start = time.monotonic()
        measured = self._measurements.of(self._metric)
        self._dataset = self._trusted(measured)
        self._tell(self._dataset)
        evaluation = self._loop.evaluation
        return {
            "measured_models": len(measured),
            "failed_models": sum(map(len, self._planned())) - len(measured),
            "trusted_models": len(self._dataset),
            "accuracy_percent": evaluation.accuracy_percent,
            "bins": [_bin_json(entry) for entry in evaluation.bins],
            "check": None if evaluation.check is None else asdict(evaluation.check),
            "qc": qc,
            "verdicts": measured.verdict_counts(),
            "training_seconds": time.monotonic() - start,
        }

    def _tell(self, dataset: Dataset) -> None:
        """Tell the loop the values of everything planned; NaN outside the data set."""
        values = zip(dataset.latency_ms.tolist(), dataset.interval.tolist(), strict=True)
        known = dict(zip((a.key for a in dataset.architectures), values, strict=True))
        planned = [
            architecture
            for number, architectures in self._journal.plan().items()
            if number != REFERENCE_ROUND
            for architecture in architectures
        ]
        told = [known.get(a.key, (np.nan, np.nan)) for a in planned]
        self._loop.tell(planned, [ms for ms, _ in told], [interval for _, interval in told])

    def _trusted(self, measured: Dataset) -> Dataset:
        """Return the training set.

        Raises:
            DeviceError: the training set is too small.
        """
        dataset = measured.only(self._settings.trusted_verdicts)
        if len(dataset.without(self._journal.held_out())) < 2 * self._settings.folds:
            planned = sum(map(len, self._planned()))
            failures = self._measurements.failures(self._metric)
            what = "could be measured"
            if self._metric != LATENCY:
                what = f"have a known {self._metric.title}"
            raise DeviceError(
                f"{len(measured)} of {planned} architectures {what}, {len(dataset)} of them "
                f"with a verdict that {argument('train_on')} accepts: too few to learn from; "
                f"first failure: {next(iter(failures.values()), 'none')}"
            )
        return dataset

    def _outcome(self, reason: str) -> Outcome:
        loop = self._loop
        predicted_ms = loop.evaluation.predicted_ms
        return Outcome(
            loop.converged, reason, self._dataset, predicted_ms, loop.predictor, loop.reached
        )


def _bin_json(entry: BinAccuracy) -> dict[str, Any]:
    # JSON has no NaN.
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in asdict(entry).items()
    }
