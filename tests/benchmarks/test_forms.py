"""The list of a measurement's forms is up to date."""

from benchmarks.forms import forms


def test_every_form_of_a_measurement_is_there() -> None:
    assert all(place and text for place, text in forms())
