"""The table of metrics: how values are read, put together and told by another side."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_protos import convert
from esm_protos.messages import DeviceInfo, DeviceState, Limits, Measurement
from esm_protos.metrics import (
    ENERGY,
    KNOWN,
    LATENCY,
    METRICS,
    NUMBERS,
    PEAK_MEMORY,
    STATISTICS,
    Aggregate,
    Better,
    Format,
    Kind,
    Metric,
    known_and_told,
    markdown_table,
)
from esm_protos.received import NonsenseError, received
from esm_protos.v1 import profiler_pb2 as pb

DOCS = Path(__file__).parents[2] / "docs"
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=20)
metrics = st.builds(
    Metric,
    key=st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    unit=texts,
    about=texts,
    kind=st.sampled_from(Kind),
    aggregate=st.sampled_from(Aggregate),
    format=st.sampled_from(Format),
    better=st.sampled_from(Better),
)


def test_every_number_is_in_the_table_once() -> None:
    assert METRICS[:2] == (LATENCY, PEAK_MEMORY)
    assert {*METRICS, *STATISTICS} == set(NUMBERS)
    assert len({metric.field for metric in NUMBERS}) == len(KNOWN) == len(NUMBERS)


def test_the_documented_table_is_fresh() -> None:
    """``python -m esm_protos.metrics`` prints it."""
    page = (DOCS / "timing-json.md").read_text()
    assert f"\n\n{markdown_table()}\n" in page
    assert f"\n\n{markdown_table(ENERGY)}\n" in page


@pytest.mark.parametrize(
    ("metric", "value", "cell", "text"),
    [
        (LATENCY, 12.3456, "12.346", "12.346 ms"),
        (PEAK_MEMORY, 41_400_000, "41 MB", "41 MB"),
        (KNOWN["throughput_per_s"], 169.94, "169.9", "169.9 1/s"),
        (KNOWN["runs"], 150, "150", "150"),
        (Metric("energy_mj", "mJ", ""), -0.5, "-0.5000", "-0.5000 mJ"),
        (Metric("energy", "mJ", ""), -0.5, "-0.5000 mJ", "-0.5000 mJ"),
        (Metric("wait_us", "us", ""), 250.0, "250.00", "250.00 us"),
        (Metric("load", "%", "", format=Format.PERCENT), 7.0, "7.0 %", "7.0 %"),
    ],
)
def test_a_value_is_read_with_its_unit_once(
    metric: Metric, value: float, cell: str, text: str
) -> None:
    assert (metric.cell(value), metric.text(value)) == (cell, text)
    assert metric.cell(None) == ""


@pytest.mark.parametrize(
    ("aggregate", "one"),
    [("trimmed_mean", 2), ("mean", 21.4), ("max", 100), ("sum", 107), ("last", 3), ("none", 2)],
)
def test_values_of_visits_become_one(aggregate: str, one: float) -> None:
    values = [2.0, 100.0, 1.0, 1.0, 3.0]
    assert Metric("m", "", "", aggregate=Aggregate(aggregate)).one(values) == pytest.approx(one)


def test_a_whole_number_stays_one() -> None:
    typed = Metric("m", "", "", kind=Kind.INT, aggregate=Aggregate.MEAN).one([1.0, 2.0, 2.0])
    assert (typed, type(typed)) == (2, int)


@pytest.mark.parametrize("key", ["", "2x", "a b", "a-b", "x" * 65, "é", "a\n"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not a metric's key"):
        Metric(key, "", "")
    with pytest.raises(NonsenseError):
        convert.device_info_from_pb(pb.DeviceInfo(metrics=[pb.Metric(key=key)]))
    values = [pb.MetricValue(key=key, value=1)]
    result = pb.ModelResult(model_id="m", latency_ns=[1], start_ns=[0], metrics=values)
    with pytest.raises(NonsenseError):
        convert.measurement_from_pb(result)


@given(st.lists(metrics, max_size=3))
def test_a_device_tells_of_its_metrics(told: list[Metric]) -> None:
    """Over the wire, and in the JSON of a timing."""
    limits, state = Limits(1, 1), DeviceState(0)
    words = ("",) * 6
    info = DeviceInfo(5, *words[:4], 1, 1, *words[:3], (), limits, state, metrics=tuple(told))
    wire = convert.device_info_to_pb(info).SerializeToString()
    assert convert.device_info_from_pb(received(pb.DeviceInfo, wire)).metrics == info.metrics
    data = json.loads(json.dumps(asdict(info)["metrics"]))
    assert tuple(map(Metric.from_json, data)) == info.metrics


@given(st.dictionaries(st.sampled_from("abc"), st.floats(-1e9, 1e9)), st.integers(0, 2**40))
def test_values_reach_the_host(values: dict[str, float], peak: int) -> None:
    sent = Measurement("m", *[np.array([1])] * 2, metrics=values | {"peak_rss_bytes": peak})
    wire = convert.measurement_to_pb(sent, 0.2)
    assert wire.peak_rss_bytes == peak, "older hosts read it here"
    got = convert.measurement_from_pb(received(pb.ModelResult, wire.SerializeToString()))
    assert got.peak_rss_bytes == (peak or None)
    assert {k: v for k, v in got.metrics.items() if k != "peak_rss_bytes"} == values


def test_words_of_a_later_version_are_left_out() -> None:
    told = {"key": "energy_mj", "unit": "mJ", "about": "", "aggregate": "median", "new": 1}
    assert Metric.from_json(told) == Metric("energy_mj", "mJ", "")


def test_devices_that_disagree_leave_a_metric_without_unit() -> None:
    told = [Metric("energy", unit, "") for unit in ("mJ", "mJ", "J")]
    assert known_and_told(told[:2])[-1].unit == "mJ"
    assert known_and_told(told)[-1].unit == ""
    assert known_and_told([], ["power"])[-1] == Metric("power", "", "")
    assert known_and_told([Metric("load_ms", "s", "")]) == NUMBERS
