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
"""Largest interval in calculations, as a share; also used if too few runs give an interval."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Architectures with their latencies, the training set of a predictor.

    Attributes:
        architectures: Architectures, length ``n``.
        latency_ms: Latencies, ms, shape ``(n,)``; of another metric its values.
        interval: Half-width of the 95 % confidence interval of the log latency of the device at
            any time, shape ``(n,)``. Close to a share of the latency.
    """

    architectures: list[Architecture]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each architecture, shape ``(n,)``."""
        return np.array([a.depth for a in self.architectures], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.architectures)

    def equals(self, other: Samples) -> bool:
        """Return whether these are the same samples in the same order."""
        return (
            self.architectures == other.architectures
            and np.array_equal(self.latency_ms, other.latency_ms)
            and np.array_equal(self.interval, other.interval)
        )

    def at(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return the chosen samples."""
        architectures = [a for a, wanted in zip(self.architectures, chosen, strict=True) if wanted]
        return Samples(architectures, self.latency_ms[chosen], self.interval[chosen])

    def weights(self, kind: str = "interval") -> NDArray[np.float64]:
        """Return the training weights of the samples, shape ``(n,)``.

        A weight is the inverse variance of a sample. The variance includes 2 % for the
        predictor's own error and for differences between blocks. This keeps single samples from
        dominating.

        Args:
            kind: ``"interval"`` for inverse variances; any other kind gives equal weights.
        """
        if kind != "interval":
            return np.ones(len(self))
        error = np.minimum(self.interval, WIDEST) / 1.96
        return np.asarray(1 / (error**2 + _LEAST_ERROR**2))


@dataclass(frozen=True, eq=False)
class Dataset(Samples):
    """Samples of a campaign, in the order of the plan.

    Latencies are trimmed means at the device's usual pace. Without the agent's reference models,
    the pace and the block's factor are divided out. Raw campaigns keep latencies as measured.
    Latencies of a group are on the scale of its median device.

    Attributes:
        judgements: Verdict and reasons of each sample, length ``n``.
        raw_ms: Trimmed means as measured, ms, shape ``(n,)``.
    """

    judgements: list[Judgement]
    raw_ms: NDArray[np.float64]

    def only(self, verdicts: Collection[Verdict]) -> Dataset:
        """Return the samples with one of these verdicts."""
        return self._rows(
            [i for i, judgement in enumerate(self.judgements) if judgement.verdict in verdicts]
        )

    def without(self, keys: Collection[str]) -> Dataset:
        """Return the samples of all other architectures."""
        return self._rows([i for i, a in enumerate(self.architectures) if a.key not in keys])

    def _rows(self, rows: list[int]) -> Dataset:
        return Dataset(
            [self.architectures[i] for i in rows],
            self.latency_ms[rows],
            self.interval[rows],
            [self.judgements[i] for i in rows],
            self.raw_ms[rows],
        )

    def verdict_counts(self) -> dict[str, int]:
        """Return the number of samples with each verdict, from the best to the worst."""
        counts = Counter(judgement.verdict for judgement in self.judgements)
        return {verdict.value: counts[verdict] for verdict in Verdict}


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Models and reference deviations of every block.

    For a group, blocks of references alone are included, except those of devices that measured
    nothing else.

    Attributes:
        blocks: Stored blocks.
        models: Estimates per block by architecture key, for models of the block's round and the
            references. Models that failed are absent.
        anchors: Estimates per block, for models of other rounds.
        states: Device states before, during and after each block.
        failures: Messages of models that were never measured, by architecture key.
        references_ms: Latencies of the campaign's reference models in each block, ms, shape
            ``(blocks, references)``. Only the pace within the block is divided out; NaN if a
            reference failed.
        quality: Quality control of the blocks.
        divisors: Divisors of the latencies of each block's models for the data set, shape
            ``(blocks,)``.
        agent: Readings of the agent's reference models per block, smallest weights first.
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
    """Figures of every planned architecture, reference models included.

    Attributes:
        architectures: Planned architectures, length ``n``.
        rounds: Rounds that planned them, shape ``(n,)``.
        latency_ms: Latencies as in :class:`Dataset`, ms, shape ``(n,)``; of another metric its
            values. The median over blocks for the latency of a reference; NaN if not measured.
        interval: Half-width of the 95 % confidence interval, as a share of the latency, at most
            :data:`WIDEST`, shape ``(n,)``. 0 for the latency of a reference, which many blocks
            hold.
        verdicts: Verdicts, length ``n``; ``"reference"`` for a reference, empty if not measured.
    """

    architectures: list[Architecture]
    rounds: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]
    verdicts: list[str]


def anchored(table: BlockTable) -> NDArray[np.float64]:
    """Return the factors of the blocks, shape ``(blocks,)``, from anchors where a block has them.

    A slow device does not slow every network equally. Anchors are chosen to resemble the rest of
    their block, references are random.
    """
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
    """Return the index of the block to use for each architecture key.

    Passed blocks come before unjudged ones, then failed ones. Among equals the smallest reference
    deviation wins.
    """
    best: dict[str, int] = {}
    for index, block in enumerate(table.blocks):
        for key in table.models[index]:
            if key not in best or _rank(block) > _rank(table.blocks[best[key]]):
                best[key] = index
    return best


def _rank(block: StoredBlock) -> tuple[float, float]:
    judged = 0.5 if block.passed is None else float(block.passed)
    return judged, -(block.worst_deviation or 0.0)
