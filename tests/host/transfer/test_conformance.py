"""What every few-shot method does.

Devices are made up: each takes a time of its own for every operation of NAS-Bench-201, longer
where heavy operations meet, and something for all the rest. A new device is like a mixture of two
that are known, but slower.
"""

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from esm_host.encoding.codes import CodesEncoder
from esm_host.errors import UsageError
from esm_host.transfer import METHODS, make_method, method_class
from esm_host.transfer.adapted import AdaptedPredictor
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace
from esm_models.spaces import SPACES, load_space

# What makes slow methods quick.
QUICK: dict[str, dict[str, Any]] = {
    "scratch": {"predictor": "gp", "params": {"most": 100}},
    "brp-nas": {"params": {"min_steps": 100, "epochs": 1}},
    "help": {"episodes": 120, "learning_rate": 3e-3, "width": 32, "query": 50, "draws": 2},
    "nasflat": {"epochs": 15, "transfer_epochs": 20},
    "multipredict": {"epochs": 20, "learning_rate": 3e-3, "joint": 100},
}
# Those that take seconds to learn have a command of their own.
SLOW = ("adaproxy-network", "brp-nas", "help", "multipredict", "nasflat")

SPACE = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES: Codes = np.stack(
    np.unravel_index(RNG.permutation(5**6)[:400], (5,) * 6), axis=-1, dtype=np.int16
)[:, None]
COST_MS = {
    "none": 0.0,
    "skip_connect": 0.05,
    "avg_pool_3x3": 0.2,
    "nor_conv_1x1": 0.3,
    "nor_conv_3x3": 0.6,
}


def device(factors: np.ndarray, rest_ms: float = 1.0) -> np.ndarray:
    """Latencies of all codes, ms, where operations take that many times the usual."""
    cost_ms = np.array([COST_MS[option.label] for option in SPACE.options]) * factors
    heavy = np.isin(CODES[:, 0], (3, 4)).sum(axis=1)
    return np.asarray(rest_ms + cost_ms[CODES[:, 0]].sum(axis=1) + 0.01 * heavy * (heavy - 1))


FACTORS = np.exp(0.4 * RNG.normal(size=(4, 5)))
KNOWN = [device(factors) for factors in FACTORS]
NEW = 3 * device((FACTORS[0] + FACTORS[1]) / 2)
OTHER = 0.2 * device(FACTORS[2] ** 2)
SOURCES = [
    Source(f"made-up/{number}", SPACE, CODES[:200], latency_ms[:200])
    for number, latency_ms in enumerate(KNOWN)
]
FEW, REST = slice(200, 225), slice(225, 400)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.predictors] * (name in SLOW)) for name in METHODS]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fresh(name: str, seed: int = 1) -> FewShotPredictor:
    return make_method(name, seed, **QUICK.get(name, {}))


@cache
def learnt(name: str) -> FewShotPredictor:
    """Learnt once: what a test adapts it to must not matter to the next."""
    return fresh(name).learn(SOURCES)


def correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    assert predicted.shape == truth.shape
    assert predicted.dtype == np.float64
    assert np.isfinite(predicted).all()
    return float(spearmanr(predicted, truth).statistic)


# What they learn


def test_ranks_a_new_device(name: str) -> None:
    predicted = learnt(name).adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    assert correlation(predicted, NEW[REST]) > 0.9


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_milliseconds_are_milliseconds_whatever_their_size(name: str, unit: float) -> None:
    method = learnt(name).adapt(CODES[FEW], unit * NEW[FEW])
    predicted = method.predict(CODES[REST])
    assert correlation(predicted, NEW[REST]) > 0.9
    if not method.absolute:
        return
    assert (predicted > 0).all()
    assert np.median(np.abs(predicted / (unit * NEW[REST]) - 1)) < 0.1


def test_predicting_the_mean_is_not_good_enough() -> None:
    error = np.median(np.abs(NEW[FEW].mean() / NEW[REST] - 1))
    assert error > 0.13


def test_the_same_seed_gives_the_same(name: str) -> None:
    first = learnt(name).adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    np.random.default_rng().normal()
    np.random.seed(None)
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    again = fresh(name).learn(SOURCES).adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    np.testing.assert_array_equal(again, first)


def test_one_device_after_the_other_each_from_what_was_learnt(name: str) -> None:
    method = learnt(name)
    alone = method.adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    other = method.adapt(CODES[FEW], OTHER[FEW]).predict(CODES[REST])
    again = method.adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    np.testing.assert_array_equal(again, alone)
    np.testing.assert_array_equal(method.adapt(CODES[FEW], OTHER[FEW]).predict(CODES[REST]), other)


def test_learning_again_forgets_what_it_knew(name: str) -> None:
    expected = learnt(name).adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    method = fresh(name).learn([Source("other", SPACE, CODES[:60], 5 * OTHER[:60])])
    method.adapt(CODES[FEW], OTHER[FEW])
    method.learn(SOURCES)
    with pytest.raises(ValueError, match="call adapt first"):
        method.predict(CODES[REST])
    again = method.adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    np.testing.assert_array_equal(again, expected)


def test_one_by_one_as_many_at_once(name: str) -> None:
    method = learnt(name).adapt(CODES[FEW], NEW[FEW])
    some = CODES[REST][:10]
    alone = np.concatenate([method.predict(codes[None]) for codes in some])
    np.testing.assert_allclose(alone, method.predict(some), rtol=1e-4)
    assert method.predict(CODES[:0]).shape == (0,)


def test_what_was_trained_need_not_be_trained_again(name: str) -> None:
    method = learnt(name)
    expected = method.adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    again = fresh(name).learn(SOURCES, method.trained()).adapt(CODES[FEW], NEW[FEW])
    np.testing.assert_array_equal(again.predict(CODES[REST]), expected)


def test_as_a_predictor_it_ranks_as_by_itself_and_in_milliseconds(name: str) -> None:
    alone = learnt(name).adapt(CODES[FEW], NEW[FEW]).predict(CODES[REST])
    encoder = CodesEncoder(SPACE)
    predictor = AdaptedPredictor(lambda: learnt(name))
    predictor.fit(encoder.encode_codes(CODES[FEW]), NEW[FEW])
    learnt(name).adapt(CODES[FEW], OTHER[FEW])  # which must not matter to it
    predicted = predictor.predict(encoder.encode_codes(CODES[REST]))
    assert correlation(predicted, alone) > 0.99
    assert np.median(np.abs(predicted / NEW[REST] - 1)) < 0.1


# Data of all kinds


def test_arguments_are_left_alone(name: str) -> None:
    codes, latency_ms = CODES.copy(), NEW.copy()
    sources = [Source("a", SPACE, codes[:60], latency_ms[:60])]
    fresh(name).learn(sources).adapt(codes[FEW], latency_ms[FEW]).predict(codes)
    np.testing.assert_array_equal(codes, CODES)
    np.testing.assert_array_equal(latency_ms, NEW)


def test_sources_need_not_have_the_same_architectures(name: str) -> None:
    sources = [
        Source("many", SPACE, CODES[:150], KNOWN[0][:150]),
        Source("few", SPACE, CODES[150:180], KNOWN[1][150:180]),
        Source("one", SPACE, CODES[180:181], KNOWN[2][180:181]),
        Source("constant", SPACE, CODES[:50], np.full(50, 3.0)),
        Source("twice", SPACE, np.repeat(CODES[:30], 2, axis=0), np.repeat(KNOWN[3][:30], 2)),
    ]
    method = fresh(name).learn(sources).adapt(CODES[FEW], NEW[FEW])
    assert np.isfinite(method.predict(CODES[REST])).all()


def test_as_few_samples_as_it_says(name: str) -> None:
    method = learnt(name)
    least = method.least_samples
    few = slice(200, 200 + least)
    predicted = method.adapt(CODES[few], NEW[few]).predict(CODES[REST])
    assert np.isfinite(predicted).all()
    if least > 1:
        with pytest.raises(ValueError, match=f"needs {least} or more"):
            method.adapt(CODES[: least - 1], NEW[: least - 1])


def test_many_samples(name: str) -> None:
    predicted = learnt(name).adapt(CODES[200:300], NEW[200:300]).predict(CODES[300:])
    assert correlation(predicted, NEW[300:]) > 0.9


def test_a_device_that_takes_the_same_for_all(name: str) -> None:
    method = learnt(name).adapt(CODES[FEW], np.full(25, 2.0))
    predicted = method.predict(CODES[REST])
    assert np.isfinite(predicted).all()
    if method.absolute:
        assert np.median(predicted) == pytest.approx(2, rel=0.1)


def test_architectures_measured_twice(name: str) -> None:
    codes, latency_ms = np.repeat(CODES[FEW], 2, axis=0), np.repeat(NEW[FEW], 2)
    noisy = latency_ms * np.tile([0.99, 1.01], 25)
    predicted = learnt(name).adapt(codes, noisy).predict(CODES[REST])
    assert correlation(predicted, NEW[REST]) > 0.9


def test_samples_that_the_sources_have_as_well(name: str) -> None:
    predicted = learnt(name).adapt(CODES[:25], NEW[:25]).predict(CODES[REST])
    assert correlation(predicted, NEW[REST]) > 0.9


@pytest.mark.parametrize("space", [load_space(each) for each in SPACES], ids=lambda s: s.name)
def test_every_space(name: str, space: SearchSpace) -> None:
    codes = drawn(space, 60)
    size = (codes >= 0).sum(axis=(1, 2)) + 1.0
    latency_ms = size * np.random.default_rng(1).uniform(0.8, 1.2, len(size))
    sources = [Source(str(n), space, codes[:40], latency_ms[:40] ** n) for n in (1, 2)]
    method = fresh(name).learn(sources).adapt(codes[40:50], latency_ms[40:50])
    predicted = method.predict(codes[50:])
    assert predicted.shape == (10,)
    assert np.isfinite(predicted).all()


def drawn(space: SearchSpace, count: int) -> Codes:
    from esm_host.sampling.random import RandomSampler
    from tests.helpers import depth_bins

    sampler = RandomSampler(space, depth_bins(space, 4))
    return space.encode(sampler.sample(count, np.random.default_rng(0)))


# Refusals


def test_nothing_learnt(name: str) -> None:
    with pytest.raises(ValueError, match="call learn first"):
        fresh(name).adapt(CODES[FEW], NEW[FEW])
    with pytest.raises(ValueError, match="call adapt first"):
        fresh(name).predict(CODES)


def test_no_sources(name: str) -> None:
    with pytest.raises(ValueError, match="no sources"):
        fresh(name).learn([])


def test_sources_of_two_spaces(name: str) -> None:
    space = load_space("fbnet")
    codes = drawn(space, 5)
    other = Source("elsewhere", space, codes, np.arange(5) + 1.0)
    method = fresh(name)
    with pytest.raises(ValueError, match="elsewhere is of another space"):
        method.learn([*SOURCES, other])
    with pytest.raises(ValueError, match="call learn first"):
        method.adapt(CODES[FEW], NEW[FEW])


@pytest.mark.parametrize(
    ("codes", "latency_ms", "message"),
    [
        (CODES[FEW, 0], NEW[FEW], "codes of nasbench201"),
        (CODES[FEW, :, :5], NEW[FEW], "codes of nasbench201"),
        (CODES[FEW], NEW[:24], "as many latencies"),
        (CODES[:0], NEW[:0], "at least one"),
        (CODES[FEW], np.where(np.arange(25) == 3, np.nan, NEW[FEW]), "positive, finite"),
        (CODES[FEW], np.where(np.arange(25) == 3, np.inf, NEW[FEW]), "positive, finite"),
        (CODES[FEW], np.where(np.arange(25) == 3, -1, NEW[FEW]), "positive, finite"),
        (CODES[FEW], np.where(np.arange(25) == 3, 0, NEW[FEW]), "positive, finite"),
    ],
)
def test_what_cannot_be_learnt_from(
    name: str, codes: Codes, latency_ms: np.ndarray, message: str
) -> None:
    method = learnt(name)
    with pytest.raises(ValueError, match=message) as refused:
        method.adapt(codes, latency_ms)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=message):
        fresh(name).learn([Source("bad", SPACE, codes, latency_ms)])


def test_codes_of_another_space_are_not_predicted(name: str) -> None:
    method = learnt(name).adapt(CODES[FEW], NEW[FEW])
    with pytest.raises(ValueError, match="codes of nasbench201"):
        method.predict(np.zeros((2, 7, 4), dtype=np.int16))


# By name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="did you mean 'layer-wise'"):
        method_class("layerwise")


def test_names_cost_no_torch() -> None:
    program = "import esm_host.transfer, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
