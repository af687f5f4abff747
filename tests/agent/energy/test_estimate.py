"""Energy of models from windows on a simulated device whose energy is known."""

import math
import random
from collections.abc import Callable

import pytest

from esm_agent.energy.estimate import IDLE, Window, estimate
from esm_agent.energy.source import SensorError
from esm_agent.energy.windows import Plan, plan, take_windows

PLAN = Plan(rounds=10, window_s=0.5, lead_s=0.1, tick_s=0.01)


class Device:
    """Device whose counter changes at every tick."""

    def __init__(self, idle_w: Callable[[float], float] = lambda now: 3.0) -> None:
        self.now = 0.0
        self.idle_w = idle_w
        self._joules = self._shown = 0.0
        self._next = 0.01

    def spend(self, seconds: float, watts: float = 0.0) -> None:
        ends = self.now + seconds
        while self.now < ends:
            step = min(self._next, ends) - self.now
            self._joules += step * (watts + self.idle_w(self.now))
            self.now += step
            if self.now >= self._next:
                self._shown, self._next = self._joules, self._next + 0.01

    def windows(self, *models: tuple[float, float], chosen: Plan = PLAN) -> list[Window]:
        def run(seconds: float, watts: float) -> Callable[[], None]:
            return lambda: self.spend(seconds, watts)

        runs = {number: run(*model) for number, model in enumerate(models)}
        return take_windows(
            runs,
            lambda: self._shown,
            chosen,
            1,
            lambda: self.now,
            self.spend,
            lambda model, share: False,
        )


def test_the_energy_of_the_idle_device_is_taken_off() -> None:
    windows = Device().windows((0.004, 5.0), (0.007, 10.0))
    for model, (net_j, gross_j) in enumerate([(0.02, 0.032), (0.07, 0.091)]):
        found = estimate(windows, model)
        assert found is not None
        assert found.net_j == pytest.approx(net_j, rel=0.02)
        assert float(found.gross_j.mean()) == pytest.approx(gross_j, rel=0.02)
        assert found.problem(0.05, 0.0, 10.0) == ("", 0.0)
    first = estimate(windows, 0)
    assert first is not None
    assert first.watts == pytest.approx(8.0, rel=0.02)


def test_an_idle_load_that_changes_is_followed() -> None:
    """It doubles over the measurement."""
    total_s = 2 * (PLAN.window_s + PLAN.lead_s) * PLAN.rounds
    windows = Device(lambda now: 3.0 * (1 + now / total_s)).windows((0.004, 5.0))
    found = estimate(windows, 0)
    assert found is not None
    assert found.net_j == pytest.approx(0.02, rel=0.02)
    assert abs(found.net_j - 0.02) < 2 * found.share() * found.net_j


def test_windows_are_in_random_order_with_rest_at_both_ends() -> None:
    order = [window.model for window in Device().windows((0.01, 1.0), (0.01, 1.0))]
    assert order[0] == order[-1] == IDLE
    inner = order[1:-1]
    assert [inner.count(model) for model in (0, 1, IDLE)] == [10, 10, 20]
    rounds = [tuple(inner[at : at + 4]) for at in range(0, 40, 4)]
    assert all(sorted(one) == [IDLE, IDLE, 0, 1] for one in rounds)
    assert len(set(rounds)) > 1


def test_a_window_has_whole_inferences() -> None:
    for window in Device().windows((0.3, 1.0)):
        if window.model == 0:
            assert window.seconds == pytest.approx(0.3 * window.runs)
            assert window.runs == 2


def test_too_few_windows_give_no_energy() -> None:
    windows = Device().windows((0.01, 1.0))
    assert estimate(windows[:6], 0) is None
    assert estimate(windows, 7) is None


def test_a_counter_that_goes_back_is_refused() -> None:
    values = iter([5.0, 4.0])
    device = Device()
    with pytest.raises(SensorError, match="went from 5 to 4 J"):
        take_windows(
            {}, lambda: next(values), PLAN, 0, lambda: device.now, device.spend, lambda *_: False
        )


def test_an_early_end_keeps_the_windows_so_far() -> None:
    device = Device()
    shares: list[float] = []

    def between(model: int, share: float) -> bool:
        shares.append(share)
        return len(shares) > 3

    windows = take_windows(
        {0: lambda: device.spend(0.01)},
        lambda: 0.0,
        PLAN,
        0,
        lambda: device.now,
        device.spend,
        between,
    )
    assert len(windows) == 3
    assert shares == sorted(shares)


def noisy(net_w: float, spread: float, count: int = 10) -> list[Window]:
    """Windows of 1 s and 10 inferences beside an idle device of 2 W."""
    rng = random.Random(0)
    windows = [Window(IDLE, 0.0, 1.0, 2.0, 1)]
    for number in range(count):
        joules = 2 + net_w * (1 + rng.gauss(0, spread))
        at = 2.0 * number + 1
        windows += [Window(0, at, 1.0, joules, 10), Window(IDLE, at + 1, 1.0, 2.0, 1)]
    return windows


def test_a_wide_interval_is_unresolved_and_says_how_long_it_needs() -> None:
    found = estimate(noisy(5.0, 0.1), 0)
    assert found is not None
    problem, needs_s = found.problem(0.02, 0.0, 30.0)
    assert "99 % interval of ±" in problem
    assert needs_s > 30
    share = found.share(0.99)
    assert found.problem(share * 1.01, 0.0, 30.0) == ("", 0.0)
    assert needs_s == pytest.approx(30.0 * 1.2 * (share / 0.02) ** 2)


def test_steps_that_are_too_coarse_are_unresolved() -> None:
    found = estimate(noisy(5.0, 0.0), 0)
    assert found is not None
    problem, needs_s = found.problem(0.02, 0.7, 30.0)
    assert "fewer than 20 of the sensor's steps of 0.7 J" in problem
    assert needs_s == pytest.approx(30.0 * 2 * 1.2)
    assert found.problem(0.02, 0.3, 30.0) == ("", 0.0)


def test_energy_like_that_of_the_idle_device_is_unresolved() -> None:
    found = estimate(noisy(-0.01, 0.1), 0)
    assert found is not None
    assert math.isinf(found.share())
    assert found.problem(0.5, 0.0, 30.0) == ("it cannot be told from that of the idle device", 0.0)


def test_common_windows_of_rest_widen_the_interval() -> None:
    """Noise of rest alone: neighbours share it, so the scatter of the windows shows too little."""
    rng = random.Random(3)
    errors, claimed = [], []
    for _ in range(300):
        windows = [
            each._replace(joules=2 + rng.gauss(0, 0.1)) if each.model == IDLE else each
            for each in noisy(5.0, 0.0)
        ]
        found = estimate(windows, 0)
        assert found is not None
        errors.append(found.net_j - 0.5)
        claimed.append(found.error_j)
    actual = math.sqrt(sum(error**2 for error in errors) / len(errors))
    mean_claimed = math.sqrt(sum(error**2 for error in claimed) / len(claimed))
    assert mean_claimed == pytest.approx(actual, rel=0.15)


@pytest.mark.parametrize("tick_s", [0.001, 0.01, 0.1, 1.0])
def test_windows_have_enough_ticks_or_say_what_they_need(tick_s: float) -> None:
    for energy_s in (1.0, 10.0, 30.0, 500.0):
        chosen = plan(energy_s, tick_s)
        assert 8 <= chosen.rounds <= 20
        if chosen.resolves:
            whole_s = chosen.window_s + chosen.lead_s + tick_s / 2
            assert 2 * chosen.rounds * whole_s == pytest.approx(energy_s)
            assert chosen.lead_s >= 3 * tick_s
        else:
            assert energy_s < chosen.needs_s
        assert plan(chosen.needs_s, tick_s).resolves
