"""Train, evaluate, extend: where it measures next, when it stops, and how it goes on."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esm_host.arguments import on_command_line
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import DeviceError, UsageError
from esm_host.extension.allocate import by_shortfall
from esm_host.extension.campaign_loop import Outcome
from esm_host.predictors.base import Predictor
from esm_host.predictors.mlp import MLPPredictor
from esm_host.sampling.bins import DepthBins
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Failure, FailureKind, Model
from tests.host.fake_campaign import SETTINGS, SPACE, ByDepth, Log, assemble, latency

BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 4)


def erratic_when_deep(model: Model) -> float:
    """Predictable but for the deepest networks."""
    value = latency(model)
    if model.size_bytes > 31_500:
        value *= 1 + 0.8 * (int(model.model_id, 16) % 1000 / 1000 - 0.5)
    return value


def test_an_accurate_predictor_ends_it_after_the_first_round(tmp_path: Path) -> None:
    log = Log()
    _, _, loop = assemble(tmp_path, FakeProfiler(latency), log)
    outcome = loop.run()
    assert outcome.converged
    assert len(log.rounds) == 1
    assert log.rounds[0]["measured_models"] == 40
    assert [entry["samples"] for entry in log.rounds[0]["bins"]] == [10] * 4
    assert outcome.predictor.predict(np.zeros((1, 36), np.float32)).shape == (1,), (
        "the predictor is ready to use"
    )


def test_extension_goes_where_the_accuracy_is_low(tmp_path: Path) -> None:
    log = Log()
    store, _, loop = assemble(
        tmp_path, FakeProfiler(erratic_when_deep), log, max_models=80, step=40
    )
    outcome = loop.run()
    assert not outcome.converged
    passing = [e["accuracy_percent"] >= 95 for e in log.rounds[0]["bins"]]
    assert passing == [True, True, True, False]
    added = BINS.of(np.array([a.depth for a in store.plan()[1]]))
    assert np.bincount(added, minlength=4).tolist() == [3, 3, 2, 32]


def test_it_parses_no_architecture_that_it_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(Architecture, "from_json", parsed.append)
    _, _, loop = assemble(tmp_path, FakeProfiler(latency), Log(), max_models=60)
    loop.run()
    assert parsed == []


def test_it_stops_at_the_budget_exactly(tmp_path: Path) -> None:
    log = Log()
    _, _, loop = assemble(tmp_path, FakeProfiler(erratic_when_deep), log, max_models=73)
    outcome = loop.run()
    assert not outcome.converged
    assert "--max-models 73" in on_command_line(outcome.reason)
    assert [r["measured_models"] for r in log.rounds] == [40, 60, 73]


def test_overall_accuracy_may_be_enough(tmp_path: Path) -> None:
    log = Log()
    _, _, loop = assemble(
        tmp_path,
        FakeProfiler(erratic_when_deep),
        log,
        judge="overall",
        target_accuracy_percent=90.0,
    )
    assert loop.run().converged
    assert min(e["accuracy_percent"] for e in log.rounds[-1]["bins"]) < 90


def test_random_sampling_extends_at_random(tmp_path: Path) -> None:
    log = Log()
    store, _, loop = assemble(
        tmp_path, FakeProfiler(erratic_when_deep), log, sampling="random", max_models=60
    )
    loop.run()
    depths = np.array([a.depth for a in store.plan()[1]])
    assert 12 < depths.mean() < 20


def test_the_seed_decides_what_is_measured(tmp_path: Path) -> None:
    plans = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        store, _, loop = assemble(
            tmp_path / name, FakeProfiler(erratic_when_deep), Log(), seed=seed, max_models=60
        )
        loop.run()
        plans.append(store.plan())
    assert plans[0] == plans[1]
    assert plans[0][0] != plans[2][0]


class BrokenOffError(Exception):
    pass


@pytest.fixture(scope="module", params=["balanced", "cost-aware"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Store, Outcome]:
    """Settings, store and outcome of a campaign of 4, 2 and 2 blocks that was never broken off."""
    changes = {"max_models": 80, "extension": request.param}
    device = FakeProfiler(erratic_when_deep)
    store, _, loop = assemble(tmp_path_factory.mktemp("whole"), device, Log(), **changes)
    return changes, store, loop.run()


@pytest.mark.parametrize(
    "after_blocks",
    [
        pytest.param(number, marks=[pytest.mark.faults] * (number not in (1, 4, 5, 8)))
        for number in range(1, 9)
    ],
)
def test_broken_off_anywhere_it_goes_on_and_measures_nothing_twice(
    tmp_path: Path, after_blocks: int, whole: tuple[dict[str, Any], Store, Outcome]
) -> None:
    changes, expected_store, expected = whole
    log = Log()

    def break_off() -> None:
        if len(log.blocks) == after_blocks:
            raise BrokenOffError

    log.on_block_do = break_off
    first = FakeProfiler(erratic_when_deep)
    _, _, loop = assemble(tmp_path, first, log, **changes)
    with pytest.raises(BrokenOffError):
        loop.run()
    second = FakeProfiler(erratic_when_deep)
    store, _, loop = assemble(tmp_path, second, Log(), **changes)
    outcome = loop.run()

    assert store.plan() == expected_store.plan()
    np.testing.assert_allclose(outcome.dataset.latency_ms, expected.dataset.latency_ms)
    np.testing.assert_allclose(outcome.predicted_ms, expected.predicted_ms)
    ids = [block.block_id for block in first.blocks + second.blocks]
    assert sorted(ids) == sorted(block.block_id for block in store.blocks())
    assert len(ids) == len(set(ids)) == 8


@pytest.mark.parametrize("extension", ["balanced", "cost-aware"])
def test_broken_off_before_it_planned_it_plans_the_same(tmp_path: Path, extension: str) -> None:
    seen: set[int] = set()

    class BreaksOff(Log):
        def on_evaluated(self, result: dict[str, Any]) -> None:
            if result["measured_models"] not in seen:  # else it is only judged anew
                seen.add(result["measured_models"])
                raise BrokenOffError

    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    changes: dict[str, Any] = {"max_models": 80, "extension": extension}
    whole, _, loop = assemble(
        tmp_path / "whole", FakeProfiler(erratic_when_deep), Log(), quick_network, **changes
    )
    loop.run()
    for _ in range(3):
        profiler = FakeProfiler(erratic_when_deep)
        store, _, loop = assemble(
            tmp_path / "broken", profiler, BreaksOff(), quick_network, **changes
        )
        with pytest.raises(BrokenOffError):
            loop.run()
    assert store.plan() == whole.plan()
    assert len(whole.plan()) == 4, "references, and three rounds"


def quick_network() -> Predictor:
    return MLPPredictor(epochs=1, min_steps=20)


def test_the_cost_aware_extension_asks_about_what_is_unsure(tmp_path: Path) -> None:
    log = Log()
    store, _, loop = assemble(
        tmp_path,
        FakeProfiler(erratic_when_deep),
        log,
        max_models=80,
        step=40,
        extension="cost-aware",
    )
    loop.run()
    entries = log.rounds[0]["bins"]
    bins = BINS.of(np.array([a.depth for a in store.plan()[1]]))
    quotas = by_shortfall(40, [entry["accuracy_percent"] for entry in entries], 95.0)
    assert np.bincount(bins, minlength=4).tolist() == quotas
    assert quotas[3] == max(quotas) > 30
    # This predictor is as unsure of all architectures of one depth: the depth of which it is
    # least sure comes first, where chance would spread the bin's share over its depths.
    by_chance, _, loop = assemble(
        folder_in(tmp_path), FakeProfiler(erratic_when_deep), Log(), max_models=80, step=40
    )
    loop.run()

    def spread(plan: list[Architecture]) -> int:
        return max(Counter(a.depth for a in plan if a.depth >= BINS.depths(3)[0]).values())

    assert spread(store.plan()[1]) > spread(by_chance.plan()[1])


def folder_in(path: Path) -> Path:
    (path / "other").mkdir()
    return path / "other"


def test_a_finished_campaign_goes_on_when_more_is_asked_of_it(tmp_path: Path) -> None:
    profiler = FakeProfiler(erratic_when_deep)
    _, _, loop = assemble(tmp_path, profiler, Log(), max_models=60)
    assert on_command_line(loop.run().reason).startswith("--max-models 60")
    blocks = len(profiler.blocks)
    _, _, loop = assemble(tmp_path, profiler, Log(), max_models=60)
    assert not loop.run().converged
    assert len(profiler.blocks) == blocks, "nothing to do"
    log = Log()
    _, _, loop = assemble(tmp_path, profiler, log, max_models=100)
    loop.run()
    assert log.rounds[-1]["measured_models"] == 100
    _, _, loop = assemble(tmp_path, profiler, Log(), max_models=100, target_accuracy_percent=10.0)
    assert loop.run().converged


def test_too_few_measurable_models_are_an_error_with_a_cause(tmp_path: Path) -> None:
    def only_references(model: Model) -> float | Failure:
        if model.model_id in references:
            return latency(model)
        return Failure(FailureKind.TIMEOUT, "too slow")

    store, _, loop = assemble(tmp_path, FakeProfiler(only_references), Log())
    references = {a.key for a in store.plan()[REFERENCE_ROUND]}
    with pytest.raises(DeviceError, match="too few to learn from"):
        loop.run()


def test_a_finished_campaign_that_trusts_too_little_is_an_error_with_a_cause(
    tmp_path: Path,
) -> None:
    assemble(tmp_path, FakeProfiler(latency), Log(), max_models=40)[2].run()
    _, _, loop = assemble(
        tmp_path, FakeProfiler(latency), Log(), max_models=40, train_on="throttled"
    )
    with pytest.raises(DeviceError, match="0 of them with a verdict that train_on accepts"):
        loop.run()


def test_predictors_learn_from_trusted_numbers_only_and_may_weigh_them(tmp_path: Path) -> None:
    """Half of the blocks meet a reference that strays; what they say is left out."""
    weights: list[np.ndarray] = []

    class Weighed(ByDepth):
        def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weight: np.ndarray) -> None:
            weights.append(weight)
            super()._fit(encodings, latency_ms, weight)

    def straying(model: Model) -> float:
        bad = len(device.blocks) - 1 in (1, 4, 5)
        reference = model.model_id == store.plan()[REFERENCE_ROUND][0].key
        return latency(model) * (1.3 if bad and reference else 1)

    device = FakeProfiler(straying, noise=0.01)
    settings = {"max_models": 40, "train_on": "stable", "weights": "interval"}
    store, _, loop = assemble(tmp_path, device, Log(), Weighed, **settings)
    outcome = loop.run()
    result = store.rounds()[-1]
    assert result["measured_models"] == 40
    assert result["trusted_models"] == len(outcome.dataset) == 30
    assert result["verdicts"]["noisy"] == 10
    assert sum(entry["samples"] for entry in result["bins"]) == 30
    assert all(len(np.unique(weight)) > 1 for weight in weights)

    trusting = {**settings, "train_on": "stable,noisy"}
    store, _, loop = assemble(tmp_path, device, Log(), **trusting)
    assert len(loop.run().dataset) == 40
    again = store.rounds()[-1]
    assert again["trusted_models"] == sum(entry["samples"] for entry in again["bins"]) == 40
    assert again["qc"] == result["qc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_on": "stable,calm"}, "^train_on.*unknown verdict 'calm'.*choose stable"),
        ({"train_on": " , "}, "^train_on names no verdict"),
        ({"weights": "heavy"}, "^unknown weights 'heavy': choose equal, interval"),
    ],
)
def test_settings_of_trust_are_checked(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **changes)
