"""A fake device whose memory is slower in some blocks, as its reference models tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Block, BlockResult, Measurement, Model, UsualLatencies

LADDER = {
    "arithmetic": (400_000, 0.05),
    "middle": (7_000_000, 0.1),
    "large": (17_000_000, 0.3),
    "beyond": (67_000_000, 3.0),
}
"""Reference models: weight in bytes, and usual latency in milliseconds."""
BIG_MS, SMALL_MS = 0.3, 0.05
"""Usual latencies: a model that feels memory like ``large``, one that feels nothing of it."""
_RUNS, _NOISE = 40, 0.002


def big(model_id: str) -> bool:
    """Whether a model is large, by its name."""
    return "big" in model_id


def latency_ms(model: Model) -> float:
    return BIG_MS if big(model.model_id) else SMALL_MS


class PacedProfiler(FakeProfiler):
    """Device on which memory is slower by some logarithm, block by block.

    Args:
        memory: by the number of blocks measured before.
        moments: of its history; 0: it remembers nothing.
        spread: standard deviation of memory over them, a logarithm.
    """

    def __init__(
        self,
        memory: Callable[[int], float] = lambda number: 0.0,
        moments: int = 200,
        spread: float = 0.05,
    ) -> None:
        super().__init__(latency_ms, noise=_NOISE)
        self._memory = memory
        self._moments = moments
        self._spread = spread

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        number = len(self.blocks)
        slower = math.exp(self._memory(number))
        result = super().answer(block, on_progress)
        if not block.spec.references:
            return result
        rng = np.random.default_rng(number)
        references = []
        for name, (weight_bytes, usual_ms) in LADDER.items():
            mean_ns = 1e6 * usual_ms * (slower if name in ("large", "beyond") else 1)
            runs = np.round(mean_ns * rng.normal(1, _NOISE, _RUNS)).astype(np.int64)
            starts = np.arange(_RUNS) * 10_000_000
            references.append(
                Measurement(name, runs, starts, runs_per_visit=4, weight_bytes=weight_bytes)
            )
        measurements = tuple(
            replace(
                m,
                latency_ns=np.round(m.latency_ns * slower).astype(np.int64),
                weight_bytes=LADDER["large"][0],
            )
            if big(m.model_id)
            else m
            for m in result.measurements
        )
        return replace(
            result,
            measurements=measurements,
            references=tuple(references),
            usual=self.usual() if self._moments else None,
        )

    def usual(self) -> UsualLatencies:
        """Return what it remembers."""
        memory = np.array([0.0, 0.0, 1.0, 1.0]) * self._spread
        spread = np.abs(memory[:, None] - memory[None, :])
        np.fill_diagonal(spread, memory)
        usual_ns = np.array([1e6 * usual_ms for _, usual_ms in LADDER.values()])
        return UsualLatencies(
            tuple(LADDER), usual_ns, spread + 1e-3, self._moments, 300.0 * self._moments
        )
