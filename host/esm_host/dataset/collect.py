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
from esm_host.dataset.table import best_attempts, block_table
from esm_host.errors import DeviceError, MismatchError
from esm_host.transport.base import Profiler
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    FailureKind,
    MeasureSpec,
    Model,
    Progress,
)


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
        passed: every block that the data set uses passed.
        worst_reference_deviation: largest among those blocks, as a share.
        remeasured_blocks: how many blocks were attempts at a block that had failed.
    """

    passed: bool
    worst_reference_deviation: float
    remeasured_blocks: int


# Outcomes that say something about the model and not about the moment.
_LASTING = (FailureKind.INVALID_MODEL, FailureKind.UNSUPPORTED_OP)


@dataclass(frozen=True)
class _State:
    pending: list[Architecture]
    unmeasured: set[str]


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
        while True:
            state = self._state(round_number, planned)
            for group in _groups(state.pending, self._block_size):
                block_id = self._measure(round_number, group)
                state.unmeasured.difference_update(a.key for a in group)
                self._watcher.on_block(block_id, len(group), len(state.unmeasured))
            # Only now: a block can be judged by nothing but the others.
            failed = self._judge(round_number)
            state = self._state(round_number, planned)
            if not state.pending:
                return self._quality(round_number, planned)
            if failed:
                self._watcher.on_remeasure(math.ceil(len(state.pending) / self._block_size))

    def check_device(self, device: DeviceInfo) -> None:
        """Raises MismatchError unless it is the device whose measurements the store holds."""
        identity = device.identity()
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

    # What the store says

    def _state(self, round_number: int, planned: Sequence[Architecture]) -> _State:
        """What is left to measure of a round."""
        blocks = {block.block_id: block for block in self._store.blocks()}
        attempts: Counter[str] = Counter()
        done: set[str] = set()
        for attempt in self._store.attempts(round_number):
            attempts[attempt.architecture_key] += 1
            passed = blocks[attempt.block_id].passed
            # Not judged yet: that comes first. Invalid: it would be so every time.
            if passed is None or (
                attempt.failure_kind in _LASTING if attempt.failure_kind else passed
            ):
                done.add(attempt.architecture_key)
        return _State(
            pending=[
                a
                for a in planned
                if a.key not in done and attempts[a.key] <= self._max_remeasurements
            ],
            unmeasured={a.key for a in planned if not attempts[a.key]},
        )

    def _judge(self, round_number: int) -> int:
        """Judges the round's blocks that have no judgement yet; returns how many failed."""
        table = block_table(self._store, self._spec)
        failed = 0
        for block, worst in zip(table.blocks, table.quality.worst.tolist(), strict=True):
            if block.round == round_number and block.passed is None:
                passed = worst <= self._tolerance
                # A reference that failed strays infinitely, which JSON has no word for.
                self._store.add_judgement(block.block_id, passed, min(worst, 10.0))
                failed += not passed
        return failed

    def _quality(self, round_number: int, planned: Sequence[Architecture]) -> RoundQuality:
        table = block_table(self._store, self._spec)
        best = best_attempts(table)
        used = {best[a.key] for a in planned if a.key in best}
        blocks = [table.blocks[index] for index in used]
        measured = sum(block.round == round_number for block in table.blocks)
        return RoundQuality(
            passed=all(block.passed for block in blocks),
            worst_reference_deviation=max((b.worst_deviation or 0.0 for b in blocks), default=0.0),
            remeasured_blocks=max(0, measured - math.ceil(len(planned) / self._block_size)),
        )

    # Measuring

    def _measure(self, round_number: int, group: Sequence[Architecture]) -> str:
        """Measures and stores one block; returns its id."""
        start = time.monotonic()
        models = [Model(a.key, self._space.build(a)) for a in _spread(group, self._references)]
        block = Block(uuid.uuid4().hex, self._spec, tuple(models))
        sent_before = self._profiler.bytes_sent
        result = self._profiler.measure(block, self._watcher.on_progress)
        # Asked afterwards: the device may have gone and another come while the block waited.
        device = self._profiler.device_info()
        self.check_device(device)
        self._check_failures(result)
        sent = self._profiler.bytes_sent - sent_before
        self._store.add_block(round_number, block, result, device, sent, time.monotonic() - start)
        return block.block_id

    def _check_failures(self, result: BlockResult) -> None:
        """Raises DeviceError where going on would be in vain."""
        failures = {m.model_id: m.failure for m in result.measurements if m.failure is not None}
        if len(failures) == len(result.measurements):
            first = next(iter(failures.values()))
            raise DeviceError(
                f"the device measured none of {len(failures)} models; the first failed with "
                f"{first.kind.value}: {first.message}"
            )
        for reference in self._references:
            failure = failures.get(reference.key)
            if failure is not None and failure.kind in _LASTING:
                raise DeviceError(
                    f"a reference model cannot be measured ({failure.kind.value}: "
                    f"{failure.message}): draw others with another --seed and --run"
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
