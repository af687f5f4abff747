"""Ranks of a space on two providers: figures and tables on latencies that are made up."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.provider_ranks import (
    CPU,
    METHODS,
    OPENVINO,
    Measured,
    accuracy_table,
    auto_accuracy,
    bootstrap,
    common,
    few_shot,
    few_table,
    rank_table,
    ranks,
    split,
    spread,
)
from benchmarks.simulated import MACHINES, latencies
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_models.spaces import load_space

SPACE = load_space("resnet", resolution=64, width_mult=0.25)
BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 5)


@pytest.fixture(scope="module")
def measured() -> Measured:
    """40 models, on the second provider 1.5 times as slow."""
    rng = np.random.default_rng(0)
    sampler = BalancedSampler(SPACE, BINS)
    drawn = [a for i, n in enumerate(sampler.quotas(40)) for a in sampler.sample(n, rng, i)]
    cpu = latencies(SPACE, SPACE.encode(drawn), MACHINES["gpu"], rng)
    interval = {name: np.full(40, 0.01) for name in (CPU, OPENVINO)}
    return Measured(SPACE, BINS, drawn, {CPU: cpu, OPENVINO: 1.5 * cpu}, interval)


def campaign(data: Measured, rows: list[int], scale: float) -> Any:
    dataset = SimpleNamespace(
        architectures=[data.architectures[i] for i in rows],
        latency_ms=scale * data.latency_ms[CPU][rows],
        interval=np.array(rows, dtype=float),
    )
    settings = SimpleNamespace(depth_bins=lambda space: BINS)
    return SimpleNamespace(dataset=lambda: dataset, space=SPACE, settings=settings)


def test_models_in_all_campaigns_are_paired(measured: Measured) -> None:
    runs = {
        CPU: campaign(measured, [4, 2, 0, 1], 1.0),
        OPENVINO: campaign(measured, [1, 3, 4, 2], 3.0),
    }
    found = common(runs)
    assert found.architectures == [measured.architectures[i] for i in (4, 2, 1)]
    assert found.interval[OPENVINO].tolist() == [4, 2, 1]
    np.testing.assert_allclose(found.latency_ms[OPENVINO], 3 * found.latency_ms[CPU])


def test_equal_ranks_correlate_fully_and_reversed_ones_not() -> None:
    ms = np.linspace(1, 2, 30)
    for value, other_ms in ((1, ms**3), (-1, 3 - ms)):
        found = ranks(ms, other_ms)
        assert list(found) == ["Spearman", "Kendall's tau"]
        assert [*found.values()] == [pytest.approx((value,) * 3)] * 2


def test_the_bootstrap_interval_holds_that_of_the_theory() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(400), rng.standard_normal(400)
    low, high = bootstrap(lambda a, b: float(a.mean()), a, b)
    assert (low - a.mean(), high - a.mean()) == pytest.approx((-0.098, 0.098), abs=0.015)
    assert bootstrap(lambda a, b: float(np.ptp(a - b)), a, a) == (0, 0), "pairs stay together"


def test_a_split_takes_as_many_of_each_stratum(measured: Measured) -> None:
    stratum = BINS.of(measured.depth)
    train, held = split(stratum, 15, seed=0)
    assert np.bincount(stratum[held]).tolist() == [3] * 5
    assert sorted([*train, *held]) == list(range(40))
    again, other = split(stratum, 15, seed=0), split(stratum, 15, seed=1)
    assert again[0].tolist() == train.tolist()
    assert other[0].tolist() != train.tolist()
    assert len(set(stratum[train[:10]])) > 1, "in random order"


def test_auto_is_judged_on_the_held_out_models(measured: Measured) -> None:
    train, held = split(BINS.of(measured.depth), 10, seed=0)
    found = auto_accuracy(measured, CPU, train, held)
    assert 80 < found["worst bin"] < found["overall"] < 100


def test_the_held_out_latencies_are_used_for_judging_alone(measured: Measured) -> None:
    """A source that ranks as the target does, learnt by all but the held-out models."""
    train, held = split(BINS.of(measured.depth), 10, seed=0)
    found = few_shot(measured, train, held, 8)
    assert list(found) == list(METHODS)
    source, alone = (found[name]["accuracy"] for name in METHODS)
    assert source > alone
    spoilt = {CPU: measured.latency_ms[CPU].copy(), OPENVINO: measured.latency_ms[OPENVINO]}
    spoilt[CPU][held] *= 50
    data = Measured(SPACE, BINS, measured.architectures, spoilt, measured.interval)
    assert few_shot(data, train, held, 8) == found


def test_tables_have_means_and_standard_deviations() -> None:
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
    assert spread([1.0], 2) == "1.00 ± 0.00"
    assert rank_table({"Spearman": (0.98, 0.97, 0.99)}, 150).splitlines() == [
        "| `openvino` against `cpu`, 150 models | correlation | 95 % interval |",
        "| --- | --- | --- |",
        "| Spearman | 0.980 | 0.970 to 0.990 |",
    ]
    rows = [{"overall": 96.0, "worst bin": 94.0}, {"overall": 98.0, "worst bin": 94.0}]
    assert (
        accuracy_table({"cpu": rows}, 100).splitlines()[-1]
        == "| `cpu` | 97.0 ± 1.4 % | 94.0 ± 0.0 % |"
    )
    few = [{"Spearman": 0.5, "accuracy": 90.0}, {"Spearman": 0.7, "accuracy": 90.0}]
    assert few_table({"cpu as source": few}, 10).splitlines() == [
        "| 10 samples on `openvino` | Spearman | accuracy |",
        "| --- | --- | --- |",
        "| cpu as source | 0.600 ± 0.141 | 90.0 ± 0.0 % |",
    ]
