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
from esm_host.dataset.table import Measurements, best_attempts
from esm_host.errors import DeviceError, MismatchError
from esm_host.evaluation.verdict import block_evidence, judge_number, reference_evidence
from esm_host.transport.base import Pending, Profiler
from esm_models.architecture import Architecture
from esm_models.cost import memory_bytes
from esm_models.space import SearchSpace
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    FailureKind,
    MeasureSpec,
    Model,
    Progress,
    State,
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


Built = tuple[Architecture, bytes]
"""An architecture and its graph."""


@dataclass(frozen=True)
class _Group:
    """Architectures of one block, and its models, references included."""

    architectures: list[Architecture]
    models: list[Model]

    @classmethod
    def of(cls, group: Sequence[Built], references: Sequence[Built]) -> _Group:
        models = [Model(a.key, data) for a, data in _spread(group, references)]
        return cls([a for a, _ in group], models)


@dataclass(frozen=True)
class _Sent:
    group: list[Architecture]
    block: Block
    pending: Pending


class Collector:
    """Measures planned architectures on one device and stores what comes back.

    Args:
        measurements: reads the same store.
        references: models that every block holds.
        block_size: architectures per block, references not counted.
        tolerance: largest share by which a reference may stray before its block fails.
        max_remeasurements: how many times a failed block is measured again before its
            architectures are kept as they are, marked.
    """

    def __init__(
        self,
        store: Store,
        measurements: Measurements,
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
        self._measurements = measurements
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
            self._measure(round_number, self._state(round_number, planned))
            # Only now: a block can be judged by nothing but the others.
            failed = self._judge(round_number)
            state = self._state(round_number, planned)
            if not state.pending:
                return self._quality(round_number, planned)
            if failed:
                self._watcher.on_remeasure(math.ceil(len(state.pending) / self._block_size))

    def check_device(self, device: DeviceInfo) -> None:
        """Raises MismatchError unless it is the device whose measurements the store holds."""
        identity = device.identity(self._spec.provider)
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
        table = self._measurements.table()
        failed = 0
        for index, (block, worst) in enumerate(
            zip(table.blocks, table.quality.worst.tolist(), strict=True)
        ):
            if block.round != round_number or block.passed is not None:
                continue
            passed = worst <= self._tolerance
            evidence = [
                *block_evidence(self._store.states(block.block_id), table.slowdown[index]),
                *reference_evidence(worst, self._tolerance),
            ]
            verdicts = {
                key: judge_number(model.interval, self._spec.precision, evidence)
                for key, model in table.models[index].items()
            }
            # A reference that failed strays infinitely, which JSON has no word for.
            self._store.add_judgement(block.block_id, passed, min(worst, 10.0), verdicts)
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

    def _measure(self, round_number: int, state: _State) -> None:
        """Measures and stores what is pending, block by block.

        The next block is built and sent while one is measured, so that the device never waits
        for the host: it is on the device, whole, before the last run of the one before it.
        """
        if not state.pending:
            return
        groups = self._groups(state.pending)
        began = time.monotonic()
        current: _Sent | None = self._send(next(groups))
        following: _Sent | None = None

        def on_progress(progress: Progress) -> None:
            nonlocal following
            self._watcher.on_progress(progress)
            # Not before the device has taken this one: blocks are to come in their order.
            if following is None and progress.state is not State.QUEUED:
                following = self._send(next(groups))

        try:
            while current is not None:
                result = current.pending.result(on_progress)
                self._keep(round_number, current, result, time.monotonic() - began)
                began = time.monotonic()
                state.unmeasured.difference_update(a.key for a in current.group)
                self._watcher.on_block(
                    current.block.block_id, len(current.group), len(state.unmeasured)
                )
                current = following or self._send(next(groups))
                following = None
        finally:
            for sent in (current, following):
                if sent is not None:
                    sent.pending.cancel()

    def _send(self, group: _Group | None) -> _Sent | None:
        if group is None:
            return None
        block = Block(uuid.uuid4().hex, self._spec, tuple(group.models))
        return _Sent(group.architectures, block, self._profiler.submit(block))

    def _keep(
        self, round_number: int, sent: _Sent, result: BlockResult, wall_seconds: float
    ) -> None:
        # Asked afterwards: the device may have gone and another come while the block waited.
        device = self._profiler.device_info()
        self.check_device(device)
        self._check_failures(result)
        self._store.add_block(
            round_number, sent.block, result, device, sent.pending.bytes_sent, wall_seconds
        )

    def _groups(self, pending: Sequence[Architecture]) -> Iterator[_Group | None]:
        """Models of one block after the other, as many as ``block_size`` and memory allow; in
        the end None, as often as it is asked."""
        device = self._profiler.device_info()
        allowed = device.limits.max_memory_bytes
        free = device.state.memory_available_bytes
        available = allowed if free is None else min(free, allowed)
        # Half: the device may have other plans, and the estimate is rough.
        room = available / 2
        references = [(a, self._space.build(a)) for a in self._references]
        fixed = sum(memory_bytes(data) for _, data in references)
        group: list[Built] = []
        needed: float = fixed
        for architecture in pending:
            data = self._space.build(architecture)
            memory = memory_bytes(data)
            if fixed + memory > room:
                raise DeviceError(
                    f"the device has {available / 1e6:.0f} MB for models, too little for a model "
                    f"of about {memory / 1e6:.0f} MB beside the references' {fixed / 1e6:.0f} MB: "
                    "end other programs there, raise its --memory-limit, or choose a smaller space"
                )
            if group and (len(group) == self._block_size or needed + memory > room):
                yield _Group.of(group, references)
                group, needed = [], fixed
            group.append((architecture, data))
            needed += memory
        yield _Group.of(group, references)
        while True:
            yield None

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


def _spread(group: Sequence[Built], references: Sequence[Built]) -> list[Built]:
    """The references spread evenly among the group, as runs in a row need."""
    mixed = list(group)
    places = np.linspace(0, len(group), len(references) + 2)[1:-1].round().astype(int)
    for shift, (place, reference) in enumerate(zip(places.tolist(), references, strict=True)):
        mixed.insert(place + shift, reference)
    return mixed
