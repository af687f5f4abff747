"""The benchmark of energies: its simulated devices have the energy that they claim."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.energy_known_truth import (
    SENSORS,
    Case,
    Device,
    Outcome,
    cases,
    rows,
    simulate,
    text,
)

QUIET = Case("rapl", 0.01, 0.0, "constant", 2.0)


def test_cases_have_every_kind_equally_often() -> None:
    made = cases(240)
    for name in ("sensor", "tick_s", "noise", "idle", "time"):
        kinds = [getattr(case, name) for case in made]
        assert len({kinds.count(kind) for kind in kinds}) == 1


@pytest.mark.parametrize("sensor", SENSORS)
def test_a_device_without_noise_counts_what_it_spends(sensor: str, tmp_path: Path) -> None:
    case = dataclasses.replace(QUIET, sensor=sensor)
    device = Device(case, np.random.default_rng(1), tmp_path)
    device.spend(50.0, 0.0)
    before = device.joules()
    device.spend(400.0, 0.0)
    idle_j = device.joules() - before
    before = device.joules()
    device.spend(400.0, 7.0)
    steps_j = 72 if sensor == "battery charge" else 10
    assert device.joules() - before - idle_j == pytest.approx(2800.0, abs=steps_j)


def test_without_noise_every_energy_is_close() -> None:
    for seed in range(3):
        for outcome in simulate(QUIET, seed):
            assert outcome.error is None or abs(outcome.error) < 0.03


def test_windows_below_the_tick_are_hopeless() -> None:
    for outcome in simulate(dataclasses.replace(QUIET, time=0.5), 0):
        assert (outcome.hopeless, outcome.stable, outcome.inside) == (True, False, None)


def test_rows_count_outcomes() -> None:
    found = [
        Outcome(QUIET, stable=True, hopeless=False, error=0.03, inside=False),
        Outcome(QUIET, stable=True, hopeless=False, error=-0.01, inside=True),
        Outcome(QUIET, stable=True, hopeless=True, error=None, inside=True),
        Outcome(QUIET, stable=False, hopeless=True),
    ]
    row = rows(found)[-1]
    assert (row.kind, row.models, row.stable, row.worst, row.above) == ("all", 4, 0.75, 0.03, 0.5)
    assert row.coverage == pytest.approx(2 / 3)
    assert (row.hopeless, row.wrong) == (2, 1)
    assert "all" in text([row])
