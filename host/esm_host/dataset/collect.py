"""Dataset generation (ESM, II-C): the plan is measured block by block until every block passes."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol as Role

import numpy as np

from esm_host.dataset.store import Store
from esm_host.dataset.table import block_table
from esm_host.errors import DeviceError, MismatchError
from esm_host.transport.base import Profiler
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.messages import Block, MeasureSpec, Model, Progress


class Watcher(Role):
    """Is told how collecting goes on."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        """A block is in the store; ``pending`` models of the round are not measured yet."""

    def on_remeasure(self, blocks: int) -> None:
        """That many blocks failed quality control and are measured again."""


@dataclass(frozen=True)
class RoundQuality:
    """Quality control of one round's blocks.

    Attributes:
        passed: every architecture of the round has a block that passed.
        worst_reference_deviation: largest among the blocks that the data set uses, as a share.
        remeasured_blocks: how many blocks were attempts at a block that had failed.
    """

    passed: bool
    worst_reference_deviation: float
    remeasured_blocks: int


class Collector:
    """Measures planned architectures on one device and stores what comes back.

    Args:
        references: models that every block holds.
        block_size: architectures per block, references not counted.
        tolerance: largest share by which a reference may stray before its block fails.
        max_remeasurements: how many times a failed block is measured again before its
            architectures are kept as they are, marked.
    """

    def __init__(
        self,
        store: Store,
        profiler: Profiler,
        space: SearchSpace,
        spec: MeasureSpec,
        references: Sequence[Architecture],
        block_size: int,
        tolerance: float,
        max_remeasurements: int,
        watcher: Watcher,
    ) -> None:
        self._store = store
        self._profiler = profiler
        self._space = space
        self._spec = spec
        self._references = list(references)
        self._block_size = block_size
        self._tolerance = tolerance
        self._max_remeasurements = max_remeasurements
        self._watcher = watcher

    def collect(self, round_number: int) -> RoundQuality:
        """Measures what is missing of a planned round; nothing that is there already.

        Raises:
            DeviceError: the device refuses, is gone, or fails every model of a block.
            MismatchError: another device answers than the one the store is of.
        """
        planned = self._store.plan()[round_number]
        self._judge(round_number)
        pending = self._pending(planned)
        while pending:
            for group in _groups(pending, self._block_size):
                self._measure(round_number, group)
                self._watcher.on_block(self._last_id, len(group), self._unmeasured(planned))
            failed = self._judge(round_number)
            pending = self._pending(planned)
            if failed and pending:
                self._watcher.on_remeasure(math.ceil(len(pending) / self._block_size))
        return self._quality(round_number, planned)

    # What the store says

    def _attempts(self, planned: Sequence[Architecture]) -> tuple[Counter[str], set[str]]:
        """How often each architecture was measured, and which need no further attempt."""
        blocks = {block.block_id: block for block in self._store.blocks()}
        attempts: Counter[str] = Counter()
        settled: set[str] = set()
        for stored in self._store.measurements(a.key for a in planned):
            key = stored.measurement.model_id
            attempts[key] += 1
            # A model that cannot be measured is not tried again: it would fail the same way.
            if blocks[stored.block_id].passed or stored.measurement.failure is not None:
                settled.add(key)
        return attempts, settled

    def _pending(self, planned: Sequence[Architecture]) -> list[Architecture]:
        attempts, settled = self._attempts(planned)
        return [
            a
            for a in planned
            if a.key not in settled and attempts[a.key] <= self._max_remeasurements
        ]

    def _unmeasured(self, planned: Sequence[Architecture]) -> int:
        attempts, _ = self._attempts(planned)
        return sum(attempts[a.key] == 0 for a in planned)

    def _judge(self, round_number: int) -> int:
        """Judges the round's blocks that have no judgement yet; returns how many failed."""
        table = block_table(self._store, self._spec)
        failed = 0
        for block, worst in zip(table.blocks, table.quality.worst.tolist(), strict=True):
            if block.round == round_number and block.passed is None:
                passed = worst <= self._tolerance
                # Infinity, where a reference failed, has no place in a database column.
                self._store.add_judgement(block.block_id, passed, min(worst, 1e9))
                failed += not passed
        return failed

    def _quality(self, round_number: int, planned: Sequence[Architecture]) -> RoundQuality:
        blocks = [b for b in self._store.blocks() if b.round == round_number]
        _, settled = self._attempts(planned)
        needed = math.ceil(len(planned) / self._block_size)
        good = [b.worst_deviation or 0.0 for b in blocks if b.passed]
        complete = all(a.key in settled for a in planned)
        used = good if complete else [b.worst_deviation or 0.0 for b in blocks]
        return RoundQuality(complete, max(used, default=0.0), max(0, len(blocks) - needed))

    # Measuring

    def _measure(self, round_number: int, group: Sequence[Architecture]) -> None:
        start = time.monotonic()
        models = [Model(a.key, self._space.build(a)) for a in _spread(group, self._references)]
        block = Block(uuid.uuid4().hex, self._spec, tuple(models))
        device = self._profiler.device_info()
        self._check_device(device.identity())
        sent_before = self._profiler.bytes_sent
        result = self._profiler.measure(block, self._watcher.on_progress)
        failures = [m.failure for m in result.measurements if m.failure is not None]
        if len(failures) == len(models):
            raise DeviceError(
                f"the device measured none of {len(models)} models; the first failed with "
                f"{failures[0].kind.value}: {failures[0].message}"
            )
        sent = self._profiler.bytes_sent - sent_before
        self._store.add_block(round_number, block, result, device, sent, time.monotonic() - start)
        self._last_id = block.block_id

    def _check_device(self, identity: dict[str, str | int]) -> None:
        known = self._store.fact("device_identity")
        if known is None:
            self._store.add_fact("device_identity", identity)
        elif known != identity:
            differs = [
                f"{name} {known.get(name)} -> {value}"
                for name, value in identity.items()
                if known.get(name) != value
            ]
            raise MismatchError(
                f"{self._store.path.parent} holds measurements of another device "
                f"({'; '.join(differs)}): measure this one in another --run folder"
            )


def _groups(pending: Sequence[Architecture], size: int) -> Iterator[Sequence[Architecture]]:
    for start in range(0, len(pending), size):
        yield pending[start : start + size]


def _spread(
    group: Sequence[Architecture], references: Sequence[Architecture]
) -> list[Architecture]:
    """The references spread evenly among the group, as runs in a row need."""
    mixed = list(group)
    places = np.linspace(0, len(group), len(references) + 2)[1:-1].round().astype(int)
    for shift, (place, reference) in enumerate(zip(places.tolist(), references, strict=True)):
        mixed.insert(place + shift, reference)
    return mixed
