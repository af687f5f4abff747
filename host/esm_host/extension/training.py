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
from esm_host.evaluation.expected_error import expected_errors
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
        predicted_ms: Out-of-fold predictions of the samples, ms, shape ``(n,)``.
        stds: Their standard deviations, as shares, shape ``(n,)``.
        committee: Predictors that made them.
    """

    accuracy_percent: float
    bins: list[BinAccuracy]
    predicted_ms: NDArray[np.float64]
    stds: NDArray[np.float64]
    committee: list[Predictor]


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
        mean_std = [
            with_std(predictor, self.encoder.encode(each))[1].mean() if each else np.nan
            for each in population
        ]
        expected = expected_errors(
            evaluation.predicted_ms / samples.latency_ms - 1,
            evaluation.stds,
            bins.of(samples.depth),
            np.array(mean_std),
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

    def train(self, samples: Samples) -> Predictor:
        """Return a predictor fitted to all samples."""
        return _fit(self._make_predictor(0), self.encoder, samples, self._settings)


def _fit(
    predictor: Predictor, encoder: Encoder, samples: Samples, settings: TrainingSettings
) -> Predictor:
    encodings = encoder.encode(samples.architectures)
    return predictor.fit(encodings, samples.latency_ms, samples.weights(settings.weights))
