"""A diagnosis in print."""

from esm_protos.diagnosis import lines, to_json
from esm_protos.messages import Diagnosis, Finding, Severity

SICK = Diagnosis(
    (
        Finding("governor", Severity.ADVICE, "ondemand", "echo performance"),
        Finding("swap", Severity.UNFIT, "900 pages a second", "free memory"),
        Finding("clock", Severity.OK, "steps of 40 ns"),
    )
)


def test_rows_are_aligned_and_the_last_line_sums_up() -> None:
    assert lines(SICK) == [
        "advice   governor  ondemand",
        "                   -> echo performance",
        "unfit    swap      900 pages a second",
        "                   -> free memory",
        "ok       clock     steps of 40 ns",
        "not fit to measure because of swap (1 ok, 0 unknown, 1 advice, 1 unfit)",
    ]


def test_advice_does_not_make_unfit() -> None:
    assert lines(Diagnosis(SICK.findings[::2]))[-1].startswith("fit to measure (1 ok, 0 unknown")


def test_json() -> None:
    data = to_json(SICK, "pi4")
    assert (data["schema_version"], data["device"], data["fit"]) == (1, "pi4", False)
    assert data["findings"][1] == {
        "check": "swap",
        "severity": "unfit",
        "text": "900 pages a second",
        "fix": "free memory",
    }
