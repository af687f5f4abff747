"""The replay of campaigns over a pool, on a pool that is made up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import convergence
from benchmarks.convergence import CHECKPOINTS, STRATEGIES, Pool, replay, report, summary
from benchmarks.simulated import MACHINES, latencies
from esm_host.dataset.store import Store
from esm_host.predictors.base import Predictor
from esm_host.sampling.bins import DepthBins

SIZES = {"balanced": 500, "random": 450, "held_out": 50}


class Linear(Predictor):
    """Ridge regression; the seed changes nothing."""

    def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weights: np.ndarray) -> None:
        x = np.c_[encodings, np.ones(len(encodings))]
        self.weights_ = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ latency_ms)

    def _predict(self, encodings: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.c_[encodings, np.ones(len(encodings))] @ self.weights_
        return result


@pytest.fixture(scope="module")
def pool() -> Pool:
    return convergence.simulated_pool("desktop", SIZES)


def linear(seed: int) -> Predictor:
    return Linear()


@pytest.mark.parametrize("machine", MACHINES)
def test_simulated_devices_take_longer_for_more(machine: str) -> None:
    space = convergence.SPACE
    codes = space.encode(list(space.extremes()))
    short, long = latencies(space, codes, MACHINES[machine], np.random.default_rng(0))
    assert 0.05 < short < long / 5 < 50


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replay_ends_where_every_bin_is_accurate(pool: Pool, strategy: str) -> None:
    curve = replay(pool, strategy, 0, 80.0, linear)
    assert curve.needed in curve.models
    assert curve.worst_bin_percent[curve.models.index(curve.needed)] >= 80
    assert all(value < 80 for value in curve.worst_bin_percent[: curve.models.index(curve.needed)])
    assert curve.models == [100, 150, 200, 250, 300, 350, 400]
    assert curve == replay(pool, strategy, 0, 80.0, linear), "the seed decides"
    assert curve != replay(pool, strategy, 1, 80.0, linear)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_takes_each_of_its_own_models_once(
    pool: Pool, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[np.ndarray] = []

    class Watched(Linear):
        def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weights: np.ndarray) -> None:
            taken.append(latency_ms)
            super()._fit(encodings, latency_ms, weights)

    curve = replay(pool, strategy, 0, 100.0, lambda seed: Watched())
    part = "random" if strategy == "random" else "balanced"
    assert curve.needed is None, "100 % is never reached"
    assert curve.models[-1] == SIZES[part], "it took all that there was"
    last = max(taken, key=len)  # others are of a committee
    np.testing.assert_array_equal(np.sort(last), np.sort(pool.latency_ms[pool.parts[part]]))


def test_what_is_reported_of_a_pool_that_ran_out(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = {
        "random": [replay(pool, "random", 0, 100.0, linear)],
        "balanced": [replay(pool, "balanced", 0, 50.0, linear)],
    }
    result = summary(curves)
    assert result["random"]["models"] == [None]
    assert result["random"]["more_than"] == 450
    assert result["balanced"]["models"] == [100]
    assert result["balanced"]["fewer_than_random"] == 4.5
    assert set(result["balanced"]["worst_bin_percent_at"]) == {str(n) for n in CHECKPOINTS}
    report(result)
    printed = capsys.readouterr().out
    assert "more than 450" in printed
    assert ">= 4.5" in printed


@pytest.mark.benchmarks
def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--balanced", "150", "--random", "150", "--held-out", "50"]
    files = ["--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]
    more = ["--seeds", "1", "--target-accuracy", "50"]
    monkeypatch.setattr(sys, "argv", ["x", "--simulate", "gpu", *sizes, *more, *files])
    monkeypatch.setattr(convergence, "CHECKPOINTS", (100,))
    convergence.main()
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["simulated"] == "gpu"
    assert data["strategies"]["cost-aware"]["models"] == [100]
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_a_pool_is_drawn_the_same_every_time_and_no_model_twice() -> None:
    references, parts = convergence.draw(SIZES)
    assert (references, parts) == convergence.draw(SIZES)
    keys = [a.key for part in (references, *parts.values()) for a in part]
    assert len(keys) == len(set(keys)) == 4 + sum(SIZES.values())
    bins = DepthBins(4, 28, 5).of(np.array([a.depth for a in parts["held_out"]]))
    assert np.bincount(bins).tolist() == [10] * 5


def test_a_pool_is_not_gone_on_with_in_other_sizes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    store.add_fact("pools", {"balanced": ["a"], "random": [], "held_out": []})
    with pytest.raises(SystemExit, match="--balanced 1 --random 0"):
        convergence.measure(store, SIZES)
