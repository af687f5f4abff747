"""The comparison of providers: its ratios and tables, its models, and the script beside it."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import direct_timing, provider_wheels, providers
from benchmarks.direct_timing import bind, open_session, random_inputs
from benchmarks.provider_models import MODELS, write_models
from benchmarks.providers import (
    BOUND,
    CPU,
    OPENVINO,
    SCRIPT,
    agreement_table,
    is_within,
    provider_table,
    ratio,
    turn,
    write_inputs,
)
from esm_protos.messages import Failure, FailureKind


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


# Figures


def turns(*ratios: float) -> list[dict[str, float]]:
    """Rounds in which OpenVINO takes these shares of the CPU's 2 ms, and the script 1 % less."""
    return [
        {CPU: 2.0, OPENVINO: 2.0 * r, SCRIPT: 2.0 * r / 1.01, BOUND: 2.0 * r / 1.03} for r in ratios
    ]


def test_a_ratio_is_the_median_with_the_interval_of_order_statistics() -> None:
    found = ratio(turns(*(0.5 + 0.01 * rank for rank in range(10))), OPENVINO, CPU)
    assert found.median == pytest.approx(math.sqrt(0.54 * 0.55))
    assert found[1:] == pytest.approx((0.51, 0.58))  # ranks 2 and 9 of 10
    few = ratio(turns(0.5, 0.6, 0.7), OPENVINO, CPU)
    assert few.median == pytest.approx(0.6)
    assert few[1:] == (0, math.inf)


def test_a_ratio_is_within_2_percent_in_both_directions() -> None:
    assert is_within(ratio(turns(1.0), OPENVINO, SCRIPT))
    assert is_within(ratio(turns(1.0), SCRIPT, OPENVINO))
    assert not is_within(ratio(turns(1.0), OPENVINO, BOUND))
    assert not is_within(ratio(turns(1.0), BOUND, OPENVINO))


def test_the_table_of_providers_has_a_row_for_every_model() -> None:
    taken = {"resnet": turns(*[0.5] * 10), "vgg": turns(0.8), "lstm": []}
    refused = {"lstm": "openvino: unsupported_op, a | b\nof c"}
    assert provider_table(taken, refused).splitlines()[2:] == [
        "| resnet | convolutions, shortcuts | 2.0 ms | 1.0 ms | 0.50 | 0.50 to 0.50 |",
        "| vgg | plain convolutions | 2.0 ms | 1.6 ms | 0.80 | - |",
        "| lstm | LSTM | - | - | openvino: unsupported_op, a / b of c | - |",
    ]


def test_the_table_of_agreement_counts_models_within_2_percent() -> None:
    taken = {"resnet": turns(*[0.5] * 10), "vgg": turns(0.8), "lstm": []}
    table = agreement_table(taken, {"lstm": "openvino: unsupported_op"})
    rows, _, count = table.partition("\n\n")
    assert rows.splitlines()[2:] == [
        "| resnet | 1.0 ms | 1.010 | 1.010 to 1.010 | 1.030 | 1.030 to 1.030 |",
        "| vgg | 1.6 ms | 1.010 | - | 1.030 | - |",
    ]
    assert count == "Within 2 %: 2 of 2 with arrays, 0 of 2 with bound values."


def test_a_turn_ends_with_the_reason_of_a_refusal(paths: dict[str, Path]) -> None:
    asked: list[str] = []

    def latency_ms(name: str, provider: str, runs: int) -> float | Failure:
        asked.append(provider)
        refused = provider == OPENVINO and name == "lstm"
        return Failure(FailureKind.UNSUPPORTED_OP, "1 of 9 nodes") if refused else 2.0

    ours: Any = SimpleNamespace(latency_ms=latency_ms)
    script: Any = SimpleNamespace(latency_ms=lambda path, runs: 3.0)

    def taken(name: str, order: Sequence[str]) -> dict[str, float] | str:
        return turn(ours, {SCRIPT: script}, name, paths[name], 16, order)

    assert taken("vgg", (SCRIPT, OPENVINO, CPU)) == {SCRIPT: 3.0, OPENVINO: 2.0, CPU: 2.0}
    assert asked == [OPENVINO, CPU]
    assert taken("lstm", (OPENVINO, SCRIPT)) == "openvino: unsupported_op, 1 of 9 nodes"


def test_a_missing_wheel_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provider_wheels, "FOLDER", tmp_path)
    monkeypatch.setattr(provider_wheels.subprocess, "run", failing_install)
    monkeypatch.setattr(sys, "argv", ["x", "--quick"])
    with pytest.raises(SystemExit, match=r"^error: onnxruntime-openvino==1.24.1 cannot") as caught:
        providers.main()
    assert str(caught.value).endswith("installed: no network")


def failing_install(command: Sequence[Any], **options: Any) -> Any:
    failed = "install" in map(str, command)
    return SimpleNamespace(returncode=int(failed), stderr="warning: old pip\nno network\n")


# Models, and the script


def test_there_are_twelve() -> None:
    assert len(MODELS) == 12


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_complete_and_its_output_in_range(name: str, paths: dict[str, Path]) -> None:
    model = onnx.load(paths[name])
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    is_int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert is_int8 == name.endswith("int8")
    session = open_session(str(paths[name]))
    (output,) = session.run(None, random_inputs(session))
    assert np.isfinite(output).all()
    assert np.ptp(output) > 0


def test_bound_values_give_the_same_outputs(paths: dict[str, Path]) -> None:
    session = open_session(str(paths["encoder"]))
    inputs = random_inputs(session)
    binding = bind(session, inputs)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), session.run(None, inputs)[0])


@pytest.mark.parametrize("options", [[], ["--bound"]])
def test_the_script_takes_the_inputs_beside_the_model(
    paths: dict[str, Path], options: list[str]
) -> None:
    command = [sys.executable, direct_timing.__file__, *options, str(paths["gru"]), "5"]
    inputs = write_inputs(paths["gru"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert len(json.loads(done.stdout)["latency_ns"]) == 5, done.stderr
    np.savez(inputs, no_such_input=np.zeros(1))
    done = subprocess.run(command, capture_output=True, text=True)
    inputs.unlink()
    assert done.returncode
    assert "no_such_input" in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--provider", "NoSuchExecutionProvider", "{}"], "NoSuchExecutionProvider did not load"),
        (["--no-such"], "unknown option '--no-such': give --bound or --provider NAME JSON"),
    ],
)
def test_the_script_refuses_what_it_cannot_do(
    paths: dict[str, Path], options: list[str], why: str
) -> None:
    command = [sys.executable, direct_timing.__file__, *options, str(paths["gru"]), "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "latency_ns" not in done.stdout
    assert why in done.stderr
