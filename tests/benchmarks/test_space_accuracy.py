"""Accuracy by space: what is measured with what, and figures, on a fake device."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.space_accuracy import (
    SCALES,
    Campaign,
    Scale,
    Sizes,
    checks,
    lines,
    measure,
    outcome,
    over_splits,
)
from esm_host import Watcher
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.transport.fake import FakeProfiler
from esm_models.spaces import load_space
from esm_protos.messages import Failure, FailureKind, Model

SPACE = load_space("mobilenetv3", resolution=32, width_mult=0.25)
BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 5)
SIZES = Sizes(models=40, held_out=10, splits=2, runs=10)


def latency(model: Model) -> float:
    return model.size_bytes / 1e4


def made_up(n: int, held_out: int, error: float = 0.0) -> Campaign:
    """Return models of one millisecond, the held-out ones predicted too long."""
    drawn = RandomSampler(SPACE, BINS).sample(n, np.random.default_rng(0))
    ones = np.ones(n)
    return Campaign(SPACE, BINS, drawn, ones, 0.02 * ones, (1 + error) * ones[:held_out])


@pytest.mark.parametrize("sampling", ["informative", "balanced"])
def test_every_block_has_models_of_both_kinds_mixed(tmp_path: Path, sampling: str) -> None:
    with closing(Store(tmp_path / "store.sqlite")) as store:
        campaign = measure(SPACE, SIZES, sampling, 0, FakeProfiler(latency), store, Watcher())
        plan, blocks = store.plan(), store.blocks()
    held = {a.key for a in campaign.architectures[campaign.held_out]}
    learnt = [a.key for a in campaign.architectures if a.key not in held]
    assert (len(held), len(learnt), len(set(learnt))) == (10, 40, 40)
    references = {a.key for a in plan.pop(REFERENCE_ROUND)}
    assert not references & {*held, *learnt}
    assert len(blocks) == len(plan) == 2
    for planned in plan.values():
        kinds = [a.key in held for a in planned]
        assert sum(kinds) == 5
        assert len(kinds) == 25
        assert kinds != sorted(kinds) != kinds[::-1], "in random order"
    depth = campaign.depth[campaign.held_out]
    assert np.bincount(campaign.bins.of(depth)).tolist() == [2] * 5


def test_held_out_latencies_have_no_effect_on_predictions(tmp_path: Path) -> None:
    """A device that is a hundred times slower on the models that are held out."""

    def campaign(name: str, slow: set[str]) -> Campaign:
        profiler = FakeProfiler(lambda m: latency(m) * (100 if m.model_id in slow else 1))
        with closing(Store(tmp_path / f"{name}.sqlite")) as store:
            return measure(SPACE, SIZES, "informative", 0, profiler, store, Watcher())

    equal = campaign("equal", set())
    slowed = campaign("slow", {a.key for a in equal.architectures[equal.held_out]})
    assert slowed.latency_ms[slowed.held_out].min() > 50 * equal.latency_ms.max()
    np.testing.assert_allclose(slowed.predicted_ms, equal.predicted_ms, rtol=1e-3)


def test_models_that_fail_are_left_out(tmp_path: Path) -> None:
    failure = Failure(FailureKind.UNSUPPORTED_OP, "no")
    profiler = FakeProfiler(lambda m: failure if m.model_id[0] in "01" else latency(m))
    with closing(Store(tmp_path / "store.sqlite")) as store:
        campaign = measure(SPACE, SIZES, "informative", 11, profiler, store, Watcher())
    assert 20 < len(campaign.architectures) < 50
    assert not any(a.key[0] in "01" for a in campaign.architectures)
    assert len(campaign.latency_ms) == len(campaign.interval) == len(campaign.architectures)
    assert np.isfinite(campaign.latency_ms).all()


def test_checks_are_by_bin_and_of_all() -> None:
    campaign = made_up(60, 40, error=0.03)
    found = checks(campaign)
    assert list(found) == ["8-9", "10-11", "12-13", "14-15", "16", "all"]
    assert found["all"].models == 40 == sum(each.models for each in found.values()) / 2
    assert found["all"].accuracy_percent == pytest.approx(97)
    assert "every bin has 96 %" in outcome("m", campaign, found, Scale(32, 0.25))
    assert "are below 98 %" in outcome("m", campaign, found, Scale(32, 0.25, 98.0))


def test_a_space_of_one_depth_has_one_row() -> None:
    space = load_space("fbnet", width_mult=0.25)
    drawn = RandomSampler(space, DepthBins(22, 22, 1)).sample(8, np.random.default_rng(0))
    ones = np.ones(8)
    campaign = Campaign(space, DepthBins(22, 22, 1), drawn, ones, 0.02 * ones, ones[:4])
    assert list(checks(campaign)) == ["all"]
    (row,) = lines("fbnet", campaign, checks(campaign), {"all": [97.0, 99.0]})
    assert row == "| `fbnet` | all | 4 | 1 to 1 | 100.0 % | 100.0 to 100.0 | 98.0 ± 1.4 % |"


def test_splits_judge_auto_on_other_models() -> None:
    campaign = made_up(60, 20)
    found = over_splits(campaign, 2)
    assert list(found) == list(checks(campaign))
    assert [len(each) for each in found.values()] == [2] * 6
    assert min(found["all"]) > 99.9  # equal latencies


@pytest.mark.parametrize("name", SCALES)
def test_the_table_has_spaces_that_load(name: str) -> None:
    scale = SCALES[name]
    space = load_space(name, resolution=scale.resolution, width_mult=scale.width_mult)
    assert space.build(space.extremes()[0])
