"""Data set derived from stored blocks: one latency per architecture, drift removed.

Blocks with the agent's reference models give latencies at the device's usual pace
(:mod:`esm_host.dataset.usual_pace`). Blocks of older campaigns have none. Their latencies are
divided by the block's factor, which comes from the campaign's own reference models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.campaign_metric import LATENCY, CampaignMetric
from esm_host.dataset.energy_cure import problem_text
from esm_host.dataset.metric_values import dataset_of, value_of
from esm_host.dataset.store import GROUP_FACT, REFERENCE_ROUND, Store, StoredBlock
from esm_host.dataset.table import (
    WIDEST,
    BlockTable,
    Dataset,
    Figures,
    anchored,
    best_attempts,
)
from esm_host.dataset.usual_pace import FEWEST_TOLD, Block, DevicePaces, Estimates, explained
from esm_host.evaluation.device_paces import Readings
from esm_host.evaluation.quality import Quality, judge, judge_at_usual, median
from esm_host.evaluation.verdict import (
    Judgement,
    Verdict,
    block_evidence,
    judge_again,
    judge_number,
    threads_evidence,
)
from esm_protos.estimates import Estimate
from esm_protos.messages import Measurement, MeasureSpec, RunOrder
from esm_protos.metrics import THREADS_USED


class Measurements:
    """Values derived from a store's blocks. Blocks never change, so each is read once.

    Args:
        store: Store of the blocks.
        spec: Settings of a measurement.
        raw: Whether the data set holds latencies as measured, only scaled between the devices of
            a group.
    """

    def __init__(self, store: Store, spec: MeasureSpec, raw: bool = False) -> None:
        self._store = store
        self._spec = spec
        self._raw = raw
        self._references: list[str] = []
        self._read_up_to = 0
        self._read: dict[str, Block] = {}
        self._paces: dict[str, DevicePaces] = {}
        """Paces of the devices, by the ids of their blocks."""
        self._table: BlockTable | None = None
        self._evidence: dict[str, list[tuple[Verdict, str]]] = {}
        """Evidence from the states of the devices, by block id."""

    def table(self) -> BlockTable:
        """Return all blocks so far, judged by their references."""
        blocks = self._blocks()
        if self._table is None or self._table.blocks != blocks:
            self._table = self._made(blocks)
        return self._table

    def readings(self, block_ids: Collection[str] | None = None) -> dict[str, Readings]:
        """Return the readings of the references by device.

        Args:
            block_ids: Ids of the blocks to read; None takes all that count for the data set.
        """
        by_device: dict[str, list[StoredBlock]] = {}
        for block in self._blocks(block_ids):
            by_device.setdefault(block.device, []).append(block)
        return {
            name: Readings(
                self._of_references(blocks, lambda model: model.latency_ns) / 1e6,
                # The uncertainty of the usual pace is left out. Otherwise devices whose agents
                # remember nothing yet could not be compared.
                self._of_references(blocks, lambda model: model.within),
            )
            for name, blocks in by_device.items()
        }

    def dataset(self) -> Dataset:
        """Return every measured architecture of the plan with the latency of its best attempt.

        Later blocks tell more of the device's usual pace, so intervals change. Verdicts and their
        reasons are of the intervals as they are now. A verdict leaves out the error of the ratio
        of warm to measured latency, which more runs of the model hardly change.
        """
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
            # An incomplete round, or a version without verdicts.
            if any((block.block_id, key) not in verdicts for key in table.models[index]):
                for key, judgement in self.judgements(index).items():
                    verdicts.setdefault((block.block_id, key), judgement)
        raw_ms = np.array([model.raw_ms for model in found], dtype=float)
        if self._raw:
            latency_ms = raw_ms / table.quality.levels[used]
            judged = intervals = [model.within for model in found]
        else:
            warm = [
                self._paces[table.blocks[i].block_id].warm[a.key]
                for i, a in zip(used, architectures, strict=True)
            ]
            latency_ms = np.array([model.latency_ms for model in found]) / table.divisors[used]
            latency_ms *= [ratio for ratio, _ in warm]
            judged = [model.interval for model in found]
            intervals = [
                float(np.hypot(model.interval, 1.96 * error))
                for model, (_, error) in zip(found, warm, strict=True)
            ]
        return Dataset(
            architectures,
            latency_ms,
            np.array(intervals, dtype=float),
            [
                judge_again(
                    verdicts[table.blocks[index].block_id, a.key],
                    known,
                    self._spec.precision,
                    self._evidence_on(table, index),
                    reported,
                )
                for a, index, known, reported in zip(
                    architectures, used, judged, intervals, strict=True
                )
            ],
            raw_ms,
        )

    def of(self, metric: CampaignMetric) -> Dataset:
        """Return every measured architecture that has a value of a metric.

        The values come from the same attempts as :meth:`dataset`.
        """
        if metric == LATENCY:
            return self.dataset()
        return dataset_of(metric, self.dataset(), self._best())

    def training_set(self, metric: CampaignMetric = LATENCY) -> Dataset:
        """Return the data set of a metric without the models of the last check."""
        return self.of(metric).without(self._store.held_out())

    def failures(self, metric: CampaignMetric = LATENCY) -> dict[str, str]:
        """Return the reasons why models lack a metric, by architecture key."""
        found = dict(self.table().failures)
        if metric != LATENCY:
            for key, measured in self._best().items():
                if value_of(metric, measured) is None:
                    energy = measured.energy
                    found[key] = (
                        problem_text(energy.problem, energy.needs_s)
                        if energy
                        else "the device did not report it"
                    )
        return found

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each architecture by its key, then by the metric's key.

        They come from the same attempts as :meth:`dataset`.
        """
        return {key: measured.values() for key, measured in self._best().items()}

    def _best(self) -> dict[str, Measurement]:
        """Return the measurement of each architecture that the data set uses, by its key."""
        table = self.table()
        found = {}
        for key, index in best_attempts(table).items():
            measured = self._read[table.blocks[index].block_id].measurements
            found[key] = next(each for each in measured if each.model_id == key)
        return found

    def threads_used(self) -> float:
        """Return the median number of threads that models used; 0 if the agent does not tell."""
        self._blocks()
        values = [
            each.values().get(THREADS_USED.key)
            for block in self._read.values()
            for each in block.measurements
        ]
        return float(np.median([used for used in values if used] or [0.0]))

    def judgements(
        self, index: int, by_references: Sequence[tuple[Verdict, str]] = ()
    ) -> dict[str, Judgement]:
        """Return the verdicts on the models of a block, by their keys.

        Args:
            index: Index of the block in the table.
            by_references: Evidence of quality control. Empty until all blocks of the round are
                measured.
        """
        table = self.table()
        evidence = [*self._evidence_on(table, index), *by_references]
        return {
            key: judge_number(model.interval, self._spec.precision, evidence)
            for key, model in table.models[index].items()
        }

    def _evidence_on(self, table: BlockTable, index: int) -> list[tuple[Verdict, str]]:
        """Return the evidence on a block from the states of its device."""
        block_id = table.blocks[index].block_id
        if block_id not in self._evidence:
            threads = max(self._spec.threads, self._spec.session.inter_op)
            self._evidence[block_id] = [
                *block_evidence(table.states[index], self._read[block_id].slowdown),
                *threads_evidence(threads, self._store.processors(block_id)),
            ]
        return self._evidence[block_id]

    def figures(self, metric: CampaignMetric = LATENCY) -> Figures:
        """Return the figures of every planned architecture, for one metric."""
        if metric == LATENCY:
            references = self._reference_latencies()
        else:
            best = self._best()
            measured = [key for key in self._reference_keys if key in best]
            values = {key: value_of(metric, best[key]) for key in measured}
            references = {key: value for key, value in values.items() if value is not None}
        return self._figures(self.of(metric), references)

    def _reference_latencies(self) -> dict[str, tuple[float, float]]:
        """Return the latencies of the references, ms, by key; NaN where all failed.

        Their intervals are 0, because many blocks hold them.
        """
        table = self.table()
        own = [block.round >= REFERENCE_ROUND for block in table.blocks]
        if self._raw:
            every_ms = self._of_references(table.blocks, lambda model: model.raw_ns) / 1e6
            divisors = table.quality.levels
        else:
            every_ms = self._of_references(table.blocks, lambda model: model.latency_ns) / 1e6
            divisors = table.divisors
            every_ms *= self._warm_references(table.blocks)
        paced_ms = (every_ms / divisors[:, None])[own]
        medians_ms = median(paced_ms, axis=0).tolist()
        return {key: (ms, 0.0) for key, ms in zip(self._reference_keys, medians_ms, strict=True)}

    def _figures(self, dataset: Dataset, references: Mapping[str, tuple[float, float]]) -> Figures:
        plan = self._store.plan()
        found = {key: (*value, "reference") for key, value in references.items()}
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

    def _warm_references(self, blocks: Sequence[StoredBlock]) -> NDArray[np.float64]:
        """Return the warm ratios of the references, shape ``(blocks, references)``.

        A reference that failed has ratio 1.
        """
        references = self._reference_keys
        warm = [self._paces[block.block_id].warm for block in blocks]
        ratios = [[each.get(key, (1.0, 0.0))[0] for key in references] for each in warm]
        return np.array(ratios, dtype=float).reshape(len(blocks), len(references))

    @property
    def _at_usual(self) -> bool:
        """Whether any block holds the agent's reference models."""
        return any(block.references for block in self._read.values())

    def _made(self, blocks: list[StoredBlock]) -> BlockTable:
        table = self._without_anchors(blocks)
        if self._at_usual:
            return self._by_anchors(table)
        factors = anchored(table)
        return replace(table, quality=replace(table.quality, factors=factors), divisors=factors)

    def _without_anchors(self, blocks: list[StoredBlock]) -> BlockTable:
        rounds = {a.key: number for number, each in self._store.plan().items() for a in each}
        models: list[Estimates] = []
        anchors: list[Estimates] = []
        for block in blocks:
            own = (block.round, REFERENCE_ROUND)
            found = self._estimates(block).items()
            models.append({key: each for key, each in found if rounds[key] in own})
            anchors.append({key: each for key, each in found if rounds[key] not in own})
        measured = {key for found in models for key in found}
        failures = {
            key: f"{failure.kind.value}: {failure.message}"
            for block in self._read.values()
            for key, failure in block.failures.items()
            if key not in measured
        }
        in_blocks_ms = self._of_references(blocks, lambda model: model.block_pace_ns) / 1e6
        if self._at_usual:
            quality = self._quality_at_usual(blocks)
        else:
            devices = self._devices(blocks)
            quality = judge(in_blocks_ms, self._common_pace, devices, _typical(blocks))
        return BlockTable(
            blocks,
            models,
            anchors,
            [self._read[block.block_id].states for block in blocks],
            failures,
            in_blocks_ms,
            quality,
            quality.levels if self._at_usual else quality.factors,
            [self._paces[block.block_id].readings(block.block_id) for block in blocks],
        )

    def _quality_at_usual(self, blocks: Sequence[StoredBlock]) -> Quality:
        usual_ms = self._of_references(blocks, lambda model: model.latency_ns) / 1e6
        slower = median(self._of_references(blocks, lambda model: model.slower), axis=1)
        return judge_at_usual(
            usual_ms,
            self._of_references(blocks, explained),
            np.exp(np.nan_to_num(slower)),
            self._devices(blocks),
            _typical(blocks),
        )

    def _by_anchors(self, table: BlockTable) -> BlockTable:
        """Return the table with the blocks that hold anchors estimated again.

        The latencies of anchors at the usual pace are known from their own blocks.
        """
        best = best_attempts(table)
        models, anchors = list(table.models), list(table.anchors)
        factors = table.quality.factors.copy()
        for index, block in enumerate(table.blocks):
            known: dict[str, tuple[float, float]] = {}
            for key in table.anchors[index].keys() & best.keys():
                estimate = table.models[best[key]][key]
                level = table.divisors[index] / table.divisors[best[key]]
                error = min(estimate.interval, WIDEST) / 1.96
                known[key] = level * estimate.latency_ns, error
            if len(known) >= FEWEST_TOLD:
                there = {key: table.anchors[index][key] for key in known}
                slower = [each.block_pace_ns / known[key][0] for key, each in there.items()]
                factors[index] = np.median(slower)
                found = self._paces[block.block_id].by(block.block_id, known)
                models[index] = {key: found[key] for key in models[index]}
                anchors[index] = {key: found[key] for key in anchors[index]}
        quality = replace(table.quality, factors=factors)
        return replace(table, models=models, anchors=anchors, quality=quality)

    @property
    def _common_pace(self) -> bool:
        return self._spec.run_order is RunOrder.INTERLEAVED

    def _blocks(self, block_ids: Collection[str] | None = None) -> list[StoredBlock]:
        """Read and return these blocks, or those of all devices that measured architectures."""
        blocks = self._store.blocks()
        self._read_new(blocks)
        if block_ids is not None:
            return [block for block in blocks if block.block_id in block_ids]
        counted = {block.device for block in blocks if block.round != REFERENCE_ROUND}
        return [block for block in blocks if block.device in counted]

    def _devices(self, blocks: Sequence[StoredBlock]) -> NDArray[np.int64]:
        """Return the device number of each block; always 0 without a group."""
        if self._store.fact(GROUP_FACT) is None:
            return np.zeros(len(blocks), dtype=np.int64)
        names = sorted({block.device for block in blocks})
        return np.array([names.index(block.device) for block in blocks], dtype=np.int64)

    @property
    def _reference_keys(self) -> list[str]:
        """Keys of the campaign's own reference models, which are planned first."""
        if not self._references:
            self._references = [a.key for a in self._store.references()]
        return self._references

    def _estimates(self, block: StoredBlock) -> Estimates:
        return self._paces[block.block_id].estimates[block.block_id]

    def _of_references(
        self, blocks: Sequence[StoredBlock], figure: Callable[[Estimate], float]
    ) -> NDArray[np.float64]:
        """Return a figure of every reference in each block, shape ``(blocks, references)``.

        A reference that failed has NaN.
        """
        references = self._reference_keys
        found = map(self._estimates, blocks)
        return np.array(
            [
                [figure(each[key]) if key in each else np.nan for key in references]
                for each in found
            ],
            dtype=float,
        ).reshape(len(blocks), len(references))

    def _read_new(self, blocks: Sequence[StoredBlock]) -> None:
        """Read the blocks that are not yet read; values derived from the others are kept."""
        fresh = {block.block_id: block for block in blocks if block.number > self._read_up_to}
        if not fresh:
            return
        for result in self._store.results(after=self._read_up_to):
            if (block := fresh.get(result.block_id)) is not None:
                self._read[block.block_id] = Block(block, result, self._spec)
        self._read_up_to = max(block.number for block in blocks)
        self._table = None
        read = list(self._read.values())
        devices = self._devices([block.stored for block in read])
        for number in np.unique(devices):
            own = [block for block, of in zip(read, devices, strict=True) if of == number]
            if not any(block.stored.block_id in fresh for block in own):
                continue
            typical = [b.stored.block_id for b in own if b.stored.round >= REFERENCE_ROUND]
            paces = DevicePaces(own, self._spec, self._reference_keys, typical)
            self._paces.update((block.stored.block_id, paces) for block in own)


def _typical(blocks: Sequence[StoredBlock]) -> NDArray[np.bool_]:
    """Return whether each block counts for the campaign's scale, shape ``(blocks,)``.

    Blocks of a later search do not count, so that they cannot shift it.
    """
    return np.array([block.round >= REFERENCE_ROUND for block in blocks], dtype=bool)
