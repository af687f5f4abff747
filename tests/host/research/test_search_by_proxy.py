"""One proxy's procedure as a whole, on devices that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from esm_host.research.search_by_proxy import ProxyFront, search_by_proxy
from esm_host.research.transfer.one_proxy import OneProxySettings
from esm_host.search.front import nondominated
from esm_host.search.genes import GeneEncoding, keys
from esm_host.search.latency import AT_MOST, LATENCY
from esm_host.search.methods.exhaustive import Exhaustive
from esm_host.search.problem import Limit, Measure, Objective, Problem
from esm_host.transfer.monotonicity import Decision
from esm_host.transfer.source import Source
from esm_models.space import Codes
from esm_models.spaces import load_space

CELLS = load_space("nasbench201")
EVERYTHING = np.concatenate(list(GeneEncoding(CELLS).everything()))
POOL = np.random.default_rng(0).permutation(EVERYTHING)


def summed(codes: Codes, seed: int) -> np.ndarray:
    """Over the edges, of what the seed says that each operation is worth there."""
    worth = np.random.default_rng(seed).uniform(0.1, 1, (6, len(CELLS.options)))
    return worth[np.arange(6), codes.reshape(len(codes), 6)].sum(axis=1)


def quality(codes: Codes) -> Mapping[str, np.ndarray]:
    return {"quality": summed(codes, 0)}


def problem(measures: Sequence[Measure], *limits: Limit) -> Problem:
    objectives = [Objective(LATENCY), Objective("quality", maximise=True)]
    return Problem(CELLS, [*measures, quality], objectives, limits)


class Device:
    """Latencies by a seed, with a little noise; counts what it measures."""

    def __init__(self, seed: int, failing: float = 0.0) -> None:
        self._seed = seed
        self._failing = failing
        self.asked = np.empty((0, *CELLS.code_shape), np.int16)

    def truth(self, codes: Codes) -> np.ndarray:
        bits = np.frombuffer(codes.tobytes(), np.uint8).reshape(len(codes), -1)
        noise = 0.002 * np.sin(bits @ np.arange(1, bits.shape[1] + 1) * 7.7)
        return 3 * summed(codes, self._seed) + noise

    def __call__(self, codes: Codes) -> np.ndarray:
        self.asked = np.concatenate([self.asked, codes])
        failed = np.random.default_rng(1).random(len(codes)) < self._failing
        return np.where(failed, np.nan, self.truth(codes))


def run(
    device: Device,
    pool: Codes = POOL[:110],
    *limits: Limit,
    proxy_front: Codes | None = None,
    **settings: Any,
) -> ProxyFront:
    proxy = Source("proxy", CELLS, POOL[500:900], summed(POOL[500:900], 3))

    def posed(measures: Sequence[Measure]) -> Problem:
        return problem(measures, *limits)

    own = OneProxySettings(**settings)
    return search_by_proxy(posed, proxy, device, pool, Exhaustive(), own, proxy_front)


def own_front(latency: np.ndarray) -> set[bytes]:
    costs = np.stack([latency, -quality(EVERYTHING)["quality"]], axis=1)
    return {row.tobytes() for row in EVERYTHING[nondominated(costs)]}


def test_a_proxy_that_ranks_alike_lends_its_front() -> None:
    device = Device(3)
    found = run(device)
    assert found.decision is Decision.REUSE
    assert found.samples == 30
    assert {row.tobytes() for row in found.proposed.codes} == own_front(summed(EVERYTHING, 3))
    assert len(found.front) <= len(found.unpruned) == len(found.proposed)
    np.testing.assert_array_equal(
        found.front.values[LATENCY], device.truth(found.front.codes), strict=True
    )


def test_a_front_that_is_known_of_the_proxy_is_not_searched_for() -> None:
    front = POOL[1000:1010]
    found = run(Device(3), proxy_front=np.concatenate([front, front]))
    assert found.decision is Decision.REUSE
    np.testing.assert_array_equal(found.proposed.codes, front)
    assert len(found.front) < len(front)  # ten at random: some are beaten


def test_another_device_is_adapted_to_and_searched_anew() -> None:
    device = Device(4)
    found = run(device, proxy_front=POOL[1000:1010])
    assert found.decision is Decision.ADAPT
    assert found.samples > 30
    truth = own_front(device.truth(EVERYTHING))
    mine = {row.tobytes() for row in found.front.codes}
    assert len(mine & truth) >= 0.8 * len(truth)


def test_nothing_on_the_front_is_beaten_by_what_was_proposed() -> None:
    found = run(Device(4))
    kept = np.isin(keys(found.unpruned.codes), keys(found.front.codes))
    np.testing.assert_array_equal(kept, nondominated(found.unpruned.costs))


def test_each_architecture_is_measured_once() -> None:
    device = Device(3)
    # The front is among the samples already.
    found = run(device, np.concatenate([POOL[:30], POOL[:30]]), proxy_front=POOL[20:40])
    assert found.measured == len(device.asked) == 40
    assert len(np.unique(keys(device.asked))) == 40


@pytest.mark.parametrize(
    ("seed", "decision"), [(3, Decision.REUSE), (4, Decision.ADAPT), (6, Decision.ADAPT)]
)
def test_when_samples_end_the_estimate_decides(seed: int, decision: Decision) -> None:
    found = run(Device(seed), POOL[:6], first=6, step=4)
    assert found.check.decision is Decision.MEASURE
    assert found.samples == 6
    assert found.decision is decision
    assert len(found.front)


def test_limits_of_the_latency_hold_what_was_measured() -> None:
    device = Device(4)
    slowest = float(np.median(device.truth(EVERYTHING)))
    found = run(device, POOL[:110], Limit(AT_MOST, slowest))
    assert found.proposed.values[LATENCY].max() > slowest  # predictions only rank
    assert (found.front.values[LATENCY] <= slowest).all()
    assert 0 < len(found.front) < len(found.unpruned)


def test_what_fails_is_left_out() -> None:
    device = Device(4, failing=0.2)
    found = run(device)
    assert np.isnan(found.unpruned.values[LATENCY]).any()
    assert np.isfinite(found.front.values[LATENCY]).all()
    assert found.measured == len(device.asked)
