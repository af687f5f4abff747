"""A device's paces, told by its reference models: what is corrected, and what stays unknown."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_protos.messages import UsualLatencies
from esm_protos.paces import KnownModel, Paces, Reading, usual_latencies

NAMES = ("arithmetic", "middle", "large", "beyond")
BYTES = (400_000, 7_000_000, 17_000_000, 67_000_000)
USUAL_NS = np.array([1e6, 8e5, 2e6, 9e6])
RNG = np.random.default_rng(0)
LOGS = RNG.normal(0, 0.03, (400, 1)) + RNG.normal(0, 0.05, (400, 1)) * [0, 0.3, 0.8, 1]
USUAL = usual_latencies(
    NAMES, np.arange(400) * 300.0, USUAL_NS * np.exp(LOGS - np.median(LOGS, axis=0))
)


def readings(*slower: float, error: float = 0.002) -> list[Reading]:
    """What the references take where each is so much slower than usual, as a logarithm."""
    return [
        Reading(name, size, latency * math.exp(by), error)
        for name, size, latency, by in zip(NAMES, BYTES, USUAL_NS, slower, strict=True)
    ]


sizes = st.one_of(st.just(0), st.integers(1, 10**10))
latencies = st.floats(1, 1e12)
names = st.sampled_from([*NAMES, "other", "another"])


@st.composite
def usuals(draw: st.DrawFn) -> UsualLatencies | None:
    if draw(st.booleans()):
        return None
    known = draw(st.lists(names, max_size=5, unique=True))
    count = len(known)
    spreads = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 1e15))
    return UsualLatencies(
        tuple(known),
        np.array(draw(st.lists(latencies, min_size=count, max_size=count))),
        np.array(draw(st.lists(spreads, min_size=count**2, max_size=count**2))).reshape(
            count, count
        ),
        draw(st.integers(0, 2000)),
        draw(st.floats(0, 1e9)),
    )


@given(
    st.lists(st.builds(Reading, names, sizes, latencies, st.floats(0, 10)), max_size=6),
    usuals(),
    st.lists(
        st.builds(KnownModel, sizes, latencies, st.floats(-20, 20), st.floats(0, 10)), max_size=3
    ),
    sizes,
    latencies,
)
def test_whatever_is_known_the_figures_are_finite(told, usual, known, size, latency) -> None:
    paces = Paces(told, usual, known)
    assert np.isfinite(paces.values).all()
    feels = paces.sensitivities(size, latency)
    assert np.isfinite(feels).all()
    if len(feels):
        assert feels.sum() == pytest.approx(1)
    shift = paces.shift(size, latency)
    assert all(map(math.isfinite, (shift.value, shift.error, shift.lasting, shift.memory)))
    assert shift.error >= 0
    assert shift.lasting >= 0
    assert 0 < latency * math.exp(-shift.value) < math.inf
    assert math.isfinite(paces.session_error(size, latency))


@pytest.mark.parametrize("size", [0, 10_000_000, 200_000_000])
def test_without_a_history_nothing_is_corrected_and_much_is_unknown(size: int) -> None:
    """Nor with that of other reference models."""
    foreign = UsualLatencies(("other",), np.array([1e6]), np.array([[0.01]]), 1000, 1e6)
    nothing = UsualLatencies(NAMES, USUAL_NS, np.zeros((4, 4)), 0, 0.0)
    for usual in (None, foreign, nothing):
        paces = Paces(readings(0.2, 0.2, 0.3, 0.3), usual)
        assert not paces.known
        shift = paces.shift(size, 5e6)
        assert shift.value == 0
        assert shift.error > 3 * Paces(readings(0, 0, 0, 0), USUAL).shift(0, 5e6).error


@pytest.mark.parametrize("slower", [-0.1, 0.05, 0.3])
@pytest.mark.parametrize("size", [0, 3_000_000, 30_000_000, 100_000_000])
def test_what_slows_all_alike_is_corrected(slower: float, size: int) -> None:
    paces = Paces(readings(*[slower] * 4), USUAL)
    assert paces.known
    shift = paces.shift(size, 5e6 * math.exp(slower))
    assert shift.value == pytest.approx(slower, abs=0.15 * abs(slower))
    assert abs(shift.value - slower) < 2 * shift.error


@pytest.mark.parametrize("disturbed", range(4))
@pytest.mark.parametrize("by", [-0.3, 0.4, 1.1])
def test_one_disturbed_reference_widens_the_interval_of_those_it_speaks_for(
    disturbed: int, by: float
) -> None:
    slower = [0.0] * 4
    slower[disturbed] = by
    paces, calm = Paces(readings(*slower), USUAL), Paces(readings(0, 0, 0, 0), USUAL)
    own = paces.shift(BYTES[disturbed], float(USUAL_NS[disturbed]))
    assert abs(own.value) < 0.8 * abs(by)
    assert abs(own.value) < 2 * own.error
    for size in BYTES:
        assert paces.shift(size, 5e6).error >= 0.9 * calm.shift(size, 5e6).error


@pytest.mark.parametrize(
    ("left", "size"),
    [((0,), 67_000_000), ((0,), 17_000_000), ((3,), 0), ((3,), 2_000_000), ((0, 1), 67_000_000)],
)
def test_what_no_reference_tells_stays_in_the_interval(left: tuple[int, ...], size: int) -> None:
    whole = readings(0, 0, 0, 0)
    fewer = Paces([whole[number] for number in left], USUAL)
    assert fewer.shift(size, 5e6).error > 0.03
    assert fewer.shift(size, 5e6).error > 1.5 * Paces(whole, USUAL).shift(size, 5e6).error


def test_memory_is_felt_the_more_the_more_weights_a_model_has() -> None:
    paces = Paces(readings(0, 0.05, 0.12, 0.15), USUAL)
    sizes = (0, 500_000, 2_000_000, 7_000_000, 17_000_000, 67_000_000, 200_000_000)
    shifts = [paces.shift(size, 5e6) for size in sizes]
    assert shifts[0].memory == 0
    assert abs(shifts[0].value) < 0.03
    by_memory = [shift.memory for shift in shifts]
    assert by_memory == sorted(by_memory)
    assert by_memory[-1] > 0.08


@pytest.mark.parametrize("latency", [1e5, 1e6, 1e8])
def test_a_model_without_weights_feels_arithmetic_alone(latency: float) -> None:
    paces = Paces(readings(0, 0, 0, 0), USUAL)
    assert paces.sensitivities(0, latency).tolist() == [1, 0, 0, 0]
    fast = paces.sensitivities(10_000_000, latency)
    assert fast[0] > paces.sensitivities(10_000_000, latency / 10)[0], "slow models hide memory"


def test_models_of_known_latency_tell_more_of_the_paces() -> None:
    told = readings(0.1, 0.1, 0.1, 0.1, error=0.05)
    alone = Paces(told, USUAL)
    known = [KnownModel(0, 5e6, 0.1, 0.002), KnownModel(40_000_000, 5e6, 0.1, 0.002)]
    helped = Paces(told, USUAL, known)
    for size in (0, 40_000_000):
        assert helped.shift(size, 5e6).error < alone.shift(size, 5e6).error
        off = abs(helped.shift(size, 5e6).value - 0.1)
        assert off < abs(alone.shift(size, 5e6).value - 0.1)


def test_what_known_models_share_beyond_the_paces_is_taken_out_of_others() -> None:
    """A campaign's networks follow one another with cold caches, the references are warm."""
    calm = readings(0, 0, 0, 0)
    known = [KnownModel(size, 5e6, 0.06, 0.005) for size in (0, 5_000_000, 12_000_000, 20_000_000)]
    for size in (0, 9_000_000, 30_000_000):
        assert Paces(calm, USUAL, known).shift(size, 5e6).value == pytest.approx(0.06, abs=0.015)
        assert Paces(calm, USUAL).shift(size, 5e6).value == pytest.approx(0, abs=0.005)


def test_a_reference_that_one_device_cannot_run_leaves_the_others_a_history() -> None:
    taken = np.tile(USUAL_NS, (10, 1))
    taken[:, 3] = np.nan
    taken[0, 1] = np.nan
    usual = usual_latencies(NAMES, np.arange(10) * 300.0, taken)
    assert usual is not None
    assert usual.references == NAMES[:3]
    assert usual.moments == 9
    assert usual_latencies(NAMES, np.zeros(0), np.zeros((0, 4))) is None
    assert usual_latencies(NAMES, np.zeros(1), np.full((1, 4), np.nan)) is None
    assert usual_latencies((), np.zeros(3), np.zeros((3, 0))) is None


def test_one_moment_is_a_history_with_no_spread() -> None:
    usual = usual_latencies(NAMES, np.zeros(1), USUAL_NS[None])
    assert usual is not None
    assert (usual.moments, usual.span_s) == (1, 0)
    assert (usual.spread == 0).all()
    shift = Paces(readings(0.1, 0.1, 0.1, 0.1), usual).shift(0, 5e6)
    assert 0 < shift.value < 0.1, "one moment is not believed altogether"
