"""From stored blocks to a data set: one latency per architecture, drift removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.store import (
    GROUP_FACT,
    REFERENCE_ROUND,
    Store,
    StoredBlock,
    StoredMeasurement,
)
from esm_host.evaluation.alike import Readings
from esm_host.evaluation.quality import Quality, judge, median
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_models.architecture import Architecture
from esm_protos.estimates import estimate_measured
from esm_protos.messages import MeasureSpec, Protocol

_LEAST_ERROR = 0.02
WIDEST = 0.5
"""Interval, as a share, that is reckoned with at most; also where there were too few rounds for
one."""
FEWEST_ANCHORS = 3
"""That are believed: one alone may stray."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Architectures with their latencies, in the order of the plan.

    Attributes:
        latency_ms: trimmed mean, the device's pace and its block's factor divided out, ``(n,)``.
            Of a group, on the scale of its median device.
        interval: half-width of the 95 % interval, as a share of the latency, ``(n,)``.
        judgements: verdict and reasons of each, ``(n,)``.
    """

    architectures: list[Architecture]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]
    judgements: list[Judgement]

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each architecture, ``(n,)``."""
        return np.array([a.depth for a in self.architectures], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.architectures)

    def only(self, verdicts: Collection[Verdict]) -> Dataset:
        """Those with one of these verdicts."""
        rows = [i for i, judgement in enumerate(self.judgements) if judgement.verdict in verdicts]
        return Dataset(
            [self.architectures[i] for i in rows],
            self.latency_ms[rows],
            self.interval[rows],
            [self.judgements[i] for i in rows],
        )

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

    def verdict_counts(self) -> dict[str, int]:
        """How many have each verdict, from the best to the worst."""
        counts = Counter(judgement.verdict for judgement in self.judgements)
        return {verdict.value: counts[verdict] for verdict in Verdict}


@dataclass(frozen=True)
class Measured:
    """One model's latency in one block, the pace within the block divided out."""

    latency_ms: float
    raw_ms: float
    interval: float


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Every block's models and how its references fared.

    Of a group, blocks of the references alone are among them; of devices that measured nothing
    else, none.

    Attributes:
        models: per block, what was measured by architecture key, its round's and the references;
            models that failed are absent.
        anchors: per block, models of other rounds that were measured along.
        slowdown: per block, from its first third to its last, as a share.
        failures: architecture key -> message, of models that were never measured.
        references_ms: ``(blocks, references)``, NaN where a reference failed.
    """

    blocks: list[StoredBlock]
    models: list[dict[str, Measured]]
    anchors: list[dict[str, Measured]]
    slowdown: list[float]
    failures: dict[str, str]
    references_ms: NDArray[np.float64]
    quality: Quality


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


class Measurements:
    """What a store's blocks say. Blocks are never changed, so each is read and derived once."""

    def __init__(self, store: Store, spec: MeasureSpec) -> None:
        self._store = store
        self._spec = spec
        self._read_up_to = 0
        self._models: dict[str, dict[str, Measured]] = {}
        self._slowdown: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._table: BlockTable | None = None

    def table(self) -> BlockTable:
        """All blocks so far, judged by their references."""
        blocks = self._blocks()
        if self._table is None or self._table.blocks != blocks:
            self._table = self._made(blocks)
        return self._table

    def readings(self, block_ids: Collection[str] | None = None) -> dict[str, Readings]:
        """The references by device: in these blocks, or in all that count for the data set."""
        by_device: dict[str, list[StoredBlock]] = {}
        for block in self._blocks(block_ids):
            by_device.setdefault(block.device, []).append(block)
        return {
            name: Readings(
                self._of_references(blocks, lambda model: model.latency_ms),
                self._of_references(blocks, lambda model: model.interval),
            )
            for name, blocks in by_device.items()
        }

    def dataset(self) -> Dataset:
        """Every planned architecture that could be measured, with its best attempt's latency."""
        table = self.table()
        best = best_attempts(table)
        architectures = [
            architecture
            for round_number, planned in self._store.plan().items()
            if round_number != REFERENCE_ROUND
            for architecture in planned
            if architecture.key in best
        ]
        used = np.array([best[a.key] for a in architectures], dtype=int)
        found = [table.models[index][a.key] for a, index in zip(architectures, used, strict=True)]
        verdicts = self._store.verdicts()
        return Dataset(
            architectures,
            np.array([model.latency_ms for model in found]) / table.quality.factors[used],
            np.array([model.interval for model in found]),
            [
                verdicts[table.blocks[index].block_id, a.key]
                for a, index in zip(architectures, used, strict=True)
            ],
        )

    def figures(self) -> Figures:
        """Of everything that is planned."""
        table, dataset = self.table(), self.dataset()
        own = [block.round >= REFERENCE_ROUND for block in table.blocks]
        paced_ms = (table.references_ms / table.quality.factors[:, None])[own]
        plan = self._store.plan()
        references = zip(plan.get(REFERENCE_ROUND, []), median(paced_ms, axis=0), strict=True)
        found = {a.key: (latency_ms, 0.0, "reference") for a, latency_ms in references}
        intervals = np.minimum(dataset.interval, WIDEST)
        for row, architecture in enumerate(dataset.architectures):
            verdict = dataset.judgements[row].verdict.value
            found[architecture.key] = dataset.latency_ms[row], intervals[row], verdict
        planned = [(a, number) for number, each in plan.items() for a in each]
        rows = [found.get(a.key, (np.nan, 0.0, "")) for a, _ in planned]
        return Figures(
            [a for a, _ in planned],
            np.array([number for _, number in planned], dtype=np.int64),
            np.array([row[0] for row in rows], dtype=float),
            np.array([row[1] for row in rows], dtype=float),
            [row[2] for row in rows],
        )

    def _made(self, blocks: list[StoredBlock]) -> BlockTable:
        rounds = {a.key: number for number, each in self._store.plan().items() for a in each}
        models: list[dict[str, Measured]] = []
        anchors: list[dict[str, Measured]] = []
        for block in blocks:
            own = (block.round, REFERENCE_ROUND)
            found = self._models[block.block_id].items()
            models.append({key: each for key, each in found if rounds[key] in own})
            anchors.append({key: each for key, each in found if rounds[key] not in own})
        references_ms = self._of_references(blocks, lambda model: model.latency_ms)
        measured = {key for found in models for key in found}
        quality = judge(
            references_ms,
            self._common_pace,
            self._devices(blocks),
            # What a search measured later must not shift the campaign's scale.
            np.array([block.round >= REFERENCE_ROUND for block in blocks], dtype=bool),
        )
        table = BlockTable(
            blocks,
            models,
            anchors,
            [self._slowdown[block.block_id] for block in blocks],
            {key: text for key, text in self._failures.items() if key not in measured},
            references_ms,
            quality,
        )
        return replace(table, quality=replace(quality, factors=anchored(table)))

    @property
    def _common_pace(self) -> bool:
        return self._spec.protocol is Protocol.INTERLEAVED

    def _blocks(self, block_ids: Collection[str] | None = None) -> list[StoredBlock]:
        """These, or those of all devices that measured more than the references; read."""
        blocks = self._store.blocks()
        self._read(blocks)
        if block_ids is not None:
            return [block for block in blocks if block.block_id in block_ids]
        counted = {block.device for block in blocks if block.round != REFERENCE_ROUND}
        return [block for block in blocks if block.device in counted]

    def _devices(self, blocks: list[StoredBlock]) -> NDArray[np.int64]:
        """Numbers of the blocks' devices; of no group there is one, by whatever name."""
        if self._store.fact(GROUP_FACT) is None:
            return np.zeros(len(blocks), dtype=np.int64)
        names = sorted({block.device for block in blocks})
        return np.array([names.index(block.device) for block in blocks], dtype=np.int64)

    def _of_references(
        self, blocks: list[StoredBlock], figure: Callable[[Measured], float]
    ) -> NDArray[np.float64]:
        """A figure of every reference in each block, ``(blocks, references)``."""
        references = [a.key for a in self._store.plan().get(REFERENCE_ROUND, [])]
        nothing = Measured(np.nan, np.nan, np.inf)
        return np.array(
            [
                [figure(self._models[block.block_id].get(key, nothing)) for key in references]
                for block in blocks
            ],
            dtype=float,
        ).reshape(len(blocks), len(references))

    def _read(self, blocks: list[StoredBlock]) -> None:
        fresh: dict[str, list[StoredMeasurement]] = {
            block.block_id: [] for block in blocks if block.number > self._read_up_to
        }
        for stored in self._store.measurements(after=self._read_up_to):
            if stored.block_id in fresh:
                fresh[stored.block_id].append(stored)
        if fresh:
            self._table = None
        for block_id, group in fresh.items():
            self._derive(block_id, group)
        self._read_up_to = max((block.number for block in blocks), default=0)

    def _derive(self, block_id: str, group: list[StoredMeasurement]) -> None:
        for stored in group:
            if failure := stored.measurement.failure:
                text = f"{failure.kind.value}: {failure.message}"
                self._failures[stored.measurement.model_id] = text
        measured = [s.measurement for s in group if s.measurement.failure is None]
        estimate = estimate_measured(measured, self._spec)
        self._slowdown[block_id] = estimate.slowdown
        self._models[block_id] = {
            m.model_id: Measured(e.latency_ns / 1e6, e.raw_ns / 1e6, e.interval)
            for m, e in zip(measured, estimate.models, strict=True)
        }


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
        if len(paces) >= FEWEST_ANCHORS:
            factors[index] = np.median(paces)
    return factors


def best_attempts(table: BlockTable) -> dict[str, int]:
    """Per architecture key, the index of the block to believe: passed before failed, then the
    one whose references strayed least. Blocks that are not judged yet do not count."""
    best: dict[str, int] = {}
    for index, block in enumerate(table.blocks):
        if block.passed is None:
            continue  # broken off before it was judged: it will be, on resuming
        for key in table.models[index]:
            if key not in best or _rank(block) > _rank(table.blocks[best[key]]):
                best[key] = index
    return best


def _rank(block: StoredBlock) -> tuple[bool, float]:
    return bool(block.passed), -(block.worst_deviation or 0.0)
