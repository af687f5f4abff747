"""Latencies of stored blocks at the device's usual pace, by the reference models in them.

The agent's reference models tell how far each block is from what is usual for the device. They say
little of a single model. The campaign's own reference models are networks like the others, and
every block holds them: what they take at the usual pace is known from all blocks together, and
then they tell the paces of each block as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np

from esm_host.dataset.store import StoredBlock
from esm_host.evaluation.warm import warm_ratios, warming
from esm_protos.estimates import BlockRuns, Estimate, Known, estimate_references
from esm_protos.messages import BlockResult, Measurement, MeasureSpec, Usual
from esm_protos.paces import usual_of

Estimates = Mapping[str, Estimate]
"""Estimates by architecture key."""

FEWEST_BLOCKS = 3
"""Blocks from which the usual latency of a campaign's reference model is known: fewer say nothing
that the agent's reference models do not."""
FEWEST_TOLD = 3
"""Known models of a block that are believed: one alone may stray."""
_FEW_MOMENTS = 12
"""With fewer, the campaign's own blocks tell better what is usual, if there are more of them."""
_STRAY = 0.03
_MOST_EXPLAINED = 0.1
"""So much of a deviation an interval explains at most: where little is remembered of the device it
is wide, but what is not known of the usual pace is the same in all blocks."""


class Block:
    """A stored block with what was measured in it, its runs taken apart once.

    Attributes:
        measurements: of its models, without those that failed.
        failures: of the others, by architecture key.
        states: of the device before, during and after the block.
        slowdown: from its first third to its last, as a share.
        usual: what the agent remembered of its reference models before the block.
        references: weights of the agent's reference models in bytes by their names, smallest
            first, without those that failed.
        reference_ns: their latencies at the block's pace, by their names.
    """

    def __init__(self, stored: StoredBlock, result: BlockResult, spec: MeasureSpec) -> None:
        self.stored = stored
        self.measurements = [each for each in result.measurements if each.failure is None]
        self.failures = {
            each.model_id: each.failure for each in result.measurements if each.failure is not None
        }
        self.states = result.states
        self.usual = result.usual
        self._runs = BlockRuns.of(self.measurements, spec, result.references)
        self.slowdown = self._runs.slowdown
        told = [each for each in result.references if each.failure is None]
        in_order = sorted(told, key=lambda each: each.weight_bytes)
        self.references = {each.model_id: each.weight_bytes for each in in_order}
        found = estimate_references(told, spec)
        self.reference_ns = {name: estimate.latency_ns for name, estimate in found.items()}

    def estimates(self, usual: Usual | None = None, known: Known | None = None) -> Estimates:
        """Return the estimates of the models by their keys.

        Args:
            usual: what is usual for the agent's reference models.
            known: usual latencies of models of the block, where other blocks have told them.
        """
        found = self._runs.estimate(usual, known).models
        return {
            measurement.model_id: estimate
            for measurement, estimate in zip(self.measurements, found, strict=True)
        }


@dataclass(frozen=True)
class AgentReading:
    """One of the agent's reference models in a block.

    Attributes:
        usual_ms: NaN where nothing is known of it.
    """

    name: str
    weight_bytes: int
    latency_ms: float
    usual_ms: float


def explained(estimate: Estimate) -> float:
    """Return the deviation of a latency that its interval explains, as a share."""
    return min(estimate.interval, _MOST_EXPLAINED) if math.isfinite(estimate.interval) else 0.0


class DevicePaces:
    """One device's blocks at its usual pace; at their own, without the agent's reference models.

    Args:
        blocks: of the device, in the order of time.
        references: keys of the campaign's own reference models.
        typical: ids of the blocks that tell the usual latencies of these; all do if none does.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        spec: MeasureSpec,
        references: Collection[str],
        typical: Collection[str],
    ) -> None:
        self._blocks = {block.stored.block_id: block for block in blocks}
        self._spec = spec
        remembered = [block.usual for block in blocks if block.usual is not None]
        # The newest one, unless the agent has lost its memory since.
        self.usual = max(reversed(remembered), key=lambda usual: usual.moments, default=None)
        moments = 0 if self.usual is None else self.usual.moments
        if moments < min(len(blocks), _FEW_MOMENTS):
            self.usual = _own_usual(blocks) or self.usual
        alone = {id: block.estimates(self.usual) for id, block in self._blocks.items()}
        self._known = self._usual_latencies(alone, references, typical)
        self.estimates = {id: self.by(id, {}, alone[id]) for id in self._blocks}
        """By block ids; models by their keys."""

    @cached_property
    def warm(self) -> dict[str, tuple[float, float]]:
        """How many times as long models take when they are warm, and the standard errors, by their
        keys; 1 and 0 where latencies are as measured, without long visits."""
        taken: dict[str, list[Measurement]] = {}
        for block in self._blocks.values():
            for measurement in block.measurements:
                taken.setdefault(measurement.model_id, []).append(measurement)
        if not self._spec.long_visits:
            return dict.fromkeys(taken, (1.0, 0.0))
        ratios, errors = warm_ratios([warming(each, self._spec.trim) for each in taken.values()])
        return dict(zip(taken, zip(ratios.tolist(), errors.tolist(), strict=True), strict=True))

    def by(self, block_id: str, anchors: Known, alone: Estimates | None = None) -> Estimates:
        """Return a block's estimates by all that is known of models in it.

        Args:
            anchors: models that are known beside the campaign's reference models.
            alone: the estimates by the agent's reference models.
        """
        block = self._blocks[block_id]
        found = alone or block.estimates(self.usual)
        told = _agreeing(found, {**self._known, **anchors})
        if told and block.references:
            found = block.estimates(self.usual, told)
        elif told:  # the agent's reference models failed
            factor = float(np.median([found[key].latency_ns / told[key][0] for key in told]))
            found = _divided(found, found, factor)
        left = _left(found, anchors)
        own = found.keys() - self._known.keys()
        return found if not left else {**found, **_divided(found, own, math.exp(left))}

    def readings(self, block_id: str) -> list[AgentReading]:
        """Return the agent's reference models in a block, smallest weights first."""
        block, usual_ms = self._blocks[block_id], {}
        if self.usual is not None:
            usual_ms = dict(
                zip(self.usual.references, (self.usual.latency_ns / 1e6).tolist(), strict=True)
            )
        return [
            AgentReading(
                name, weight_bytes, block.reference_ns[name] / 1e6, usual_ms.get(name, math.nan)
            )
            for name, weight_bytes in block.references.items()
        ]

    def _usual_latencies(
        self,
        alone: Mapping[str, Estimates],
        references: Collection[str],
        typical: Collection[str],
    ) -> dict[str, tuple[float, float]]:
        """What the campaign's reference models take at the usual pace: medians over the blocks."""
        with_company = [id for id, block in self._blocks.items() if block.references]
        counted = [id for id in with_company if id in typical] or with_company
        known = {}
        for key in references:
            values = [alone[id][key].latency_ns for id in counted if key in alone[id]]
            if len(values) >= FEWEST_BLOCKS:
                logs = np.log(values)
                # The variance of a median is pi/2 times that of a mean.
                error = math.sqrt(math.pi / 2 * float(logs.var(ddof=1)) / len(logs))
                known[key] = float(np.exp(np.median(logs))), error
        return known


def _agreeing(found: Estimates, known: Known) -> dict[str, tuple[float, float]]:
    """Known models of a block, without those that stray from the others; none if too few are left
    to tell which of them stray."""
    off = {key: math.log(found[key].latency_ns / known[key][0]) for key in known if key in found}
    if len(off) < FEWEST_TOLD:
        return {}
    middle = float(np.median(list(off.values())))
    return {
        key: known[key]
        for key, value in off.items()
        if abs(value - middle) <= max(_STRAY, explained(found[key]))
    }


def _left(found: Estimates, anchors: Known) -> float:
    """What anchors are still off together, a logarithm: a device may slow networks of one kind
    down and no reference model. 0 where it is little or they are too few."""
    off = [math.log(found[key].latency_ns / anchors[key][0]) for key in anchors if key in found]
    left = float(np.median(off)) if len(off) >= FEWEST_TOLD else 0.0
    return left if abs(left) > _STRAY else 0.0


def _divided(found: Estimates, keys: Iterable[str], factor: float) -> Estimates:
    return {key: replace(found[key], latency_ns=found[key].latency_ns / factor) for key in keys}


def _own_usual(blocks: Sequence[Block]) -> Usual | None:
    """What is usual, by the campaign's own blocks, each a moment; None where they have no such
    models."""
    names = sorted({name for block in blocks for name in block.reference_ns})
    rows = [[block.reference_ns.get(name, math.nan) for name in names] for block in blocks]
    at_s = [datetime.fromisoformat(block.stored.measured_at).timestamp() for block in blocks]
    return usual_of(names, np.array(at_s), np.array(rows).reshape(len(rows), len(names)))
