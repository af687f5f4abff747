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

import numpy as np

from esm_host.dataset.store import Company, StoredBlock
from esm_protos.estimates import BlockEstimate, Estimate, estimate_measured, estimate_references
from esm_protos.messages import Measurement, MeasureSpec, Usual
from esm_protos.paces import usual_of

Known = Mapping[str, tuple[float, float]]
"""Usual latencies, nanoseconds, and their standard errors, as shares, by architecture keys."""

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


@dataclass(frozen=True, eq=False)
class Block:
    """A stored block with what was measured in it.

    Attributes:
        measurements: of its models, without those that failed.
        company: the agent's reference models.
    """

    stored: StoredBlock
    measurements: Sequence[Measurement]
    company: Company

    @property
    def references(self) -> list[Measurement]:
        """The agent's reference models, without those that failed."""
        return [each for each in self.company.references if each.failure is None]


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
    """One device's blocks at its usual pace.

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
        remembered = [block.company.usual for block in blocks if block.company.usual is not None]
        # The newest one, unless the agent has lost its memory since.
        self.usual = max(reversed(remembered), key=lambda usual: usual.moments, default=None)
        moments = 0 if self.usual is None else self.usual.moments
        if moments < min(len(blocks), _FEW_MOMENTS):
            self.usual = _own_usual(blocks, spec) or self.usual
        alone = {id: self._estimated(id, {}) for id in self._blocks}
        self._known = self._usual_latencies(alone, references, typical)
        self.estimates = {id: self.by(id, {}, alone[id]) for id in self._blocks}
        """By block ids; models by their keys."""

    def by(
        self,
        block_id: str,
        anchors: Known,
        alone: tuple[BlockEstimate, dict[str, Estimate]] | None = None,
    ) -> tuple[BlockEstimate, dict[str, Estimate]]:
        """Return a block's estimates by all that is known of models in it.

        Args:
            anchors: models that are known beside the campaign's reference models.
            alone: the estimates by the agent's reference models.
        """
        block, found = alone or self._estimated(block_id, {})
        told = _agreeing(found, {**self._known, **anchors})
        if told:
            block, found = self._by_known(block_id, block, found, told)
        left = _left(found, anchors)
        own = found.keys() - self._known.keys()
        return block, found if not left else {**found, **_divided(found, own, math.exp(left))}

    def _by_known(
        self, block_id: str, block: BlockEstimate, found: dict[str, Estimate], told: Known
    ) -> tuple[BlockEstimate, dict[str, Estimate]]:
        if block.paces is None:  # the agent's reference models failed
            factor = float(np.median([found[key].latency_ns / told[key][0] for key in told]))
            return block, _divided(found, found, factor)
        return self._estimated(block_id, told)

    def readings(self, block_id: str) -> list[AgentReading]:
        """Return the agent's reference models in a block, smallest weights first."""
        names = self.usual.references if self.usual is not None else ()
        found = []
        latencies = _latencies(self._blocks[block_id], self._spec)
        for each in sorted(self._blocks[block_id].references, key=lambda m: m.weight_bytes):
            usual_ms = math.nan
            if self.usual is not None and each.model_id in names:
                usual_ms = float(self.usual.latency_ns[names.index(each.model_id)]) / 1e6
            latency_ms = latencies[each.model_id] / 1e6
            found.append(AgentReading(each.model_id, each.weight_bytes, latency_ms, usual_ms))
        return found

    def _estimated(self, block_id: str, known: Known) -> tuple[BlockEstimate, dict[str, Estimate]]:
        block = self._blocks[block_id]
        found = estimate_measured(
            block.measurements, self._spec, block.references, self.usual, known
        )
        keys = [measurement.model_id for measurement in block.measurements]
        return found, dict(zip(keys, found.models, strict=True))

    def _usual_latencies(
        self,
        alone: Mapping[str, tuple[BlockEstimate, Mapping[str, Estimate]]],
        references: Collection[str],
        typical: Collection[str],
    ) -> dict[str, tuple[float, float]]:
        """What the campaign's reference models take at the usual pace: medians over the blocks."""
        with_company = [id for id, (block, _) in alone.items() if block.paces is not None]
        counted = [id for id in with_company if id in typical] or with_company
        known = {}
        for key in references:
            values = [alone[id][1][key].latency_ns for id in counted if key in alone[id][1]]
            if len(values) >= FEWEST_BLOCKS:
                logs = np.log(values)
                # The variance of a median is pi/2 times that of a mean.
                error = math.sqrt(math.pi / 2 * float(logs.var(ddof=1)) / len(logs))
                known[key] = float(np.exp(np.median(logs))), error
        return known


def _agreeing(found: Mapping[str, Estimate], known: Known) -> dict[str, tuple[float, float]]:
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


def _left(found: Mapping[str, Estimate], anchors: Known) -> float:
    """What anchors are still off together, a logarithm: a device may slow networks of one kind
    down and no reference model. 0 where it is little or they are too few."""
    off = [math.log(found[key].latency_ns / anchors[key][0]) for key in anchors if key in found]
    left = float(np.median(off)) if len(off) >= FEWEST_TOLD else 0.0
    return left if abs(left) > _STRAY else 0.0


def _divided(
    found: Mapping[str, Estimate], keys: Iterable[str], factor: float
) -> dict[str, Estimate]:
    return {key: replace(found[key], latency_ns=found[key].latency_ns / factor) for key in keys}


def _own_usual(blocks: Sequence[Block], spec: MeasureSpec) -> Usual | None:
    """What is usual, by the campaign's own blocks, each a moment; None where they have no such
    models."""
    latencies = [_latencies(block, spec) for block in blocks]
    names = sorted({name for each in latencies for name in each})
    rows = [[each.get(name, math.nan) for name in names] for each in latencies]
    at_s = [datetime.fromisoformat(block.stored.measured_at).timestamp() for block in blocks]
    return usual_of(names, np.array(at_s), np.array(rows).reshape(len(rows), len(names)))


def _latencies(block: Block, spec: MeasureSpec) -> dict[str, float]:
    """The agent's reference models, nanoseconds, by their names."""
    found = estimate_references(block.references, spec)
    return {name: estimate.latency_ns for name, estimate in found.items()}
