"""What a campaign's predictor learns from: as much of its data set as its settings trust."""

from __future__ import annotations

from esm_host.dataset.table import Dataset
from esm_host.encoding.base import Encoder
from esm_host.extension.settings import Settings
from esm_host.predictors.base import Predictor


def train(
    predictor: Predictor, encoder: Encoder, dataset: Dataset, settings: Settings
) -> Predictor:
    """Fits it to what has a trusted verdict, weighted as the settings say; the same predictor."""
    trusted = dataset.only(settings.trusted_verdicts)
    return predictor.fit(
        encoder.encode(trusted.architectures),
        trusted.latency_ms,
        trusted.weights(settings.weights),
    )
