"""Values derived from stored blocks: models by block, and one latency per architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.store import StoredBlock
from esm_host.dataset.usual_pace import FEWEST_TOLD, AgentReading, Estimates
from esm_host.evaluation.quality import Quality
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_models.architecture import Architecture
from esm_protos.messages import DeviceState

_LEAST_ERROR = 0.02
WIDEST = 0.5
"""Interval, as a share, that is reckoned with at most; also where there were too few rounds for
one."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Architectures with their latencies: what a predictor learns from.

    Attributes:
        latency_ms: ``(n,)``.
        interval: half-width of the 95 % interval of the latency's logarithm for the device at any
            time, ``(n,)``: nearly a share of the latency.
    """

    architectures: list[Architecture]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each architecture, ``(n,)``."""
        return np.array([a.depth for a in self.architectures], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.architectures)

    def weights(self, kind: str = "interval") -> NDArray[np.float64]:
        """How much each number should count in training, ``(n,)``: its inverse variance, or, of
        another kind than ``"interval"``, all the same.

        To what the interval says of a number comes what a predictor misses anyway and what varies
        between blocks, taken as 2 %; so no number counts for much more than another.
        """
        if kind != "interval":
            return np.ones(len(self))
        error = np.minimum(self.interval, WIDEST) / 1.96
        return np.asarray(1 / (error**2 + _LEAST_ERROR**2))


@dataclass(frozen=True, eq=False)
class Dataset(Samples):
    """Samples of a campaign, in the order of the plan.

    Latencies are trimmed means at the device's usual pace; of a campaign without the agent's
    reference models with the pace and the block's factor divided out; of a raw one as measured. Of
    a group, on the scale of its median device.

    Attributes:
        judgements: verdict and reasons of each, ``(n,)``.
        raw_ms: trimmed mean as measured, ``(n,)``.
    """

    judgements: list[Judgement]
    raw_ms: NDArray[np.float64]

    def only(self, verdicts: Collection[Verdict]) -> Dataset:
        """Those with one of these verdicts."""
        rows = [i for i, judgement in enumerate(self.judgements) if judgement.verdict in verdicts]
        return Dataset(
            [self.architectures[i] for i in rows],
            self.latency_ms[rows],
            self.interval[rows],
            [self.judgements[i] for i in rows],
            self.raw_ms[rows],
        )

    def verdict_counts(self) -> dict[str, int]:
        """How many have each verdict, from the best to the worst."""
        counts = Counter(judgement.verdict for judgement in self.judgements)
        return {verdict.value: counts[verdict] for verdict in Verdict}


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Every block's models and how its references fared.

    Of a group, blocks of the references alone are among them; of devices that measured nothing
    else, none.

    Attributes:
        models: per block, what was measured by architecture key, its round's and the references;
            models that failed are absent.
        anchors: per block, models of other rounds that were measured along.
        states: of the device before, during and after each block.
        failures: architecture key -> message, of models that were never measured.
        references_ms: the campaign's reference models in each block, with no more than the pace
            within it divided out, ``(blocks, references)``, NaN where a reference failed.
        divisors: by what ``latency_ms`` of a block's models is divided for the data set,
            ``(blocks,)``.
        agent: per block, the agent's reference models, smallest weights first.
    """

    blocks: list[StoredBlock]
    models: list[Estimates]
    anchors: list[Estimates]
    states: list[tuple[DeviceState, ...]]
    failures: dict[str, str]
    references_ms: NDArray[np.float64]
    quality: Quality
    divisors: NDArray[np.float64]
    agent: list[list[AgentReading]]


@dataclass(frozen=True, eq=False)
class Figures:
    """Every architecture that is planned, reference models included.

    Attributes:
        rounds: that planned them, ``(n,)``.
        latency_ms: as in :class:`Dataset`, of a reference the median of its blocks, NaN of what
            was not measured, ``(n,)``.
        interval: half-width of the 95 % interval, as a share of the latency, at most
            :data:`WIDEST`; 0 of a reference, which many blocks hold, ``(n,)``.
        verdicts: ``"reference"`` of a reference, empty of what was not measured, ``(n,)``.
    """

    architectures: list[Architecture]
    rounds: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]
    verdicts: list[str]


def anchored(table: BlockTable) -> NDArray[np.float64]:
    """The blocks' factors, ``(blocks,)``: where anchors were measured along, they tell it, and not
    the references. What slows a device down need not slow every network alike; anchors are chosen
    to be like the rest of their block, references by chance."""
    factors = table.quality.factors.copy()
    known_ms = {
        key: table.models[index][key].latency_ms / factors[index]
        for key, index in best_attempts(table).items()
    }
    for index, anchors in enumerate(table.anchors):
        paces = [a.latency_ms / known_ms[key] for key, a in anchors.items() if key in known_ms]
        if len(paces) >= FEWEST_TOLD:
            factors[index] = np.median(paces)
    return factors


def best_attempts(table: BlockTable) -> dict[str, int]:
    """Per architecture key, the index of the block to believe: passed before not judged yet before
    failed, then the one whose references strayed least."""
    best: dict[str, int] = {}
    for index, block in enumerate(table.blocks):
        for key in table.models[index]:
            if key not in best or _rank(block) > _rank(table.blocks[best[key]]):
                best[key] = index
    return best


def _rank(block: StoredBlock) -> tuple[float, float]:
    judged = 0.5 if block.passed is None else float(block.passed)
    return judged, -(block.worst_deviation or 0.0)
