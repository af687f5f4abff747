"""Loops that choose what they measure from the first model on."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esm_host
from esm_host.errors import UsageError
from esm_host.extension.training import Learner
from esm_host.sampling import make_sampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.informative import InformativeSampler
from esm_models.architecture import Architecture
from tests.host.fake_campaign import SPACE, ByDepth

BINS = DepthBins.by_default(SPACE.min_depth, SPACE.max_depth)
COST_MS = np.random.default_rng(0).uniform(0.2, 1.0, (SPACE.unit_count, len(SPACE.options)))


def measure(architectures: Sequence[Architecture]) -> np.ndarray:
    """A cost of every block, by its unit and its option, with noise of 1 %."""
    codes = SPACE.blocks_of(SPACE.encode(architectures))
    units = np.arange(SPACE.unit_count)[:, None]
    exact = np.where(codes >= 0, COST_MS[units, codes], 0).sum(axis=(1, 2)) + 0.3
    noise = [np.random.default_rng(int(a.key[:8], 16)).normal(0, 0.01) for a in architectures]
    return np.asarray(exact * np.exp(noise))


def choosing(**changes: Any) -> esm_host.SamplingSettings:
    return esm_host.SamplingSettings(
        **{"sampling": "informative", "max_models": 200, "verify": 0, **changes}
    )


def run(
    loop: esm_host.Loop, of: Callable[[Sequence[Architecture]], np.ndarray] = measure
) -> esm_host.Loop:
    while architectures := loop.ask():
        loop.tell(architectures, of(architectures))
    return loop


def depths(architectures: Sequence[Architecture]) -> np.ndarray:
    return BINS.of(np.array([a.depth for a in architectures]))


def test_every_bin_reaches_the_target_with_few_models() -> None:
    loop = run(esm_host.Loop(SPACE, choosing(target_accuracy_percent=96.0)))
    assert loop.converged
    assert 40 <= sum(map(len, loop.rounds)) <= 120
    sampler = make_sampler("balanced", SPACE, BINS)
    for each in range(BINS.count):
        others = sampler.sample(50, np.random.default_rng(each), each)
        errors = np.abs(loop.predict(others) / measure(others) - 1)
        assert 100 - 100 * errors.mean() >= 96


def test_the_first_round_has_models_of_every_bin() -> None:
    first = esm_host.Loop(SPACE, choosing(initial=23)).ask()
    assert sorted(np.bincount(depths(first)).tolist()) == [4, 4, 5, 5, 5]
    assert len({a.key for a in first}) == 23


def test_one_round_is_too_few_to_trust() -> None:
    loop = esm_host.Loop(SPACE, choosing(target_accuracy_percent=1.0))
    assert len(run(loop).rounds) == 2


def test_a_bin_passes_by_its_lower_bound() -> None:
    loop = run(esm_host.Loop(SPACE, choosing(target_accuracy_percent=96.0)))
    bins = loop.evaluation.bins
    lower = [each.lower_percent for each in bins]
    assert all(
        bound is not None and 96 <= bound < each.accuracy_percent
        for bound, each in zip(lower, bins, strict=True)
    )
    sure = esm_host.Loop(SPACE, choosing(target_accuracy_percent=96.0, confidence_percent=99.0))
    sure.restore(loop.rounds)
    told = [a for architectures in loop.rounds for a in architectures]
    sure.tell(told, measure(told))
    surer = [each.lower_percent for each in sure.evaluation.bins]
    assert all(a is not None and b is not None and a < b for a, b in zip(surer, lower, strict=True))


def test_a_restored_loop_goes_on_as_the_first() -> None:
    one = esm_host.Loop(SPACE, choosing(target_accuracy_percent=99.9))
    for _ in range(2):
        asked = one.ask()
        one.tell(asked, measure(asked))
    other = esm_host.Loop(SPACE, choosing(target_accuracy_percent=99.9))
    other.restore(one.rounds)
    told = [a for architectures in one.rounds for a in architectures]
    other.tell(told, measure(told))
    assert other.ask() == one.ask() != []


@pytest.mark.parametrize("judge", ["bins", "overall"])
def test_predictors_that_do_not_know_their_errors_learn_from_chosen_samples(judge: str) -> None:
    training = esm_host.TrainingSettings(encoding="statistical")
    learner = Learner(training.encoder(SPACE), lambda member: ByDepth(), training)
    loop = esm_host.Loop(
        SPACE, choosing(target_accuracy_percent=70.0, judge=judge), learner=learner
    )
    assert run(loop).converged
    assert all(each.lower_percent is not None for each in loop.evaluation.bins)


def test_samplers_that_draw_keep_their_estimates_and_steps() -> None:
    drawn = esm_host.SamplingSettings(sampling="balanced")
    assert (drawn.initial, drawn.step) == (300, 100)
    chosen = choosing()
    assert (chosen.initial, chosen.step) == (20, 20)
    loop = esm_host.Loop(
        SPACE, esm_host.SamplingSettings(sampling="balanced", initial=20, max_models=20)
    )
    assert all(each.lower_percent is None for each in run(loop).evaluation.bins)


def test_cost_aware_steps_need_drawn_samples() -> None:
    with pytest.raises(UsageError, match="cost-aware chooses among random samples"):
        choosing(extension="cost-aware")


def test_a_sampler_of_ones_own_draws_the_candidates() -> None:
    class Shallow(InformativeSampler):
        def sample(
            self,
            n: int,
            rng: np.random.Generator,
            bin_index: int | None = None,
            exclude: Collection[str] = (),
        ) -> list[Architecture]:
            drawn = super().sample(n, rng, bin_index, exclude)
            return [a for a in drawn if a.depth <= BINS.depths(1)[-1]]

    settings = choosing(max_models=40, target_accuracy_percent=99.9, judge="overall")
    loop = run(esm_host.Loop(SPACE, settings, sampler=Shallow(SPACE, BINS)))
    assert max(depths(loop.rounds[0])) == 1
    assert all(max(depths(architectures)) <= 1 for architectures in loop.rounds)


def test_a_sampler_that_chooses_draws_by_bin(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from esm_host.sampling.random import RandomSampler\n"
        "class Own(RandomSampler):\n    chooses = True\n"
    )
    with pytest.raises(UsageError, match=r"own.py:Own: chooses needs by_bin, set both to True"):
        choosing(sampling=f"{path}:Own")
