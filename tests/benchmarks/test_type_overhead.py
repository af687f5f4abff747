"""The overhead of an inference by type: every type of ONNX is measured, or named as missing."""

import pytest

from benchmarks import type_overhead
from esm_protos.value_types import ELEMENTS


def test_every_type_is_measured_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    type_overhead.main(["--rounds", "1"])
    *rows, last, missing = capsys.readouterr().out.splitlines()
    measured = {row.split()[0] for row in rows[1:]}
    assert {element.name for element in ELEMENTS} - measured == {"complex64", "complex128"}
    assert {"seq(float32)", "seq(string)", "optional(float32)"} <= measured
    assert last.startswith("largest difference between two types: ")
    assert "complex64 (Identity)" in missing
