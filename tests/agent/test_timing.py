"""The protocols: who is run when, and what is counted. A clock of our own, no waiting."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_agent.timing import interleaved, sequential
from esm_protos.messages import MeasureSpec


class Device:
    """Models that take a set time on a clock that only they move, and a log of the runs."""

    def __init__(self, costs_ns: dict[int, int]) -> None:
        self.now = 1_000
        self.log: list[int] = []
        self.runs = {index: self._run(index, cost) for index, cost in costs_ns.items()}

    def _run(self, index: int, cost: int):
        def run() -> None:
            self.now += cost
            self.log.append(index)

        return run

    def clock(self) -> int:
        return self.now


specs = st.builds(
    MeasureSpec,
    runs=st.integers(1, 40),
    runs_per_visit=st.integers(1, 7),
    warmup=st.integers(0, 3),
    seed=st.integers(0, 1000),
)


@given(specs)
def test_sequential_counts_all_but_the_warm_up(spec: MeasureSpec) -> None:
    device = Device({0: 50})
    samples = sequential(device.runs[0], spec, device.clock)
    assert samples.latency_ns == [50] * spec.runs
    assert len(device.log) == spec.warmup + spec.runs
    assert samples.start_ns[0] == 1_000 + 50 * spec.warmup
    assert samples.running_ns == 50 * len(device.log)


@given(specs, st.integers(1, 6))
def test_interleaved_gives_every_model_its_runs_in_time_order(
    spec: MeasureSpec, models: int
) -> None:
    device = Device({index: 10 + index for index in range(models)})
    samples = interleaved(device.runs, spec, clock=device.clock)
    visits = -(-spec.runs // spec.runs_per_visit)
    for index, got in samples.items():
        assert got.latency_ns == [10 + index] * spec.runs
        assert all(a < b for a, b in pairwise(got.start_ns))
        assert device.log.count(index) == spec.runs + visits * spec.warmup
        assert got.running_ns == device.log.count(index) * (10 + index)


def test_interleaved_visits_every_model_once_a_round_in_changing_order() -> None:
    spec = MeasureSpec(runs=30, runs_per_visit=3, warmup=2)
    device = Device(dict.fromkeys(range(8), 10))
    visited: list[int] = []
    interleaved(device.runs, spec, lambda index, share: visited.append(index), device.clock)
    rounds = [visited[i : i + 8] for i in range(0, len(visited), 8)]
    assert len(rounds) == 10
    assert all(sorted(order) == list(range(8)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 5
    again: list[int] = []
    interleaved(device.runs, spec, lambda index, share: again.append(index), device.clock)
    assert again == visited, "the seed decides the order"


def test_what_happens_between_visits_is_not_timed() -> None:
    device = Device({0: 10, 1: 10})

    def slow(index: int, share: float) -> None:
        device.now += 1_000_000

    samples = interleaved(device.runs, MeasureSpec(runs=6), slow, device.clock)
    assert samples[0].latency_ns == [10] * 6
    assert samples[0].running_ns + samples[1].running_ns == 10 * len(device.log)


def test_progress_grows_from_nothing_to_nearly_all() -> None:
    device = Device({0: 10, 1: 10})
    shares: list[float] = []
    interleaved(device.runs, MeasureSpec(runs=30), lambda i, s: shares.append(s), device.clock)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1


def test_a_slow_episode_spoils_a_row_but_not_an_interleaved_block() -> None:
    """The reason for the default: an episode of 200 runs on a device of four models."""

    def measure(protocol) -> list[float]:
        device = Device(dict.fromkeys(range(4), 100))
        episode = range(20_000, 40_000)

        def disturbed(run):
            def slowed() -> None:
                start = device.now
                run()
                if start in episode:
                    device.now += 100

            return slowed

        runs = {index: disturbed(run) for index, run in device.runs.items()}
        return protocol(runs, device)

    spec = MeasureSpec(runs=150, warmup=0)

    def trimmed(values: list[int]) -> float:
        return sum(sorted(values)[30:-30]) / 90

    row = measure(lambda r, d: [trimmed(sequential(r[i], spec, d.clock).latency_ns) for i in r])
    block = measure(
        lambda r, d: [trimmed(s.latency_ns) for s in interleaved(r, spec, clock=d.clock).values()]
    )
    assert max(row) > 150
    assert max(block) == pytest.approx(100)
