"""From stored blocks to a data set: one latency per architecture, drift removed.

Where the agent timed reference models of its own along, latencies are at the device's usual pace
(:mod:`esm_host.dataset.usual_pace`). Blocks of older campaigns have none; the block's factor, which
the campaign's own reference models tell, is divided out then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.store import (
    GROUP_FACT,
    REFERENCE_ROUND,
    Company,
    Store,
    StoredBlock,
)
from esm_host.dataset.usual_pace import FEWEST_TOLD, AgentReading, Block, DevicePaces, explained
from esm_host.evaluation.device_paces import Readings
from esm_host.evaluation.quality import Quality, judge, judge_at_usual, median
from esm_host.evaluation.verdict import (
    Judgement,
    Verdict,
    block_evidence,
    judge_number,
    threads_evidence,
)
from esm_host.evaluation.warm import warm_ratios, warming
from esm_models.architecture import Architecture
from esm_protos.estimates import BlockEstimate, Estimate, estimate_measured
from esm_protos.messages import Measurement, MeasureSpec, RunOrder

_LEAST_ERROR = 0.02
WIDEST = 0.5
"""Interval, as a share, that is reckoned with at most; also where there were too few rounds for
one."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Architectures with their latencies, in the order of the plan.

    Attributes:
        latency_ms: trimmed mean at the device's usual pace, ``(n,)``; of a campaign without the
            agent's reference models with the pace and the block's factor divided out; of a raw one
            as measured. Of a group, on the scale of its median device.
        interval: half-width of the 95 % interval of the latency's logarithm for the device at any
            time, ``(n,)``: nearly a share of the latency.
        judgements: verdict and reasons of each, ``(n,)``.
        raw_ms: trimmed mean as measured, ``(n,)``.
    """

    architectures: list[Architecture]
    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]
    judgements: list[Judgement]
    raw_ms: NDArray[np.float64]

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
            self.raw_ms[rows],
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
    """One model in one block."""

    estimate: Estimate

    @property
    def latency_ms(self) -> float:
        """At the device's usual pace; without the agent's reference models at the block's."""
        return self.estimate.latency_ns / 1e6

    @property
    def raw_ms(self) -> float:
        """As measured."""
        return self.estimate.raw_ns / 1e6

    @property
    def interval(self) -> float:
        """Half-width of the 95 % interval for the device at any time, as a share."""
        return self.estimate.interval


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
        references_ms: the campaign's reference models in each block, with no more than the pace
            within it divided out, ``(blocks, references)``, NaN where a reference failed.
        divisors: by what ``latency_ms`` of a block's models is divided for the data set,
            ``(blocks,)``.
        agent: per block, the agent's reference models, smallest weights first.
    """

    blocks: list[StoredBlock]
    models: list[dict[str, Measured]]
    anchors: list[dict[str, Measured]]
    slowdown: list[float]
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


class Measurements:
    """What a store's blocks say. Blocks are never changed, so each is read once.

    Args:
        raw: latencies of the data set are as measured, the devices of a group apart.
    """

    def __init__(self, store: Store, spec: MeasureSpec, raw: bool = False) -> None:
        self._store = store
        self._spec = spec
        self._raw = raw
        self._read_up_to = 0
        self._blocks_read: dict[str, Block] = {}
        self._failures: dict[str, str] = {}
        self._old_way: dict[str, tuple[BlockEstimate, dict[str, Estimate]]] = {}
        self._derived: _Derived | None = None
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
                self._of_references(blocks, lambda model: model.latency_ns) / 1e6,
                # What is not known of the usual paces decides nothing: devices whose agents
                # remember nothing yet are compared as they are now.
                self._of_references(blocks, lambda model: model.within),
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
        for index, block in enumerate(table.blocks):
            # Of a round that is not complete, or of a version that gave none.
            if any((block.block_id, key) not in verdicts for key in table.models[index]):
                for key, judgement in self.judgements(index).items():
                    verdicts.setdefault((block.block_id, key), judgement)
        raw_ms = np.array([model.raw_ms for model in found], dtype=float)
        if self._raw:
            latency_ms = raw_ms / table.quality.levels[used]
            intervals = [model.estimate.within for model in found]
        else:
            warm = [
                self._warm(table.blocks[i])[a.key] for i, a in zip(used, architectures, strict=True)
            ]
            latency_ms = np.array([model.latency_ms for model in found]) / table.divisors[used]
            latency_ms *= [ratio for ratio, _ in warm]
            intervals = [
                float(np.hypot(model.interval, 1.96 * error))
                for model, (_, error) in zip(found, warm, strict=True)
            ]
        return Dataset(
            architectures,
            latency_ms,
            np.array(intervals, dtype=float),
            [
                verdicts[table.blocks[index].block_id, a.key]
                for a, index in zip(architectures, used, strict=True)
            ],
            raw_ms,
        )

    def judgements(
        self, index: int, by_references: Sequence[tuple[Verdict, str]] = ()
    ) -> dict[str, Judgement]:
        """Return the verdicts on the models of a block, by their keys.

        Args:
            index: of the block in the table.
            by_references: what quality control says of the block; nothing before all blocks of
                its round are there.
        """
        table = self.table()
        block_id = table.blocks[index].block_id
        evidence = [
            *block_evidence(self._store.states(block_id), table.slowdown[index]),
            *by_references,
            *threads_evidence(self._spec.threads, self._store.processors(block_id)),
        ]
        return {
            key: judge_number(model.interval, self._spec.precision, evidence)
            for key, model in table.models[index].items()
        }

    def figures(self) -> Figures:
        """Of everything that is planned."""
        table, dataset = self.table(), self.dataset()
        own = [block.round >= REFERENCE_ROUND for block in table.blocks]
        if self._raw:
            every_ms = self._of_references(table.blocks, lambda model: model.raw_ns) / 1e6
            divisors = table.quality.levels
        else:
            every_ms = self._of_references(table.blocks, lambda model: model.latency_ns) / 1e6
            divisors = table.divisors
            every_ms *= self._warm_references(table.blocks)
        paced_ms = (every_ms / divisors[:, None])[own]
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

    def _warm(self, block: StoredBlock) -> Mapping[str, tuple[float, float]]:
        """How many times as long models take when they are warm, and the standard errors, by their
        keys; of the block's device."""
        if self._derived is None:
            self._derived = self._derive()
        return self._derived.warm[block.block_id]

    def _warm_references(self, blocks: Sequence[StoredBlock]) -> NDArray[np.float64]:
        """``(blocks, references)``; 1 where a reference failed."""
        references = [a.key for a in self._store.plan().get(REFERENCE_ROUND, [])]
        ratios = [[self._warm(b).get(key, (1.0, 0.0))[0] for key in references] for b in blocks]
        return np.array(ratios, dtype=float).reshape(len(blocks), len(references))

    def _made(self, blocks: list[StoredBlock]) -> BlockTable:
        if self._derived is None:
            self._derived = self._derive()
        derived = self._derived
        table = self._without_anchors(blocks, derived)
        if derived.paces:
            return self._by_anchors(table, derived)
        factors = anchored(table)
        return replace(table, quality=replace(table.quality, factors=factors), divisors=factors)

    def _without_anchors(self, blocks: list[StoredBlock], derived: _Derived) -> BlockTable:
        rounds = {a.key: number for number, each in self._store.plan().items() for a in each}
        models: list[dict[str, Measured]] = []
        anchors: list[dict[str, Measured]] = []
        for block in blocks:
            own = (block.round, REFERENCE_ROUND)
            found = derived.models[block.block_id].items()
            models.append({key: Measured(each) for key, each in found if rounds[key] in own})
            anchors.append({key: Measured(each) for key, each in found if rounds[key] not in own})
        measured = {key for found in models for key in found}
        in_blocks_ms = self._of_references(blocks, _at_blocks_pace) / 1e6
        if derived.paces:
            quality = self._quality_at_usual(blocks)
        else:
            devices = self._devices(blocks)
            quality = judge(in_blocks_ms, self._common_pace, devices, _typical(blocks))
        return BlockTable(
            blocks,
            models,
            anchors,
            [derived.slowdown[block.block_id] for block in blocks],
            {key: text for key, text in self._failures.items() if key not in measured},
            in_blocks_ms,
            quality,
            quality.levels if derived.paces else quality.factors,
            [derived.agent.get(block.block_id, []) for block in blocks],
        )

    def _quality_at_usual(self, blocks: Sequence[StoredBlock]) -> Quality:
        usual_ms = self._of_references(blocks, lambda model: model.latency_ns) / 1e6
        slower = median(self._of_references(blocks, _slower), axis=1)
        return judge_at_usual(
            usual_ms,
            self._of_references(blocks, explained),
            np.exp(np.nan_to_num(slower)),
            self._devices(blocks),
            _typical(blocks),
        )

    def _by_anchors(self, table: BlockTable, derived: _Derived) -> BlockTable:
        """The table, blocks with anchors estimated again: what these take at the usual pace is
        known from their own blocks."""
        best = best_attempts(table)
        models, anchors = list(table.models), list(table.anchors)
        factors = table.quality.factors.copy()
        for index, block in enumerate(table.blocks):
            known: dict[str, tuple[float, float]] = {}
            for key in table.anchors[index].keys() & best.keys():
                estimate = table.models[best[key]][key].estimate
                level = table.divisors[index] / table.divisors[best[key]]
                error = min(estimate.interval, WIDEST) / 1.96
                known[key] = level * estimate.latency_ns, error
            if len(known) >= FEWEST_TOLD:
                there = {key: table.anchors[index][key].estimate for key in known}
                slower = [_at_blocks_pace(e) / known[key][0] for key, e in there.items()]
                factors[index] = np.median(slower)
                _, found = derived.paces[block.block_id].by(block.block_id, known)
                models[index] = {key: Measured(found[key]) for key in models[index]}
                anchors[index] = {key: Measured(found[key]) for key in anchors[index]}
        quality = replace(table.quality, factors=factors)
        return replace(table, models=models, anchors=anchors, quality=quality)

    @property
    def _common_pace(self) -> bool:
        return self._spec.protocol is RunOrder.INTERLEAVED

    def _blocks(self, block_ids: Collection[str] | None = None) -> list[StoredBlock]:
        """These, or those of all devices that measured more than the references; read."""
        blocks = self._store.blocks()
        self._read(blocks)
        if block_ids is not None:
            return [block for block in blocks if block.block_id in block_ids]
        counted = {block.device for block in blocks if block.round != REFERENCE_ROUND}
        return [block for block in blocks if block.device in counted]

    def _devices(self, blocks: Sequence[StoredBlock]) -> NDArray[np.int64]:
        """Numbers of the blocks' devices; of no group there is one, by whatever name."""
        if self._store.fact(GROUP_FACT) is None:
            return np.zeros(len(blocks), dtype=np.int64)
        names = sorted({block.device for block in blocks})
        return np.array([names.index(block.device) for block in blocks], dtype=np.int64)

    def _of_references(
        self, blocks: Sequence[StoredBlock], figure: Callable[[Estimate], float]
    ) -> NDArray[np.float64]:
        """A figure of every reference in each block, ``(blocks, references)``, NaN where it
        failed."""
        if self._derived is None:
            self._derived = self._derive()
        models = self._derived.models
        references = [a.key for a in self._store.plan().get(REFERENCE_ROUND, [])]
        return np.array(
            [
                [
                    figure(models[block.block_id][key]) if key in models[block.block_id] else np.nan
                    for key in references
                ]
                for block in blocks
            ],
            dtype=float,
        ).reshape(len(blocks), len(references))

    def _read(self, blocks: list[StoredBlock]) -> None:
        fresh = {block.block_id: block for block in blocks if block.number > self._read_up_to}
        if not fresh:
            return
        self._table = self._derived = None
        companies = self._store.companies(after=self._read_up_to)
        measured: dict[str, list[Measurement]] = {block_id: [] for block_id in fresh}
        for stored in self._store.measurements(after=self._read_up_to):
            measurement = stored.measurement
            if stored.block_id not in fresh:
                continue
            if failure := measurement.failure:
                text = f"{failure.kind.value}: {failure.message}"
                self._failures[measurement.model_id] = text
            else:
                measured[stored.block_id].append(measurement)
        for block_id, block in fresh.items():
            company = companies.get(block_id, Company())
            self._blocks_read[block_id] = Block(block, measured[block_id], company)
        self._read_up_to = max(block.number for block in blocks)

    def _derive(self) -> _Derived:
        derived = _Derived({}, {}, {}, {}, {})
        blocks = list(self._blocks_read.values())
        for own in self._by_device(blocks):
            warm = _warm_models(own, self._spec)
            derived.warm.update((block.stored.block_id, warm) for block in own)
        if not any(block.references for block in blocks):
            for block in blocks:
                derived.add(block, *self._alone(block))
            return derived
        references = [a.key for a in self._store.plan().get(REFERENCE_ROUND, [])]
        for own in self._by_device(blocks):
            stored = [block.stored for block in own]
            typical = [b.block_id for b in stored if b.round >= REFERENCE_ROUND]
            paces = DevicePaces(own, self._spec, references, typical)
            for block in own:
                block_id = block.stored.block_id
                derived.add(block, *paces.estimates[block_id])
                derived.paces[block_id] = paces
                derived.agent[block_id] = paces.readings(block_id)
        return derived

    def _by_device(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        numbers = self._devices([block.stored for block in blocks])
        for number in np.unique(numbers):
            yield [block for block, of in zip(blocks, numbers, strict=True) if of == number]

    def _alone(self, block: Block) -> tuple[BlockEstimate, dict[str, Estimate]]:
        """A block's estimates without the agent's reference models; each is made once."""
        block_id = block.stored.block_id
        if block_id not in self._old_way:
            keys = [measurement.model_id for measurement in block.measurements]
            found = estimate_measured(block.measurements, self._spec)
            self._old_way[block_id] = found, dict(zip(keys, found.models, strict=True))
        return self._old_way[block_id]


@dataclass(frozen=True, eq=False)
class _Derived:
    """What blocks come to, by their ids.

    Attributes:
        models: estimates by architecture key.
        paces: those of the block's device; none of a store without the agent's reference models.
        agent: the agent's reference models.
        warm: how many times as long the models of the block's device take when they are warm, and
            the standard errors, by their keys.
    """

    models: dict[str, Mapping[str, Estimate]]
    slowdown: dict[str, float]
    paces: dict[str, DevicePaces]
    agent: dict[str, list[AgentReading]]
    warm: dict[str, Mapping[str, tuple[float, float]]]

    def add(self, block: Block, found: BlockEstimate, models: Mapping[str, Estimate]) -> None:
        self.models[block.stored.block_id] = models
        self.slowdown[block.stored.block_id] = found.slowdown


def _warm_models(blocks: Sequence[Block], spec: MeasureSpec) -> dict[str, tuple[float, float]]:
    """How many times as long a device's models take when they are warm, and the standard errors;
    1 and 0 where latencies are as measured, without long visits."""
    taken: dict[str, list[Measurement]] = {}
    for block in blocks:
        for measurement in block.measurements:
            taken.setdefault(measurement.model_id, []).append(measurement)
    if not spec.long_visits:
        return dict.fromkeys(taken, (1.0, 0.0))
    ratios, errors = warm_ratios([warming(each, spec.trim) for each in taken.values()])
    return dict(zip(taken, zip(ratios.tolist(), errors.tolist(), strict=True), strict=True))


def _at_blocks_pace(model: Estimate) -> float:
    """A latency with no more than the pace within the block divided out, nanoseconds."""
    return model.latency_ns * float(np.exp(_slower(model)))


def _slower(model: Estimate) -> float:
    return 0.0 if model.shift is None else model.shift.value


def _typical(blocks: Sequence[StoredBlock]) -> NDArray[np.bool_]:
    """Blocks that tell a campaign's scale, ``(blocks,)``: what a search measured later must not
    shift it."""
    return np.array([block.round >= REFERENCE_ROUND for block in blocks], dtype=bool)


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
