"""The soak measures blocks, reads all processes, and tells growth from noise."""

import sys

import pytest

from benchmarks.soak import BOUNDS, Reading, endure, growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.faults
def test_a_short_soak() -> None:
    readings, soak = endure(blocks=40, connects=8)
    assert (soak.done, soak.failed) == (40, 0)
    assert soak.connects >= 8
    assert readings.keys() == {"agent", "measuring", "host"}
    for of in readings.values():
        assert all(each.rss_mb > 20 and each.threads and each.descriptors for each in of)


def test_growth_is_that_of_the_thirds() -> None:
    flat = [Reading(80.0 + number % 3, 15, 20) for number in range(60)]
    assert growth(flat) == Reading(0, 0, 0)
    leaking = [Reading(80.0 + number / 2, 15 + number, 20) for number in range(60)]
    assert growth(leaking) == Reading(20, 40, 0)
    assert growth(leaking).rss_mb > BOUNDS.rss_mb
