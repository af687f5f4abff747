"""From stored blocks to a data set: one latency per architecture, drift removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.store import REFERENCE_ROUND, Store, StoredBlock
from esm_host.evaluation.quality import Quality, judge
from esm_models.architecture import Architecture
from esm_protos.messages import MeasureSpec, Protocol


@dataclass(frozen=True, eq=False)
class Dataset:
    """Architectures with their latencies, in the order of the plan.

    Attributes:
        latency_ms: trimmed mean divided by its block's factor, ``(n,)``.
        passed: whether the block passed quality control, ``(n,)``.
    """

    architectures: list[Architecture]
    latency_ms: NDArray[np.float64]
    passed: NDArray[np.bool_]

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each architecture, ``(n,)``."""
        return np.array([a.depth for a in self.architectures], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.architectures)


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Every block's models and how its references fared.

    Attributes:
        latency_ms: per block, trimmed mean by architecture key; models that failed are absent.
        failures: architecture key -> message, of models that were never measured.
        references_ms: ``(blocks, references)``, NaN where a reference failed.
    """

    blocks: list[StoredBlock]
    latency_ms: list[dict[str, float]]
    failures: dict[str, str]
    references_ms: NDArray[np.float64]
    quality: Quality


def block_table(store: Store, spec: MeasureSpec) -> BlockTable:
    """Reads all blocks, derives trimmed means, and judges the blocks by their references."""
    references = [a.key for a in store.plan().get(REFERENCE_ROUND, [])]
    blocks = store.blocks()
    number = {block.block_id: index for index, block in enumerate(blocks)}
    latency_ms: list[dict[str, float]] = [{} for _ in blocks]
    failures = {}
    for stored in store.measurements():
        measurement = stored.measurement
        if measurement.failure is None:
            value = measurement.trimmed_mean_ms(spec.trim)
            latency_ms[number[stored.block_id]][measurement.model_id] = value
        else:
            text = f"{measurement.failure.kind.value}: {measurement.failure.message}"
            failures[measurement.model_id] = text
    references_ms = np.array(
        [[values.get(key, np.nan) for key in references] for values in latency_ms], dtype=float
    ).reshape(len(blocks), len(references))
    quality = judge(references_ms, common_pace=spec.protocol is Protocol.INTERLEAVED)
    measured = {key for values in latency_ms for key in values}
    failures = {key: text for key, text in failures.items() if key not in measured}
    return BlockTable(blocks, latency_ms, failures, references_ms, quality)


def best_attempts(table: BlockTable) -> dict[str, int]:
    """Per architecture key, the index of the block to believe: passed before failed, then the
    one whose references strayed least. Blocks that are not judged yet do not count."""
    best: dict[str, int] = {}
    for index, block in enumerate(table.blocks):
        if block.passed is None:
            continue  # broken off before it was judged: it will be, on resuming
        for key in table.latency_ms[index]:
            if key not in best or _rank(block) > _rank(table.blocks[best[key]]):
                best[key] = index
    return best


def _rank(block: StoredBlock) -> tuple[bool, float]:
    return bool(block.passed), -(block.worst_deviation or 0.0)


def load_dataset(store: Store, spec: MeasureSpec) -> Dataset:
    """Every planned architecture that could be measured, with its best attempt's latency."""
    table = block_table(store, spec)
    best = best_attempts(table)
    architectures = [
        architecture
        for round_number, planned in store.plan().items()
        if round_number != REFERENCE_ROUND
        for architecture in planned
        if architecture.key in best
    ]
    used = [best[a.key] for a in architectures]
    factors = table.quality.factors
    return Dataset(
        architectures,
        np.array(
            [
                table.latency_ms[index][a.key] / factors[index]
                for a, index in zip(architectures, used, strict=True)
            ]
        ),
        np.array([bool(table.blocks[index].passed) for index in used], dtype=bool),
    )
