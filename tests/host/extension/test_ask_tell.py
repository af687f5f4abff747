"""The loop that asks and is told: for measuring loops of one's own, without devices and files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esm_host
from esm_host.extension.training import Learner
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from tests.host.fake_campaign import SPACE, ByDepth

BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 4)
DOCS = Path(__file__).parents[3] / "docs" / "python.md"


def sampling(**changes: Any) -> esm_host.SamplingSettings:
    return esm_host.SamplingSettings(
        **{
            "initial": 40,
            "step": 20,
            "bins": 4,
            "max_models": 80,
            "verify": 0,
            "sampling": "balanced",
            **changes,
        }
    )


def measured(architectures: Sequence[Architecture], erratic_from: int = 99) -> list[float]:
    """All the same, but for deep architectures, which nothing predicts."""
    chance = [int(a.key[:8], 16) % 1000 / 1000 for a in architectures]
    return [
        10 * (0.6 + 0.8 * share) if a.depth >= erratic_from else 10.0
        for a, share in zip(architectures, chance, strict=True)
    ]


def learner(make: type[ByDepth] = ByDepth) -> Learner:
    training = esm_host.TrainingSettings(encoding="statistical")
    return Learner(training.encoder(SPACE), lambda member: make(), training)


def loop_by_depth(**changes: Any) -> esm_host.Loop:
    return esm_host.Loop(SPACE, sampling(**changes), learner=learner())


def test_the_example_runs() -> None:
    section = DOCS.read_text().partition("## A measuring loop of your own")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```", section.partition("\n## ")[0], re.M | re.S)
    names: dict[str, Any] = {"esm_host": esm_host}
    exec(code, names)
    loop, space = names["loop"], names["space"]
    assert loop.converged
    assert loop.accuracy_percent > 90
    assert f"'{loop.reason}'" in code
    some = space.decode(space.showcase())
    truth = np.array([names["measure"](a) for a in some])
    assert np.abs(loop.predict(some) / truth - 1).mean() < 0.2


def test_it_asks_for_more_where_it_is_not_accurate() -> None:
    loop = loop_by_depth()
    first = loop.ask()
    assert np.bincount(BINS.of(np.array([a.depth for a in first]))).tolist() == [10] * 4
    loop.tell(first, measured(first, erratic_from=BINS.depths(3)[0]))
    assert not loop.converged
    second = loop.ask()
    assert not {a.key for a in first} & {a.key for a in second}
    counts = np.bincount(BINS.of(np.array([a.depth for a in second])), minlength=4)
    assert counts.tolist() == [2, 1, 1, 16]


def test_it_asks_again_for_what_it_was_not_told() -> None:
    loop = loop_by_depth()
    first = loop.ask()
    assert loop.ask() == first
    loop.tell(first[:30], measured(first[:30]))
    assert loop.ask() == first[30:]
    assert loop.reason == ""
    loop.tell(first[30:], [np.nan] * 10)
    assert loop.ask() == []
    assert loop.reason == "the target accuracy is reached"
    assert loop.accuracy_percent == 100


def test_it_ends_at_the_budget() -> None:
    loop = loop_by_depth(max_models=50)
    while architectures := loop.ask():
        loop.tell(architectures, measured(architectures, erratic_from=0))
    assert [len(architectures) for architectures in loop.rounds] == [40, 10]
    assert loop.reason == "max_models 50 is reached"
    assert not loop.converged


def test_it_ends_with_the_search_space(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_by_depth()
    first = loop.ask()
    loop.tell(first, measured(first, erratic_from=0))
    monkeypatch.setattr(BalancedSampler, "sample", lambda *_: [])
    assert loop.ask() == []
    assert loop.reason == "the search space has no more architectures"


@pytest.mark.parametrize("extension", ["balanced", "cost-aware"])
def test_a_new_loop_goes_on_where_another_was(extension: str) -> None:
    one = loop_by_depth(extension=extension)
    told: list[Architecture] = []
    for _ in range(2):
        asked = one.ask()
        one.tell(asked, measured(asked, erratic_from=15))
        told += asked
    other = loop_by_depth(extension=extension)
    other.restore(one.rounds)
    other.tell(told, measured(told, erratic_from=15))
    assert other.ask() == one.ask() != []


def test_wide_intervals_count_less() -> None:
    weights: list[np.ndarray] = []

    class Weighed(ByDepth):
        def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weight: np.ndarray) -> None:
            weights.append(weight)
            super()._fit(encodings, latency_ms, weight)

    loop = esm_host.Loop(SPACE, sampling(), learner=learner(Weighed))
    first = loop.ask()
    loop.tell(first, measured(first), [0.5] * 20 + [0.01] * 20)
    assert loop.predictor is loop.predictor
    (weight,) = weights
    assert (weight[:20] * 10 < weight[20:]).all()
    loop.tell(first[:1], [7.0])  # replaces, and does not repeat
    assert loop.predictor is not None
    assert len(weights[-1]) == 40


@pytest.mark.parametrize(
    ("latency_ms", "interval", "message"),
    [
        ([1.0], None, r"^latency_ms has the shape \(1,\): give 2 values"),
        ([1.0, -1.0], None, "^latency_ms: give positive milliseconds"),
        ([1.0, np.inf], None, "^latency_ms: give positive milliseconds"),
        ([1.0, 1.0], [0.1, -0.1], "^interval: give shares"),
    ],
)
def test_what_makes_no_sense_is_named(
    latency_ms: list[float], interval: list[float] | None, message: str
) -> None:
    loop = loop_by_depth()
    with pytest.raises(esm_host.UsageError, match=message):
        loop.tell(loop.ask()[:2], latency_ms, interval)


def test_what_is_not_of_the_space_is_refused() -> None:
    (other,) = esm_host.load_space("fbnet").decode(esm_host.load_space("fbnet").showcase()[:1])
    with pytest.raises(esm_host.ModelsError, match="space 'fbnet', not 'resnet'"):
        loop_by_depth().tell([other], [1.0])


def test_too_little_to_learn_from_is_an_error() -> None:
    loop = loop_by_depth()
    first = loop.ask()
    loop.tell(first, [1.0] * 5 + [np.nan] * 35)
    with pytest.raises(esm_host.UsageError, match="5 of 40 architectures have a latency: too few"):
        loop.ask()


def test_other_devices_are_of_campaigns() -> None:
    with pytest.raises(esm_host.UsageError, match=r"^warm_start needs a campaign"):
        esm_host.Loop(SPACE, training=esm_host.TrainingSettings(warm_start="all"))


def test_a_part_of_the_settings_checks_its_own() -> None:
    for make, message in (
        (lambda: esm_host.SamplingSettings(initial=5), "^initial 5 is outside 10"),
        (lambda: esm_host.TrainingSettings(folds=1), "^folds 1 is outside 2"),
        (lambda: esm_host.MeasuringSettings("pi4", block_size=0), "^block_size 0 is outside 1"),
        (lambda: esm_host.SamplingSettings(seed=-1), "^seed -1 is outside"),
        (lambda: esm_host.Settings("pi4", sampler="random"), "^sampler belongs to a transfer"),
        (lambda: esm_host.Settings("pi4", held_out=4), "^held_out belongs to a transfer"),
    ):
        with pytest.raises(esm_host.UsageError, match=message):
            make()


def test_the_whole_is_its_four_parts() -> None:
    whole = esm_host.Settings("pi4", space="fbnet", step=7, folds=3, block_size=9)
    for part in (
        esm_host.SpaceSettings(space="fbnet"),
        esm_host.SamplingSettings(step=7),
        esm_host.TrainingSettings(folds=3),
        esm_host.MeasuringSettings("pi4", block_size=9),
    ):
        assert isinstance(whole, type(part))
        assert vars(part).items() <= vars(whole).items()
