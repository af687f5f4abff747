"""Campaigns with the agent's reference models: latencies at the device's usual pace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from esm_agent.measure.references import reference_models
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.dataset.table import Dataset, Measurements
from esm_host.evaluation.verdict import Verdict
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import REFERENCES, FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.graphs import weight_bytes
from esm_protos.messages import Block, BlockResult, MeasureSpec, Model
from tests.host.campaign import SPACE, Log, assemble, latency
from tests.host.test_collect import plan

SPEC = MeasureSpec(runs=12, references=True)


def weights(model: Model) -> int:
    """4 to 40 MB, by chance."""
    share = hashlib.sha256(model.model_id.encode()).digest()[0] / 255
    return int(4e6 * 10**share)


def streaming(model: Model) -> float:
    """Networks whose weights cost a good part of their time."""
    return weights(model) / 1.2e7 + latency(model) / 10


def wandering(number: int) -> float:
    """Memory 10 % slower and faster than usual by turns that last some blocks."""
    return float(np.exp(0.1 * np.sin(0.9 * number)))


def device(of_model: Callable[[Model], float] = streaming, **options) -> FakeProfiler:
    """A device that remembers an hour or so."""
    return FakeProfiler(
        of_model, **{"weight_bytes": weights, "past": 60, "noise": 0.005, **options}
    )


def truth(planned: list[Architecture], of: Callable[[Model], float] = streaming) -> np.ndarray:
    return np.array([of(Model(a.key, SPACE.build(a))) for a in planned])


def errors(dataset: Dataset) -> np.ndarray:
    return np.abs(dataset.latency_ms / truth(dataset.architectures) - 1)


def test_memory_that_wanders_is_taken_out(tmp_path: Path) -> None:
    store, collector, _ = assemble(tmp_path, device(memory_pace=wandering), Log(), spec=SPEC)
    plan(store, 80)
    collector.collect(0)
    ours = errors(Measurements(store, SPEC).dataset())
    raw = errors(Measurements(store, SPEC, raw=True).dataset())
    print(np.median(ours), ours.max(), np.median(raw), raw.max())
    m = Measurements(store, replace(SPEC))
    t = m.table()
    print(t.quality.factors, t.quality.deviations.max(), t.quality.explained.mean())
    print(np.median(m.dataset().interval))
    print(np.mean(m.dataset().interval<errors(m.dataset())))
    print([b.passed for b in t.blocks])
    assert np.median(ours) < 0.01
    assert ours.max() < 0.03
    assert np.median(raw) > 3 * np.median(ours)
