"""Checks at the end of loops, on random architectures that no predictor has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esm_host
from esm_host.evaluation.check import Check
from esm_host.extension.training import Learner
from esm_host.sampling.bins import DepthBins
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Model
from tests.host.fake_campaign import SPACE, ByDepth, Log, assemble, latency

BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 4)

Measure = Callable[[Sequence[Architecture]], list[float]]


def alike(architectures: Sequence[Architecture]) -> list[float]:
    """Return the same latency, ms, for all."""
    return [10.0] * len(architectures)


def erratic(architectures: Sequence[Architecture]) -> list[float]:
    """Return latencies, ms, that nothing predicts."""
    return [1.0 + int(a.key[:8], 16) % 100 for a in architectures]


def loop_of(make: type[ByDepth] = ByDepth, **changes: Any) -> esm_host.Loop:
    given = {
        "initial": 40,
        "step": 20,
        "bins": 4,
        "max_models": 80,
        "verify": 12,
        "sampling": "balanced",
        **changes,
    }
    training = esm_host.TrainingSettings(encoding="statistical")
    learner = Learner(training.encoder(SPACE), lambda member: make(), training)
    return esm_host.Loop(SPACE, esm_host.SamplingSettings(**given), learner=learner)


def run(loop: esm_host.Loop, of: Measure = alike) -> esm_host.Loop:
    while asked := loop.ask():
        loop.tell(asked, of(asked))
    return loop


def fitted(sizes: list[int]) -> type[ByDepth]:
    class Counting(ByDepth):
        def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weights: np.ndarray) -> None:
            sizes.append(len(latency_ms))
            super()._fit(encodings, latency_ms, weights)

    return Counting


def test_the_end_is_checked_on_random_models_of_every_bin() -> None:
    sizes: list[int] = []
    loop = loop_of(fitted(sizes))
    first = loop.ask()
    loop.tell(first, alike(first))
    assert not loop.converged
    assert loop.reason == ""
    check = loop.ask()
    assert np.bincount(BINS.of(np.array([a.depth for a in check]))).tolist() == [3, 3, 3, 3]
    assert not {a.key for a in check} & {a.key for a in first}
    loop.tell(check, alike(check))
    assert loop.ask() == []
    assert loop.converged
    assert loop.checks == {1}
    assert loop.evaluation.check == Check(12, 100.0, 100.0, 100.0)
    assert loop.predictor is not None
    assert max(sizes) == 40  # the check is never trained on


def test_a_target_that_fails_its_check_is_pursued_with_what_the_check_measured() -> None:
    sizes: list[int] = []
    loop = loop_of(fitted(sizes))
    first = loop.ask()
    loop.tell(first, alike(first))
    check = loop.ask()
    loop.tell(check, [30.0] * 12)
    assert not loop.converged
    more = loop.ask()
    assert len(more) == 20
    assert loop.checks == {1}
    loop.tell(more, alike(more))
    assert loop.predictor is not None
    assert max(sizes) == 72


def test_a_missed_target_needs_no_check() -> None:
    loop = run(loop_of(max_models=50), erratic)
    assert [len(each) for each in loop.rounds] == [40, 10]
    assert loop.reason == "max_models 50 is reached"
    assert not loop.converged


def test_the_largest_number_is_told_without_the_check() -> None:
    loop = loop_of(max_models=40)
    first = loop.ask()
    loop.tell(first, alike(first))
    loop.tell(loop.ask(), [30.0] * 12)
    assert loop.ask() == []
    assert not loop.converged
    assert loop.reason == "max_models 40 is reached, without the 12 models of the check"


def test_rounds_that_do_not_exist_are_no_checks() -> None:
    with pytest.raises(esm_host.UsageError, match=r"^checks \[3\]: give numbers of the 1 round"):
        loop_of().restore([loop_of().ask()], checks={3})


def test_without_a_check_the_loop_ends_at_the_target() -> None:
    loop = run(loop_of(verify=0))
    assert [len(each) for each in loop.rounds] == [40]
    assert loop.evaluation.check is None


def test_a_restored_loop_knows_its_check() -> None:
    one = loop_of()
    first = one.ask()
    one.tell(first, alike(first))
    check = one.ask()
    other = loop_of()
    other.restore(one.rounds, checks=one.checks)
    other.tell(first, alike(first))
    assert other.ask() == check
    other.tell(check, alike(check))
    assert other.converged
    assert other.evaluation.check == Check(12, 100.0, 100.0, 100.0)


def test_a_raised_check_measures_what_it_lacks() -> None:
    one, sizes = run(loop_of()), list[int]()
    other = loop_of(fitted(sizes), verify=20)
    other.restore(one.rounds, checks=one.checks)
    for architectures in one.rounds:
        other.tell(architectures, alike(architectures))
    assert not other.converged
    run(other)
    assert [len(each) for each in other.rounds] == [40, 12, 8]
    assert other.checks == {1, 2}
    assert other.converged
    assert other.evaluation.check == Check(20, 100.0, 100.0, 100.0)
    assert other.predictor is not None
    assert max(sizes) == 40


def test_an_enlarged_check_that_fails_is_trained_on_as_a_whole() -> None:
    one, sizes = run(loop_of()), list[int]()
    other = loop_of(fitted(sizes), verify=20)
    other.restore(one.rounds, checks=one.checks)
    for architectures in one.rounds:
        other.tell(architectures, alike(architectures))
    check = other.ask()
    other.tell(check, [30.0] * 8)
    more = other.ask()
    assert len(more) == 20
    assert other.checks == {1, 2}
    other.tell(more, alike(more))
    assert other.predictor is not None
    assert max(sizes) == 80


def test_a_check_of_fewer_models_than_bins_is_not_of_the_first_bins() -> None:
    drawn = set()
    for seed in range(20):
        loop = loop_of(verify=2, seed=seed)
        first = loop.ask()
        loop.tell(first, alike(first))
        drawn |= set(BINS.of(np.array([a.depth for a in loop.ask()])).tolist())
    assert drawn == {0, 1, 2, 3}


def test_a_check_of_which_nothing_can_be_measured_confirms_nothing() -> None:
    loop = loop_of()
    first = loop.ask()
    loop.tell(first, alike(first))
    check = loop.ask()
    loop.tell(check, [np.nan] * 12)
    assert not loop.converged
    assert loop.reason == "no model of the check could be measured"
    assert loop.evaluation.check == Check(0, None, None, None)


@pytest.mark.parametrize(
    ("verify", "rounds"), [(12, [40, 20, 3, 12]), (0, [40, 20, 15]), (35, [40, 35]), (50, [40, 35])]
)
def test_a_budget_holds_its_check(verify: int, rounds: list[int]) -> None:
    settings = esm_host.SamplingSettings(
        initial=40,
        step=20,
        sampling="balanced",
        verify=verify,
        budget_s=75.0,
        target_accuracy_percent=100.0,
    )
    training = esm_host.TrainingSettings(predictor="ridge")
    loop = run(esm_host.Loop(SPACE, settings, training, seconds=np.ones_like), erratic)
    assert [len(each) for each in loop.rounds] == rounds
    assert loop.reason == "budget_s 75 is used"


# Campaigns


def test_a_campaign_keeps_its_check_apart(tmp_path: Path) -> None:
    log = Log()
    sizes: list[int] = []
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), log, fitted(sizes), verify=8)
    outcome = loop.run()
    assert outcome.converged
    assert log.checks == [8]
    assert store.checks() == {1}
    assert store.held_out() == {a.key for a in store.plan()[1]}
    assert max(sizes) == 40
    assert len(outcome.dataset) == len(outcome.predicted_ms) == 48
    assert log.rounds[0]["check"] is None
    assert log.rounds[1]["check"]["models"] == 8
    assert log.rounds[1]["check"]["accuracy_percent"] > 95


def test_a_campaign_holds_out_all_rounds_of_its_check(tmp_path: Path) -> None:
    assemble(tmp_path, FakeProfiler(latency), Log(), verify=8)[2].run()
    log, sizes = Log(), list[int]()
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), log, fitted(sizes), verify=20)
    assert loop.run().converged
    assert log.checks == [12]
    assert store.held_out() == {a.key for number in (1, 2) for a in store.plan()[number]}
    assert max(sizes) == 40
    assert log.rounds[-1]["check"]["models"] == 20


def test_a_campaign_broken_off_in_its_check_goes_on(tmp_path: Path) -> None:
    class BrokenOffError(Exception): ...

    log = Log()

    def break_off() -> None:
        if len(log.blocks) == 5:
            raise BrokenOffError

    log.on_block_do = break_off
    with pytest.raises(BrokenOffError):
        assemble(tmp_path, FakeProfiler(latency), log, verify=20)[2].run()
    log = Log()
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), log, verify=20)
    assert loop.run().converged
    assert len(log.blocks) == 1
    assert sorted(store.plan()) == [-1, 0, 1]
    assert log.rounds[-1]["check"]["models"] == 20


def test_what_fails_its_check_is_trained_on(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def slow_at_first_check(model: Model) -> float:
        number = seen.setdefault(model.model_id, len(seen))
        return latency(model) * (3 if 44 <= number < 52 else 1)  # 40 and 4 references before

    store, _, loop = assemble(
        tmp_path, FakeProfiler(slow_at_first_check), Log(), verify=8, max_models=100
    )
    loop.run()
    assert store.checks() == {1}
    assert len(store.plan()[2]) == 20
    assert store.held_out() == set()


def test_older_campaigns_are_not_checked_when_they_resume(tmp_path: Path) -> None:
    settings = esm_host.Settings("pi4").to_json()
    del settings["verify"], settings["budget_s"]
    assert esm_host.Settings.from_json(settings).verify == 0


def test_the_interval_of_a_check_narrows_with_its_models() -> None:
    few, many = (Check.of(np.tile([0.02, -0.04], n)) for n in (4, 40))
    assert few.accuracy_percent == many.accuracy_percent == pytest.approx(97)
    for low, check in ((96, many), (0, few)):
        assert check.low_percent is not None
        assert check.high_percent is not None
        assert low < check.low_percent < 97 < check.high_percent < 100
    assert Check.of(np.array([0.05])) == Check(1, 95.0, None, None)
