"""A block's latencies at the device's usual pace, and how far they are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_protos.estimates import (
    Estimate,
    Parts,
    Runs,
    _error,
    estimate_block,
    estimate_measured,
    estimate_references,
)
from esm_protos.messages import FailureKind, Measurement, MeasureSpec, UsualLatencies
from tests.protos.test_paces import BYTES, NAMES, USUAL, USUAL_NS, usuals

TRIM = 0.2


def runs(
    latency_ns: float,
    seed: int = 0,
    *,
    noise: float = 0.005,
    weight_bytes: int = 0,
    session_runs: tuple[int, ...] = (),
    name: str = "",
) -> Runs:
    rng = np.random.default_rng(seed)
    taken = np.round(latency_ns * np.exp(rng.normal(0, noise, 80))).astype(np.int64)
    return Runs(taken, np.arange(80) * 10**7 + seed, 4, weight_bytes, session_runs, name)


def references(*slower: float) -> list[Runs]:
    return [
        runs(latency * math.exp(by), 10 + seed, weight_bytes=size, name=name)
        for seed, (name, size, latency, by) in enumerate(
            zip(NAMES, BYTES, USUAL_NS, slower, strict=True)
        )
    ]


def test_a_slow_moment_is_taken_out_and_the_raw_latency_kept() -> None:
    models = [runs(5e6 * math.exp(0.2)), runs(5e6 * math.exp(0.2), 1, weight_bytes=30_000_000)]
    block = estimate_block(models, TRIM, True, references(0.2, 0.2, 0.2, 0.2), USUAL)
    for model in block.models:
        assert model.latency_ns == pytest.approx(5e6, rel=0.03)
        assert abs(model.latency_ns / 5e6 - 1) < model.interval
        assert model.raw_ns == pytest.approx(5e6 * math.exp(0.2), rel=0.01)
        assert 0 < model.within < model.interval
        assert 0 < model.parts.pace < model.interval


def test_the_first_block_on_a_device_is_not_corrected_and_has_a_wide_interval() -> None:
    model = runs(5e6)
    (first,) = estimate_block([model], TRIM, True, references(0, 0, 0, 0)).models
    (later,) = estimate_block([model], TRIM, True, references(0, 0, 0, 0), USUAL).models
    assert first.latency_ns == first.raw_ns
    assert first.shift is not None
    assert first.shift.value == 0
    assert first.interval > 2 * later.interval
    assert first.within == pytest.approx(later.within, rel=0.5)


def interrupted(reference: Runs, rng: np.random.Generator) -> Runs:
    """Another program is in the way of most runs, but not of the quickest of four."""
    longer = np.where(rng.random(80) < 0.9, rng.uniform(1.2, 3, 80), 1.0)
    longer[::4] = 1
    return replace(reference, latency_ns=(reference.latency_ns * longer).astype(np.int64))


def test_what_interrupts_a_reference_is_no_pace() -> None:
    """A model whose runs are too short to be interrupted keeps its latency."""
    rng = np.random.default_rng(3)
    first, *others = references(0, 0, 0, 0)
    model = runs(1e5)
    (calm,) = estimate_block([model], TRIM, True, [first, *others], USUAL).models
    (busy,) = estimate_block([model], TRIM, True, [interrupted(first, rng), *others], USUAL).models
    assert busy.latency_ns == pytest.approx(calm.latency_ns, rel=0.01)


def test_what_interrupts_a_model_is_in_its_interval() -> None:
    """How much it is interrupted differs from one moment to the next."""
    company = references(0, 0, 0, 0)
    calm, busy = runs(1e7), interrupted(runs(1e7), np.random.default_rng(3))
    (still,) = estimate_block([calm], TRIM, True, company, USUAL).models
    (held_up,) = estimate_block([busy], TRIM, True, company, USUAL).models
    assert held_up.parts.pace > max(3 * still.parts.pace, 0.05)


def test_a_model_that_left_early_is_known_by_its_own_runs() -> None:
    """Its visits, all in a tenth of the block, are of one batch, whose influences are nothing."""
    whole = runs(5e6, noise=0.05)
    early = replace(whole, start_ns=whole.start_ns // 10)
    (found,) = estimate_block([early], TRIM, True, references(0, 0, 0, 0), USUAL).models
    assert found.parts.own_runs is not None
    assert found.parts.runs >= found.parts.own_runs


def test_a_reference_that_failed_is_not_remembered() -> None:
    spec = MeasureSpec(runs=80, runs_per_visit=4)
    measured = Measurement(
        "arithmetic", latency_ns=runs(1e6).latency_ns, start_ns=runs(1e6).start_ns
    )
    failed = Measurement.failed("beyond", FailureKind.OUT_OF_MEMORY, "too little")
    assert list(estimate_references([failed, measured], spec)) == ["arithmetic"]


def test_sessions_that_differ_widen_the_interval() -> None:
    alike = runs(5e6, session_runs=(40, 40))
    latency = alike.latency_ns.copy()
    latency[40:] = latency[40:] * 12 // 10
    differ = Runs(latency, alike.start_ns, 4, 0, (40, 40))
    block = estimate_block([alike, differ], TRIM, False, references(0, 0, 0, 0), USUAL)
    assert block.models[1].parts.sessions > 2 * block.models[0].parts.sessions


def test_an_old_agents_result_has_the_interval_of_its_block() -> None:
    """It tells no references, sessions or weights."""
    spec = MeasureSpec(runs_per_visit=4, references=True, sessions=3)
    own = runs(5e6)
    (model,) = estimate_measured([Measurement("m", own.latency_ns, own.start_ns)], spec).models
    assert model.shift is None
    assert model.interval == model.within
    assert model.latency_ns == model.raw_ns


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_visits_that_agree_by_chance_are_not_believed_exactly(count: int) -> None:
    """References of a short block, a fifth slower than usual."""
    few = [
        Runs(
            each.latency_ns[: 4 * count],
            each.start_ns[: 4 * count],
            4,
            each.weight_bytes,
            (),
            each.name,
        )
        for each in references(0.2, 0.2, 0.2, 0.2)
    ]
    equal = [
        replace(each, latency_ns=np.full_like(each.latency_ns, each.latency_ns[0])) for each in few
    ]
    own = runs(5e6)
    (by_few,) = estimate_block([own], TRIM, True, few, USUAL).models
    (by_equal,) = estimate_block([own], TRIM, True, equal, USUAL).models
    (by_many,) = estimate_block([own], TRIM, True, references(0.2, 0.2, 0.2, 0.2), USUAL).models
    for each in (by_few, by_equal):
        assert each.shift is not None
        assert by_many.shift is not None
        assert each.shift.passing > 0.01
        assert each.shift.passing > 3 * by_many.shift.passing


def test_the_error_of_few_visits_is_about_right() -> None:
    rng = np.random.default_rng(0)
    unknown = Estimate(1.0, 1.0, Parts(math.inf))
    for count in (1, 2, 3, 4):
        visits = rng.normal(1, 0.1, (2000, count, 1))
        claimed = np.array([_error(unknown, each) for each in visits])
        wanted = 0.1 / math.sqrt(count)
        assert math.sqrt(np.mean(claimed**2)) == pytest.approx(wanted, rel=0.05)
        assert claimed.min() > wanted / 3


@pytest.mark.parametrize("spread", [10.0, 1e18])
def test_spreads_that_make_no_sense_are_bounded(spread: float) -> None:
    wild = UsualLatencies(
        NAMES, USUAL_NS, np.full((4, 4), spread), 20, 1e6, np.full((4, 4), spread)
    )
    (model,) = estimate_block([runs(5e6)], TRIM, True, references(0, 0, 0, 0), wild).models
    assert model.latency_ns == pytest.approx(5e6, rel=0.2)
    assert model.interval < 3


def test_the_latency_in_a_block_is_known_without_the_usual_pace() -> None:
    (model,) = estimate_block(
        [runs(5.5e6)], TRIM, True, references(0.1, 0.1, 0.1, 0.1), USUAL
    ).models
    here = model.in_block
    assert here.latency_ns == pytest.approx(5.5e6, rel=0.01)
    assert here.latency_ns > 1.05 * model.latency_ns
    assert here.interval == model.within < model.interval


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_history_of_another_device_is_not_believed(factor: float) -> None:
    foreign = UsualLatencies(NAMES, USUAL_NS * factor, USUAL.spread, 200, 1e6)
    block = estimate_block([runs(5e6)], TRIM, True, references(0, 0, 0, 0), foreign)
    (model,) = block.models
    assert model.latency_ns == model.raw_ns
    assert (model.parts.moments, model.shift and model.shift.value) == (0, 0)
    assert math.isfinite(model.interval)


arrays = st.lists(st.integers(1, 10**12), min_size=1, max_size=12)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(arrays, st.integers(0, 10**9)), max_size=5),
    st.lists(st.tuples(arrays, st.sampled_from([*NAMES, "other"])), max_size=5),
    usuals(),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_runs_give_finite_latencies(
    models, company, usual: UsualLatencies | None, per_visit: int, common: bool
) -> None:
    def drawn(values, weights: int, name: str = "") -> Runs:
        first = len(values) // 2
        sessions = (first, len(values) - first) if first else ()
        taken = np.array(values, dtype=np.int64)
        return Runs(taken, np.arange(len(values)) * 7, per_visit, weights, sessions, name)

    block = estimate_block(
        [drawn(values, weights, f"m{n}") for n, (values, weights) in enumerate(models)],
        TRIM,
        common,
        [drawn(values, len(name) * 10**6, name) for values, name in company],
        usual,
        {"m0": (1e6, 0.01)},
    )
    assert len(block.models) == len(models)
    for model in block.models:
        assert 0 < model.latency_ns < math.inf
        assert model.interval >= model.within >= 0
        assert not math.isnan(model.interval)
