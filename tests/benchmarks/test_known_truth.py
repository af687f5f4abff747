"""Coverage on simulated devices: few draws, wide limits; the benchmark makes the figures."""

import math

import numpy as np
import pytest

from benchmarks.known_truth import SETTINGS, SIZES_MB, Device, rows, simulate

QUIET, NOISY, THROTTLING = SETTINGS


@pytest.mark.parametrize("setting", [QUIET, NOISY], ids=lambda setting: setting.name)
def test_intervals_hold_the_truth_about_as_often_as_they_say(setting) -> None:
    found = np.concatenate(list(simulate(setting, 100, 25).values()))
    errors, intervals, _ = found.T
    assert len(found) == 25 * len(SIZES_MB)
    assert 0.88 <= np.mean(np.abs(np.expm1(-errors)) <= intervals) <= 1
    assert abs(errors.mean()) < 0.015
    assert np.median(intervals) < 0.12


def test_latencies_at_the_usual_pace_are_nearer_the_truth_than_as_measured() -> None:
    errors, _, shifts = np.concatenate(list(simulate(THROTTLING, 100, 40).values())).T
    assert errors.std() < 0.8 * (errors + shifts).std()


def test_a_truth_is_what_most_moments_show() -> None:
    device = Device(THROTTLING, np.random.default_rng(0))
    for model in device.models:
        assert device.truth_ns(model) == pytest.approx(model.latency_ns, rel=0.03)
    models, references = device.block(1.5, 2)
    assert {len(runs.session_runs) for runs in models} == {2}
    assert {len(runs.session_runs) for runs in references} == {0}
    assert all(sum(runs.session_runs) == len(runs.latency_ns) for runs in models)


def test_the_table_has_a_row_for_each_setting_history_and_size() -> None:
    found = rows(2, [QUIET])
    assert len(found) == 4 * len(SIZES_MB) + 2
    assert all(math.isfinite(row.half_width) for row in found)
