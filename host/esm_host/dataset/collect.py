"""Dataset generation (ESM, II-C): the plan is measured in blocks until every block passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from esm_host.arguments import argument, of_agent
from esm_host.dataset.group import Group, GroupWatcher
from esm_host.dataset.lanes import Batch, Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import Store
from esm_host.dataset.table import best_attempts
from esm_host.errors import DeviceError, EsmError
from esm_host.evaluation.verdict import reference_evidence
from esm_models.architecture import Architecture
from esm_models.cost import memory_bytes
from esm_models.space import SearchSpace
from esm_protos.messages import BlockResult, DeviceInfo, FailureKind, Model


class Watcher(GroupWatcher, Protocol):
    """Receiver of the events of a collection."""

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        """Report a stored block.

        Args:
            block_id: Id of the block.
            models: Number of models in the block.
            pending: Number of models of the round that are not yet measured.
        """

    def on_remeasure(self, blocks: int) -> None:
        """Report the number of blocks that failed quality control and are measured again."""


@dataclass(frozen=True)
class RoundQuality:
    """Quality control of one round's blocks.

    Attributes:
        passed: Whether every block that the data set uses passed.
        worst_reference_deviation: Largest reference deviation in those blocks, as a share.
        remeasured_blocks: Number of blocks that were measured again.
    """

    passed: bool
    worst_reference_deviation: float
    remeasured_blocks: int


MOST_DEVIATION = 10.0
"""Largest reference deviation that is stored, as a share.

A failed reference deviates infinitely, which JSON cannot express.
"""
# Failures of the model itself: measuring it again does not help.
_LASTING = (FailureKind.INVALID_MODEL, FailureKind.INVALID_INPUT, FailureKind.UNSUPPORTED_OP)


@dataclass(frozen=True)
class _State:
    pending: list[Architecture]
    unmeasured: set[str]


Built = tuple[Architecture, bytes]
"""Architecture and its ONNX graph."""
Anchors = Callable[[Sequence[Architecture]], Sequence[Architecture]]


class Collector:
    """Measurement of planned architectures on one device, or on a group of equal devices.

    Args:
        store: Store that receives the blocks.
        measurements: Measurements of the same store.
        members: Devices that measure.
        space: Search space of the architectures.
        references: Reference models that every block holds.
        settings: Settings of measuring.
        watcher: Receiver of events.
    """

    def __init__(
        self,
        store: Store,
        measurements: Measurements,
        members: Sequence[Member],
        space: SearchSpace,
        references: Sequence[Architecture],
        settings: MeasuringSettings,
        watcher: Watcher,
    ) -> None:
        self._store = store
        self._measurements = measurements
        self._space = space
        self._references = list(references)
        self._block_size = settings.block_size
        self._tolerance = settings.reference_tolerance_percent / 100
        self._max_remeasurements = settings.max_remeasurements
        self._watcher = watcher
        self._group = Group(
            store,
            measurements,
            members,
            settings,
            lambda: _batch([], self._built_references()),
            self._check_failures,
            watcher,
        )

    def collect(self, round_number: int, anchors: Anchors | None = None) -> RoundQuality:
        """Measure the architectures of a planned round that are not yet measured.

        Args:
            round_number: Number of the round.
            anchors: Function that selects anchors for a set of architectures. Anchors are
                architectures of earlier rounds that every block holds beside the references
                (:func:`~esm_host.dataset.table.anchored`).

        Raises:
            DeviceError: the last device refuses, is unreachable, or fails every model of a block.
            MismatchError: the device is not the one of the store, or the devices of a group
                differ.
        """
        planned = self._store.plan()[round_number]
        while True:
            self._measure(round_number, self._state(round_number, planned), anchors)
            # Blocks are judged against each other, so all of them must be there.
            failed = self._judge(round_number)
            state = self._state(round_number, planned)
            if not state.pending:
                return self._quality(round_number, planned)
            if failed:
                self._watcher.on_remeasure(math.ceil(len(state.pending) / self._block_size))

    def admit(
        self, devices: Mapping[str, DeviceInfo], missing: Mapping[str, EsmError] | None = None
    ) -> None:
        """Admit the devices that answered and record those that did not.

        Args:
            devices: Devices that answered, by name.
            missing: Errors of the devices that did not, by name.

        Raises:
            MismatchError: the store holds measurements of other devices.
        """
        self._group.admit(devices, missing or {})

    # State of the store

    def _state(self, round_number: int, planned: Sequence[Architecture]) -> _State:
        """Return the architectures of a round that are still to be measured."""
        blocks = {block.block_id: block for block in self._store.blocks()}
        attempts: Counter[str] = Counter()
        done: set[str] = set()
        for attempt in self._store.attempts(round_number):
            attempts[attempt.architecture_key] += 1
            passed = blocks[attempt.block_id].passed
            # An unjudged block is judged first. An invalid model stays invalid.
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
        """Judge the round's unjudged blocks and return the number that failed."""
        table = self._measurements.table()
        failed = 0
        straying = table.quality.straying(self._tolerance).tolist()
        for index, (block, worst) in enumerate(
            zip(table.blocks, table.quality.worst.tolist(), strict=True)
        ):
            if block.round != round_number or block.passed is not None:
                continue
            passed = not straying[index]
            evidence = reference_evidence(straying[index], self._tolerance)
            verdicts = self._measurements.judgements(index, evidence)
            self._store.add_judgement(block.block_id, passed, min(worst, MOST_DEVIATION), verdicts)
            failed += not passed
        return failed

    def _quality(self, round_number: int, planned: Sequence[Architecture]) -> RoundQuality:
        table = self._measurements.table()
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

    def _measure(self, round_number: int, state: _State, anchors: Anchors | None) -> None:
        """Measure and store the pending architectures, block by block."""
        if not state.pending:
            return
        along = [] if anchors is None else list(anchors(state.pending))
        along = along[: self._block_size // 2]
        batches = self._batches(state.pending, along, self._group.muster())
        with closing(self._group.measure(round_number, batches)) as finished:
            for each in finished:
                architectures = each.batch.architectures
                state.unmeasured.difference_update(a.key for a in architectures)
                self._watcher.on_block(
                    each.block.block_id, len(architectures), len(state.unmeasured)
                )

    def _batches(
        self,
        pending: Sequence[Architecture],
        anchors: Sequence[Architecture],
        devices: Sequence[DeviceInfo],
    ) -> Iterator[Batch]:
        """Yield the batches of pending models.

        A batch holds at most ``block_size`` models, anchors included, and fits the memory of
        every device.
        """
        available = min(map(_available_bytes, devices))
        # Half, because the estimate is rough and other programs may need memory.
        room = available / 2
        references = [*self._built_references(), *self._built(anchors)]
        size = self._block_size - len(anchors)
        fixed = sum(memory_bytes(data) for _, data in references)
        group: list[Built] = []
        needed: float = fixed
        for architecture in pending:
            data = self._space.build(architecture)
            memory = memory_bytes(data)
            if fixed + memory > room:
                raise DeviceError(
                    f"the device has {available / 1e6:.0f} MB for models, too little for a model "
                    f"of about {memory / 1e6:.0f} MB and {fixed / 1e6:.0f} MB of references: "
                    "end other programs there, start its agent with a larger --memory-limit, or "
                    "choose a smaller space"
                )
            if group and (len(group) == size or needed + memory > room):
                yield _batch(group, references)
                group, needed = [], fixed
            group.append((architecture, data))
            needed += memory
        yield _batch(group, references)

    def _built_references(self) -> list[Built]:
        return self._built(self._references)

    def _built(self, architectures: Sequence[Architecture]) -> list[Built]:
        return [(a, self._space.build(a)) for a in architectures]

    def _check_failures(self, result: BlockResult) -> None:
        """Check that a block's failures allow the campaign to continue.

        Raises:
            DeviceError: every model failed, or a reference model cannot be measured at all.
        """
        failures = {m.model_id: m.failure for m in result.measurements if m.failure is not None}
        if len(failures) == len(result.measurements):
            first = next(iter(failures.values()))
            raise DeviceError(
                f"the device measured none of {len(failures)} models; the first failed with "
                f"{first.kind.value}: {of_agent(first.message)}"
            )
        for reference in self._references:
            failure = failures.get(reference.key)
            if failure is not None and failure.kind in _LASTING:
                raise DeviceError(
                    f"a reference model cannot be measured ({failure.kind.value}: "
                    f"{of_agent(failure.message)}): give another {argument('seed')} and "
                    f"{argument('run')} to draw others"
                )


def _available_bytes(device: DeviceInfo) -> int:
    allowed = device.limits.max_memory_bytes
    free = device.state.memory_available_bytes
    return allowed if free is None else min(free, allowed)


def _batch(group: Sequence[Built], references: Sequence[Built]) -> Batch:
    models = [Model(a.key, data) for a, data in _spread(group, references)]
    return Batch([a for a, _ in group], models)


def _spread(group: Sequence[Built], references: Sequence[Built]) -> list[Built]:
    """Spread the references evenly among the group, as runs in a row need."""
    mixed = list(group)
    places = np.linspace(0, len(group), len(references) + 2)[1:-1].round().astype(int)
    for shift, (place, reference) in enumerate(zip(places.tolist(), references, strict=True)):
        mixed.insert(place + shift, reference)
    return mixed
