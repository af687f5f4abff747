"""Algorithm 1 measures no more than it needs."""

from __future__ import annotations

import numpy as np
import pytest

from esm_host.research.transfer.one_proxy import OneProxySettings, one_proxy
from esm_host.research.transfer.proxy import AdaProxyPredictor, ProxyPredictor
from esm_host.sampling.random import RandomSampler
from esm_host.transfer.monotonicity import Decision
from esm_host.transfer.source import Source
from esm_models.spaces import load_space
from tests.helpers import depth_bins

SPACE = load_space("fbnet")


@pytest.fixture(scope="module")
def codes():
    sampler = RandomSampler(SPACE, depth_bins(SPACE, 4))
    return SPACE.encode(sampler.sample(700, np.random.default_rng(0)))


def latency(codes, seed, noise=0.0):
    """A sum over blocks, whose operators cost what the seed says."""
    rng = np.random.default_rng(seed)
    cost_ms = rng.uniform(0.1, 1, (SPACE.unit_count, len(SPACE.options)))
    ms = 5 + cost_ms[np.arange(SPACE.unit_count), SPACE.blocks_of(codes)[..., 0]].sum(axis=1)
    return ms + noise * np.random.default_rng(1).normal(size=len(ms))


def run(codes, measure, **settings):
    source = Source("proxy", SPACE, codes[:400], latency(codes[:400], 3))
    return one_proxy([source], measure, codes[400:], OneProxySettings(**settings))


def test_reuses_a_proxy_that_ranks_alike(codes):
    found = run(codes, lambda some: 2 * latency(some, 3))
    assert found.decision is Decision.REUSE
    assert found.samples == 30
    assert found.adapted == ()


def test_adapts_until_fresh_samples_are_ranked(codes):
    measured = []

    def measure(some):
        measured.append(len(some))
        return latency(some, 4)

    found = run(codes, measure)
    assert found.decision is Decision.ADAPT
    assert found.samples == sum(measured)
    assert found.proxy.high < 0.9
    assert all(one.value < 0.9 for one in found.adapted[:-1])
    assert found.adapted[-1].value >= 0.9
    truth = latency(codes[:400], 4)
    assert np.corrcoef(found.predictor.predict(codes[:400]), truth)[0, 1] > 0.9


def test_says_when_the_pool_was_not_enough(codes):
    found = run(codes[:470], lambda some: latency(some, 4, noise=2))
    assert found.decision is Decision.MEASURE
    assert found.samples == 70


@pytest.mark.parametrize("settings", [{"first": 3}, {"step": 1}])
def test_refuses_what_has_no_correlation(codes, settings):
    with pytest.raises(ValueError, match="needs 4 or more"):
        run(codes, lambda some: latency(some, 4), **settings)


def test_what_could_not_be_measured_is_left_out(codes):
    def measure(some):
        return np.where(np.arange(len(some)) % 5, 2 * latency(some, 3), np.nan)

    found = run(codes, measure)
    assert found.decision is Decision.REUSE
    assert found.proxy.samples == 24


def test_weights_do_not_depend_on_the_order_of_rows_or_options(codes):
    """One-hot columns of a block add up to the constant: the data leave their level open."""
    latency_ms = latency(codes, 3, noise=0.2)
    order = np.random.default_rng(2).permutation(len(codes))
    one, other = (
        ProxyPredictor().learn([Source("proxy", SPACE, codes[rows], latency_ms[rows])])
        for rows in (np.arange(len(codes)), order)
    )
    weights = one.models_["proxy"].weights
    assert other.models_["proxy"].weights == pytest.approx(weights, rel=1e-6, abs=1e-9)
    assert np.abs(weights).max() < 10 * latency_ms.max(), "no weight is rounding noise"
    target_ms = latency(codes, 4)
    adapted = [
        AdaProxyPredictor(norm=norm)
        .learn([Source("proxy", SPACE, codes[rows], latency_ms[rows])])
        .adapt(codes[:60], target_ms[:60])
        .predict(codes[60:])
        for norm in ("l1", "l2")
        for rows in (np.arange(len(codes)), order)
    ]
    assert adapted[0] == pytest.approx(adapted[1], rel=1e-3)
    assert adapted[2] == pytest.approx(adapted[3], rel=1e-3)


def test_the_papers_rule_goes_by_the_estimate(codes):
    def measure(some):
        return 2 * latency(some, 3, noise=0.3)

    papers, ours = (run(codes, measure, by_interval=rule) for rule in (False, True))
    assert (papers.decision, papers.samples) == (Decision.REUSE, 30)
    assert papers.proxy.low < 0.9 < papers.proxy.value
    assert ours.samples > 30
