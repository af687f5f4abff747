"""Latencies of warm models from those that were taken with cold caches."""

from __future__ import annotations

import numpy as np

from esm_host.evaluation.warm import Warming, warm_ratios, warming
from esm_protos.messages import Measurement

NONE = np.zeros(0, dtype=np.int64)


def long_visits(latency_ns: int) -> np.ndarray:
    return np.full(3, latency_ns)


def test_how_a_model_warms_up_tells_how_long_it_takes_when_warm() -> None:
    models = [Warming(1e6, (1.3e6, 1.1e6), long_visits(950_000)) for _ in range(10)]
    ratios, errors = warm_ratios(models)
    np.testing.assert_allclose(ratios, 0.95, rtol=1e-3)
    assert (errors < 0.01).all()


def test_without_uncounted_runs_the_long_visits_tell() -> None:
    """A campaign with --warmup 0 and warm caches."""
    ratios, errors = warm_ratios([Warming(1e6, (), long_visits(700_000)) for _ in range(10)])
    np.testing.assert_allclose(ratios, 0.7, rtol=1e-3)
    assert (errors < 0.02).all()


def test_what_nothing_tells_of_is_not_taken_to_be_warm() -> None:
    """No uncounted run means that nothing is known; only a slow model needs none."""
    fast, slow = Warming(1e6, (), NONE), Warming(3e8, (), NONE)
    ratios, errors = warm_ratios([fast, slow])
    assert ratios.tolist() == [1, 1]
    assert errors[0] >= 0.05
    assert errors[1] <= 0.01
    known = [Warming(1e6, (), long_visits(700_000)) for _ in range(10)]
    ratios, errors = warm_ratios([*known, fast, slow])
    assert errors[10] >= 0.05
    assert errors[11] <= 0.01


def test_stored_latencies_of_nothing_are_not_believed() -> None:
    """Agents' results were not always checked for them."""

    def measured(uncounted: tuple[float, ...], warm: list[int]) -> Warming:
        taken = np.full(20, 1_000_000)
        measurement = Measurement(
            "m", taken, np.arange(20), warming_ns=uncounted, warm_ns=np.array(warm)
        )
        return warming([measurement], 0.2)

    good = [measured((1.3e6, 1.1e6), [950_000] * 3) for _ in range(10)]
    odd = [
        measured((0.0, 1.1e6), [950_000] * 3),
        measured((5e-324, 1.1e6), [950_000] * 3),
        measured((1.3e6, 1.1e6), [0, 0, 0]),
    ]
    ratios, errors = warm_ratios([*good, *odd])
    np.testing.assert_allclose(ratios, 0.95, rtol=0.01)
    assert (errors < 0.05).all()
