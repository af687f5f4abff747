"""Sources of metrics: loaded by name, stopped after each visit, left out when they fail."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from esm_agent.measure.sources import MetricSource, VisitMetrics, load_sources
from esm_protos.metrics import Aggregate, Metric
from esm_protos.plugins import PluginError

FAULTY = """
from esm_agent.measure.sources import MetricSource
from esm_protos.metrics import Metric
class Taken(MetricSource):
    metrics = (Metric("load_ms", "ms", ""),)
    def start(self): ...
    def stop(self, inferences): return {}
class Broken(Taken):
    def __init__(self): self.nothing
class Half(MetricSource):
    def start(self): ...
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Taken", "load_ms is taken"),
        ("Broken", r"no attribute 'nothing' \(line 9 of"),
        ("Half", "must set metrics, stop"),
        ("Gone", "unknown metric source class 'Gone' in .*: choose Taken"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    with pytest.raises(PluginError, match=said):
        load_sources([f"{tmp_path}/faulty.py:{name}"])


class Counting(MetricSource):
    """The numbers of its visits, and their inferences."""

    metrics: ClassVar = (
        Metric("visits", "", "", aggregate=Aggregate.LAST),
        Metric("inferences", "", "", aggregate=Aggregate.SUM),
    )

    def __init__(self) -> None:
        self.visit = 0
        self.running = False

    def start(self) -> None:
        assert not self.running
        self.visit, self.running = self.visit + 1, True

    def stop(self, inferences: int) -> Mapping[str, float]:
        assert self.running
        self.running = False
        return {"visits": self.visit, "inferences": inferences}


def visit(visits: VisitMetrics, model: int, inferences: int) -> None:
    visits.begin(model)
    for _ in range(inferences):
        visits.tick()
    visits.end()


def test_values_of_a_models_visits_are_put_together() -> None:
    ticks: list[int] = []
    visits = VisitMetrics([Counting()], lambda: ticks.append(1))
    for model, inferences in ((0, 3), (1, 5), (0, 4)):
        visit(visits, model, inferences)
        visits.tick()  # of no visit
    assert visits.values(0) == {"visits": 3, "inferences": 7}
    assert visits.values(1) == {"visits": 2, "inferences": 5}
    assert visits.values(2) == {}
    assert len(ticks) == 15, "each inference shows that the process lives"


def test_a_visit_ends_when_the_next_one_begins() -> None:
    visits = VisitMetrics([Counting()], lambda: None)
    visits.begin(0)
    visits.tick()
    visits.begin(1)
    visits.tick()
    visits.end()
    visits.end()
    assert visits.values(0)["inferences"] == visits.values(1)["inferences"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", None])
def test_a_source_that_fails_is_left_out_and_the_others_go_on(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(MetricSource):
        metrics: ClassVar = (Metric("odd", "", ""),)

        def start(self) -> None: ...

        def stop(self, inferences: int) -> Mapping[str, float]:
            return {"odd": value}  # type: ignore[dict-item]

    visits = VisitMetrics([Faulty(), Counting()], lambda: None)
    for _ in range(2):
        visit(visits, 0, 1)
    assert visits.values(0) == {"visits": 2, "inferences": 2}
    (record,) = caplog.records
    assert "metric source Faulty is dropped" in record.getMessage()
