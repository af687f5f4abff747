"""Latencies of stored blocks at the device's usual pace, from their reference models.

The agent's reference models give the deviation of each block from the device's usual pace, but
only roughly for a single model. The campaign's own reference models are networks like the others,
in every block. All blocks together give their usual latencies. These then give a second estimate
of each block's pace.
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
from esm_protos.messages import BlockResult, Measurement, MeasureSpec, UsualLatencies
from esm_protos.paces import usual_latencies

Estimates = Mapping[str, Estimate]
"""Estimates by architecture key."""

FEWEST_BLOCKS = 3
"""Fewest blocks that give the usual latency of a campaign's reference model.

Fewer blocks add nothing to the agent's reference models.
"""
FEWEST_TOLD = 3
"""Fewest known models of a block that give its pace; a single one may be an outlier."""
_FEW_MOMENTS = 12
"""Remembered moments below which the campaign's own blocks are used, if there are more of them."""
_STRAY = 0.03
_MOST_EXPLAINED = 0.1
"""Largest share of a deviation that an interval explains.

The interval is wide if the agent remembers little of the device. But this uncertainty of the usual
pace is the same in all blocks.
"""


class Block:
    """Stored block with its measurements, whose runs are split only once.

    Attributes:
        stored: Record of the block in the store.
        measurements: Measurements of its models, failed ones excluded.
        failures: Failures of the other models, by architecture key.
        states: Device states before, during and after the block.
        slowdown: Slowdown from its first third to its last, as a share.
        usual: Usual latencies that the agent remembered before the block; None if it had none.
        references: Weights of the agent's reference models, bytes, by name, smallest first,
            failed ones excluded.
        reference_ns: Latencies of the agent's reference models at the block's pace, ns, by name.
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

    def estimates(
        self, usual: UsualLatencies | None = None, known: Known | None = None
    ) -> Estimates:
        """Return the estimates of the models by their keys.

        Args:
            usual: Usual latencies of the agent's reference models; None if unknown.
            known: Usual latencies of models of the block, from other blocks; None for none.
        """
        found = self._runs.estimate(usual, known).models
        return {
            measurement.model_id: estimate
            for measurement, estimate in zip(self.measurements, found, strict=True)
        }


@dataclass(frozen=True)
class AgentReading:
    """Reading of one of the agent's reference models in a block.

    Attributes:
        name: Name of the reference model.
        weight_bytes: Size of its weights, bytes.
        latency_ms: Latency in the block, ms.
        usual_ms: Usual latency, ms; NaN if unknown.
    """

    name: str
    weight_bytes: int
    latency_ms: float
    usual_ms: float


def explained(estimate: Estimate) -> float:
    """Return the deviation of a latency that its interval explains, as a share."""
    return min(estimate.interval, _MOST_EXPLAINED) if math.isfinite(estimate.interval) else 0.0


class DevicePaces:
    """Paces of one device's blocks, relative to its usual pace.

    Without the agent's reference models each block keeps its own pace.

    Args:
        blocks: Blocks of the device, in the order of time.
        spec: Settings of a measurement.
        references: Keys of the campaign's own reference models.
        typical: Ids of the blocks that give their usual latencies. All blocks are used if none of
            them qualifies.
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
        # The newest, unless the agent has lost its memory since.
        self.usual = max(reversed(remembered), key=lambda usual: usual.moments, default=None)
        moments = 0 if self.usual is None else self.usual.moments
        if moments < min(len(blocks), _FEW_MOMENTS):
            self.usual = _own_usual(blocks) or self.usual
        alone = {id: block.estimates(self.usual) for id, block in self._blocks.items()}
        self._known = self._usual_latencies(alone, references, typical)
        self.estimates = {id: self.by(id, {}, alone[id]) for id in self._blocks}
        """Estimates by block id, then by architecture key."""

    @cached_property
    def warm(self) -> dict[str, tuple[float, float]]:
        """Ratios of warm to measured latency and their standard errors, by architecture key.

        Without long visits the ratio is 1 and the error 0, and latencies stay as measured.
        """
        taken: dict[str, list[Measurement]] = {}
        for block in self._blocks.values():
            for measurement in block.measurements:
                taken.setdefault(measurement.model_id, []).append(measurement)
        if not self._spec.long_visits:
            return dict.fromkeys(taken, (1.0, 0.0))
        ratios, errors = warm_ratios([warming(each, self._spec.trim) for each in taken.values()])
        return dict(zip(taken, zip(ratios.tolist(), errors.tolist(), strict=True), strict=True))

    def by(self, block_id: str, anchors: Known, alone: Estimates | None = None) -> Estimates:
        """Return a block's estimates from all models with known latencies in it.

        Args:
            block_id: Id of the block.
            anchors: Known models besides the campaign's reference models.
            alone: Estimates from the agent's reference models; None computes them.
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
        """Return a block's readings of the agent's reference models, smallest weights first."""
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
        """Return usual latencies of the campaign's reference models, medians over the blocks."""
        paced = [id for id, block in self._blocks.items() if block.references]
        counted = [id for id in paced if id in typical] or paced
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
    """Return the known models of a block without outliers.

    Empty if too few models are left to tell outliers apart.
    """
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
    """Return the log deviation that the anchors still share, 0 if small or if anchors are few.

    A device may slow down networks of one kind and no reference model.
    """
    off = [math.log(found[key].latency_ns / anchors[key][0]) for key in anchors if key in found]
    left = float(np.median(off)) if len(off) >= FEWEST_TOLD else 0.0
    return left if abs(left) > _STRAY else 0.0


def _divided(found: Estimates, keys: Iterable[str], factor: float) -> Estimates:
    return {key: replace(found[key], latency_ns=found[key].latency_ns / factor) for key in keys}


def _own_usual(blocks: Sequence[Block]) -> UsualLatencies | None:
    """Return the usual latencies from the campaign's own blocks, each one moment.

    None if the blocks hold no reference models of the agent.
    """
    names = sorted({name for block in blocks for name in block.reference_ns})
    rows = [[block.reference_ns.get(name, math.nan) for name in names] for block in blocks]
    at_s = [datetime.fromisoformat(block.stored.measured_at).timestamp() for block in blocks]
    return usual_latencies(names, np.array(at_s), np.array(rows).reshape(len(rows), len(names)))
