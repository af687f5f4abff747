"""Searching, measuring and searching again, on devices whose truth is known."""

from collections.abc import Sequence
from threading import Barrier

import numpy as np
import pytest

from esm_host.errors import DeviceError
from esm_host.search.costs import NetworkCost
from esm_host.search.genes import GeneEncoding, RowIndex, keys
from esm_host.search.latency import AT_MOST, LATENCY, LatencyMeasure, quantity
from esm_host.search.methods.exhaustive import Exhaustive
from esm_host.search.problem import Limit, Measure, Objective, Problem
from esm_host.search.verify import Round, Verification, verified_search
from esm_models.space import Codes
from tests.host.search.cells import CELLS, Quality

EVERYTHING = np.concatenate(list(GeneEncoding(CELLS).everything()))
FLOPS = NetworkCost(CELLS)(EVERYTHING)["flops"]
FIRST = np.random.default_rng(5).choice(len(EVERYTHING), 20, replace=False)


class Device:
    """Takes its FLOPs to compute, and some architectures longer; predicts as if none did.

    Args:
        trap: how much longer, of a tenth of all.
        fails: of a hundredth of all nothing can be measured.
        unsure: width of a prediction's quantiles, relative.
    """

    def __init__(
        self,
        trap: float = 1.5,
        fails: bool = False,
        name: str = "",
        seed: int = 0,
        unsure: float = 0.001,
    ):
        rng = np.random.default_rng(seed)
        self.truth = 1 + FLOPS / 1e8
        self.predicted = self.truth.copy()
        self.truth[rng.random(len(FLOPS)) < 0.1] *= trap
        if fails:
            self.truth[rng.random(len(FLOPS)) < 0.01] = np.nan
        self.place = RowIndex(EVERYTHING)
        self.rows = FIRST
        self.name = name
        self.unsure = unsure
        self.asked: list[int] = []

    def known(self) -> Codes:
        return EVERYTHING[self.rows]

    def latency(self, probability: float) -> Measure:
        def predict(codes: Codes, wanted: float) -> tuple[np.ndarray, np.ndarray]:
            found = self.predicted[self.place(codes)]
            return found, found * (1 + self.unsure * (wanted - 0.5))

        measured = self.truth[self.rows]
        return LatencyMeasure(predict, self.known(), measured, measured, probability, self.name)

    def measure(self, codes: Codes, number: int) -> None:
        fresh = np.setdiff1d(self.place(codes), self.rows)
        self.asked.append(len(fresh))
        self.rows = np.concatenate([self.rows, fresh])


def problem(*limits: Limit, devices: Sequence[str] = ("",)):
    def posed(latencies: Sequence[Measure]) -> Problem:
        objectives = [Objective(quantity(LATENCY, name)) for name in devices]
        objectives.append(Objective("quality", maximise=True))
        return Problem(CELLS, [*latencies, Quality()], objectives, limits)

    return posed


def search(device: Device, *limits: Limit, budget: int = 300, **options) -> Verification:
    return verified_search(problem(*limits), [device], Exhaustive(), budget, **options)


def true_front(device: Device, *limits: Limit) -> set[bytes]:
    class Truth:
        def __call__(self, codes: Codes):
            value = device.truth[device.place(codes)]
            return {LATENCY: value, AT_MOST: value}

    found = Exhaustive().search(problem(*limits)([Truth()])).front
    return {row.tobytes() for row in found.codes}


def test_what_the_device_refutes_is_dropped_and_the_true_front_found() -> None:
    device = Device()
    found = search(device)
    assert found.stable
    assert {row.tobytes() for row in found.front.codes} == true_front(device)
    believed = found.rounds[0].front
    assert not {row.tobytes() for row in believed.codes} <= true_front(device)


def test_limits_hold_as_measured() -> None:
    device = Device()
    limit = Limit(AT_MOST, 1.3)
    found = search(device, limit, batch=30)
    assert {row.tobytes() for row in found.front.codes} == true_front(device, limit)
    assert (device.truth[device.place(found.front.codes)] <= 1.3).all()


def test_the_budget_is_kept() -> None:
    device = Device()
    found = search(device, budget=13, batch=5)
    assert device.asked == [5, 5, 3]
    assert found.measured == 13
    assert not found.stable
    assert np.isin(keys(found.front.codes), keys(device.known())).all()


def test_the_budget_is_used_while_something_may_still_be_on_the_front() -> None:
    device = Device(trap=1, unsure=0.5)
    found = search(device, budget=150, batch=5)
    assert found.measured == 150
    assert found.stable, "what was measured last brought nothing"


def test_without_a_budget_it_is_the_front_of_what_was_known() -> None:
    device = Device()
    found = search(device, budget=0)
    assert device.asked == []
    assert np.isin(keys(found.front.codes), keys(EVERYTHING[FIRST])).all()


def test_where_nothing_keeps_the_limit_nothing_is_found() -> None:
    device = Device()
    found = search(device, Limit(AT_MOST, 0.1))
    assert not len(found.front)
    assert found.stable
    fastest = device.truth[FIRST].min()
    assert found.closest.values[LATENCY][0] == fastest


def test_what_cannot_be_measured_is_left_out() -> None:
    device = Device(fails=True)
    found = search(device, batch=30)
    assert {row.tobytes() for row in found.front.codes} == true_front(device)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("measured", [False, True])
def test_broken_off_it_goes_on_to_the_same_front(after: int, measured: bool) -> None:
    whole = search(Device(), budget=60)
    kept: list[Round] = []

    class Breaks(Device):
        def measure(self, codes: Codes, number: int) -> None:
            if len(kept) < after or measured:
                super().measure(codes, number)
            if len(kept) == after:
                raise KeyboardInterrupt

    device = Breaks()

    def keep(rounds: Sequence[Round]) -> None:
        kept[:] = rounds

    with pytest.raises(KeyboardInterrupt):
        search(device, budget=60, on_round=keep)
    again = Device()
    again.rows = device.rows
    found = search(again, budget=60, past=kept)
    np.testing.assert_array_equal(found.front.codes, whole.front.codes)
    assert found.measured == whole.measured
    assert len(found.rounds) == len(whole.rounds)
    assert len(again.rows) == len(FIRST) + whole.measured, "nothing is measured twice"


def test_with_a_larger_budget_it_goes_on() -> None:
    device = Device()
    first = search(device, budget=20)
    assert not first.stable
    found = search(device, past=first.rounds, batch=30)
    assert found.stable
    assert {row.tobytes() for row in found.front.codes} == true_front(device)
    assert found.measured == sum(device.asked), "nothing is measured twice"
    again = search(device, past=found.rounds, batch=30)
    assert (again.stable, again.measured) == (True, found.measured)


def test_several_devices_measure_at_once() -> None:
    meet = Barrier(2, timeout=30)

    class Waits(Device):
        def measure(self, codes: Codes, number: int) -> None:
            meet.wait()
            super().measure(codes, number)

    devices = [Waits(name="pi"), Waits(name="gpu", seed=1)]
    posed = problem(devices=("pi", "gpu"))
    assert verified_search(posed, devices, Exhaustive(), budget=10).measured == 10


def test_a_device_that_fails_ends_the_search_once_the_others_are_done() -> None:
    class Gone(Device):
        def measure(self, codes: Codes, number: int) -> None:
            raise DeviceError("gone")

    other = Device(name="gpu", seed=1)
    posed = problem(devices=("pi", "gpu"))
    with pytest.raises(DeviceError, match="gone"):
        verified_search(posed, [Gone(name="pi"), other], Exhaustive(), budget=10)
    assert other.asked == [10]


def test_several_devices_share_a_front() -> None:
    devices = [Device(name="pi", seed=0), Device(name="gpu", seed=1)]
    limits = [Limit(quantity(AT_MOST, name), 1.4) for name in ("pi", "gpu")]
    found = verified_search(
        problem(*limits, devices=("pi", "gpu")), devices, Exhaustive(), budget=60
    )
    assert len(found.front)
    for device in devices:
        there = device.place(found.front.codes)
        assert (device.truth[there] <= 1.4).all()
        np.testing.assert_array_equal(
            found.front.values[quantity(LATENCY, device.name)], device.truth[there]
        )
    np.testing.assert_array_equal(np.sort(devices[0].rows), np.sort(devices[1].rows))
