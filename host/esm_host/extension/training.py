"""Training and evaluation of a campaign's predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.dataset.table import Dataset, Samples
from esm_host.encoding.base import Encoder
from esm_host.errors import UsageError
from esm_host.evaluation.accuracy import BinAccuracy, accuracy_by_bin, accuracy_percent
from esm_host.evaluation.check import Check
from esm_host.evaluation.expected_error import Predicted, expected_errors
from esm_host.extension.committee import cross_validate, with_std
from esm_host.extension.settings import TrainingSettings
from esm_host.predictors import make_predictor
from esm_host.predictors.base import JointPredictor, Predictor
from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

MakePredictor = Callable[[int], Predictor]
"""Factory of unfitted predictors, by member of a cross-validation.

Each member starts from different weights.
"""


def train(
    predictor: Predictor, encoder: Encoder, dataset: Dataset, settings: TrainingSettings
) -> Predictor:
    """Fit a predictor to the samples with trusted verdicts, weighted as the settings say."""
    return _fit(predictor, encoder, dataset.only(settings.trusted_verdicts), settings)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracy of a predictor on unseen architectures, by cross-validation.

    Attributes:
        accuracy_percent: Accuracy (100 - MAPE) over all samples; of chosen samples, the estimate
            for random architectures of all bins.
        bins: Accuracy by depth bin.
        predicted_ms: Predictions of the samples by predictors that have not seen them, ms, shape
            ``(n,)``.
        stds: Their standard deviations, as shares, shape ``(n,)``.
        committee: Predictors of the cross-validation.
        check: Accuracy on the models of the last check; None without one.
    """

    accuracy_percent: float
    bins: list[BinAccuracy]
    predicted_ms: NDArray[np.float64]
    stds: NDArray[np.float64]
    committee: list[Predictor]
    check: Check | None = None

    def passing(self, target_percent: float) -> list[bool]:
        """Return whether each bin reaches the target; a bin without samples does not."""
        return [each.surely_percent >= target_percent for each in self.bins]

    def reaches(self, target_percent: float, judge: str) -> bool:
        """Return whether every bin (``judge="bins"``) or the mean of all reaches the target."""
        if judge == "bins":
            return all(self.passing(target_percent))
        if any(each.lower_percent is not None for each in self.bins):
            return float(np.nanmean([b.surely_percent for b in self.bins])) >= target_percent
        return self.accuracy_percent >= target_percent


class Learner:
    """Training and evaluation of one kind of predictor."""

    def __init__(
        self, encoder: Encoder, make_predictor: MakePredictor, settings: TrainingSettings
    ) -> None:
        self.encoder = encoder
        self._make_predictor = make_predictor
        self._settings = settings

    @classmethod
    def of(cls, space: SearchSpace, settings: TrainingSettings) -> Learner:
        """Make the learner of a search space, without sources.

        Raises:
            UsageError: the settings include a warm start, or the encoding or the predictor does
                not suit the space.
        """
        if settings.warm_start:
            raise UsageError(f"{argument('warm_start')} needs a campaign: omit it")
        encoder = settings.encoder(space)

        def make(member: int) -> Predictor:
            return make_predictor(settings.predictor, encoder, settings.seed + member)

        make(0)  # reports a missing library now
        return cls(encoder, make, settings)

    def enough(self, samples: int) -> bool:
        """Return whether there are enough samples for a cross-validation."""
        return samples >= 2 * self._settings.folds

    def evaluate(
        self, samples: Samples, bins: DepthBins, trained: Predictor | None = None
    ) -> Evaluation:
        """Evaluate the predictor on held-out samples.

        Args:
            samples: Samples.
            bins: Depth bins.
            trained: Predictor trained on all samples. If it is a :class:`JointPredictor`, its
                held-out predictions are used, and there is no committee. Otherwise the predictor
                is cross-validated, with folds stratified by depth bin.
        """
        committee: list[Predictor] = []
        if isinstance(trained, JointPredictor):
            predicted_ms, stds = trained.held_out()
        else:
            predicted_ms, stds, committee = cross_validate(
                self._make_predictor,
                self.encoder.encode(samples.architectures),
                samples.latency_ms,
                samples.weights(self._settings.weights),
                bins.of(samples.depth),
                self._settings.folds,
                self._settings.seed,
            )
        return Evaluation(
            accuracy_percent(samples.latency_ms, predicted_ms),
            accuracy_by_bin(samples.depth, samples.latency_ms, predicted_ms, bins),
            predicted_ms,
            stds,
            committee,
        )

    def check(
        self,
        evaluation: Evaluation,
        samples: Samples,
        held_out: NDArray[np.bool_],
        predictor: Predictor,
        bins: DepthBins,
    ) -> Evaluation:
        """Return the evaluation with the predictor's errors on the samples of a check.

        Args:
            evaluation: Evaluation on the training samples.
            samples: All samples, ``n``.
            held_out: Whether each sample belongs to the check, shape ``(n,)``.
            predictor: Predictor trained on the other samples.
            bins: Depth bins.
        """
        predicted_ms, stds = np.empty((2, len(samples)))
        predicted_ms[~held_out], stds[~held_out] = evaluation.predicted_ms, evaluation.stds
        if held_out.any():
            encodings = self.encoder.encode(samples.at(held_out).architectures)
            predicted_ms[held_out], stds[held_out] = with_std(predictor, encodings)
        errors = predicted_ms / samples.latency_ms - 1
        return Evaluation(
            accuracy_percent(samples.latency_ms, predicted_ms),
            accuracy_by_bin(samples.depth, samples.latency_ms, predicted_ms, bins),
            predicted_ms,
            stds,
            evaluation.committee,
            Check.of(errors[held_out]),
        )

    def expect(
        self,
        evaluation: Evaluation,
        samples: Samples,
        predictor: Predictor,
        population: Sequence[Sequence[Architecture]],
        bins: DepthBins,
        confidence: float,
    ) -> Evaluation:
        """Return the evaluation for random architectures, if the samples were chosen.

        Args:
            evaluation: Evaluation on the samples.
            samples: Samples.
            predictor: Predictor trained on all samples.
            population: Random architectures of each bin; the accuracy of a bin without any is NaN.
            bins: Depth bins.
            confidence: Probability that the accuracy of a bin is at least its bound.
        """
        everything = [a for each in population for a in each]
        depth = np.array([a.depth for a in everything], dtype=np.int64)
        latency_ms, stds = with_std(predictor, self.encoder.encode(everything))
        expected = expected_errors(
            Predicted(evaluation.predicted_ms, evaluation.stds, bins.of(samples.depth)),
            evaluation.predicted_ms / samples.latency_ms - 1,
            Predicted(latency_ms, stds, bins.of(depth)),
            bins.count,
            confidence,
        )
        percent, lower = 100 - 100 * expected.estimate, 100 - 100 * expected.upper
        return replace(
            evaluation,
            accuracy_percent=float(np.nanmean(percent)),
            bins=[
                replace(each, accuracy_percent=own, lower_percent=least)
                for each, own, least in zip(
                    evaluation.bins, percent.tolist(), lower.tolist(), strict=True
                )
            ],
        )

    def weights(self, samples: Samples) -> NDArray[np.float64]:
        """Return the training weights of samples, shape ``(n,)``."""
        return samples.weights(self._settings.weights)

    def train(self, samples: Samples) -> Predictor:
        """Return a predictor fitted to all samples."""
        return _fit(self._make_predictor(0), self.encoder, samples, self._settings)


def _fit(
    predictor: Predictor, encoder: Encoder, samples: Samples, settings: TrainingSettings
) -> Predictor:
    encodings = encoder.encode(samples.architectures)
    return predictor.fit(encodings, samples.latency_ms, samples.weights(settings.weights))
