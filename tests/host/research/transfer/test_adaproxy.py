"""Equation 3 of One Proxy Device: against its definition, and on a device that differs a little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import spearmanr

from esm_host.research.transfer.adaproxy import AdaProxy, _short, _sparse


def blocks(n: int, seed: int = 0, layers: int = 8, options: int = 4) -> np.ndarray:
    """One-hot layers, and a constant."""
    chosen = np.random.default_rng(seed).integers(0, options, (n, layers))
    return np.concatenate([np.eye(options)[chosen].reshape(n, -1), np.ones((n, 1))], axis=1)


def test_it_solves_the_equation() -> None:
    rng = np.random.default_rng(0)
    parts = blocks(40, 1, 3) * rng.uniform(0.5, 3, 13)
    latency_ms = parts @ rng.uniform(0.5, 2, 13) + rng.normal(0, 0.1, 40)

    def objective(variables: np.ndarray, penalty: float) -> float:
        alpha, up, down = variables[0], variables[1:14], variables[14:]
        error = parts @ (alpha + up - down) - latency_ms
        return float((error**2).mean() + penalty * (up + down).sum())

    whole = parts.sum(axis=1)
    rest = latency_ms - whole * (whole @ latency_ms) / (whole @ whole)
    reduced = parts - np.outer(whole, parts.T @ whole / (whole @ whole))
    for share in (0.5, 0.1, 0.01):
        penalty = 2 * share * np.abs(reduced.T @ rest).max() / 40
        reference = minimize(
            objective,
            np.r_[1.0, np.zeros(26)],
            penalty,
            bounds=[(None, None)] + [(0, None)] * 26,
            options={"maxiter": 5000, "maxfun": 500_000},
        )
        (scales,), _ = _sparse(parts, latency_ms, np.array([share]))
        alpha = float(np.median(scales))
        found = min(
            objective(np.r_[a, np.maximum(scales - a, 0), np.maximum(a - scales, 0)], penalty)
            for a in np.r_[alpha, scales]
        )
        assert found == pytest.approx(reference.fun, rel=1e-3)


def test_the_largest_penalty_leaves_a_scale() -> None:
    parts = blocks(30) * np.random.default_rng(0).uniform(1, 2, 33)
    (scales,), _ = _sparse(parts, 3 * parts.sum(axis=1) + np.arange(30) % 3, np.ones(1))
    assert np.ptp(scales) == pytest.approx(0, abs=1e-9)


def test_a_few_operators_that_differ_are_found() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2, 33)
    other = 3 * weights
    other[[3, 7, 20]] *= 4
    x = blocks(600)
    truth = x @ other
    adapted = AdaProxy(weights).fit(x[:50], truth[:50] * np.exp(0.01 * rng.normal(size=50)))
    before = spearmanr(x[50:] @ weights, truth[50:]).statistic
    after = spearmanr(adapted.predict(x[50:]), truth[50:]).statistic
    assert before < 0.8
    assert after > 0.97


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(-10, 10))
def test_units_do_not_matter(seed: int, power: int) -> None:
    unit = 2.0**power  # which rounds nothing
    rng = np.random.default_rng(seed)
    weights, x = rng.uniform(0.5, 2, 33), blocks(30, seed)
    latency_ms = x @ (weights * rng.uniform(0.5, 2, 33))
    one = AdaProxy(weights, seed=seed).fit(x, latency_ms).predict(x)
    other = AdaProxy(unit * weights, seed=seed).fit(x, unit * latency_ms).predict(x)
    assert other == pytest.approx(unit * one, rel=1e-3)


def test_the_same_seed_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    weights, x = rng.uniform(0.5, 2, 33), blocks(40)
    latency_ms = x @ rng.uniform(1, 2, 33)
    one, again = (AdaProxy(weights, seed=3).fit(x, latency_ms).scales_ for _ in range(2))
    assert (one == again).all()


@pytest.mark.parametrize(
    ("features", "latency_ms", "message"),
    [
        (blocks(10)[:, :-1], np.ones(10), "33 weights"),
        (blocks(10), np.ones(9), "give a latency for each"),
        (blocks(3), np.ones(3), "4 or more"),
        (blocks(10), np.r_[np.nan, np.ones(9)], "finite"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    features: np.ndarray, latency_ms: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AdaProxy(np.ones(33)).fit(features, latency_ms)


def test_constant_latencies_are_learned() -> None:
    adapted = AdaProxy(np.ones(33)).fit(blocks(20), np.full(20, 2.0))
    assert adapted.predict(blocks(5, 1)) == pytest.approx(2.0, rel=0.1)


def test_the_authors_norm_leaves_a_scale_and_a_constant_or_fits() -> None:
    rng = np.random.default_rng(0)
    parts = blocks(30, 1, 2) * rng.uniform(1, 2, 9)
    latency_ms = 3 * parts.sum(axis=1) + 5
    for scales, constant_ms in zip(*_short(parts, latency_ms, np.array([1e3, 1e-3])), strict=True):
        assert np.ptp(scales) == pytest.approx(0, abs=1e-6)
        assert parts @ scales + constant_ms == pytest.approx(latency_ms)
    other = parts @ rng.uniform(1, 3, 9)
    (scales,), (constant_ms,) = _short(parts, other, np.array([1e-9]))
    assert parts @ scales + constant_ms == pytest.approx(other, rel=1e-4)
    with pytest.raises(ValueError, match="unknown norm 'l3': choose l1, l2"):
        AdaProxy(np.ones(3), norm="l3")
