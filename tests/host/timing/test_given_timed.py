"""``esm-host time --input``: types that numpy lacks, sequences, several models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, TypeProto, helper, numpy_helper
from typer.testing import CliRunner

import esm_host
from esm_host.cli.app import app
from esm_host.errors import UsageError
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler

FLOAT = TensorProto.FLOAT
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"]))


def saved(path: Path, operator: str, inputs: dict[str, TypeProto], **attributes: Any) -> Path:
    nodes = [helper.make_node(operator, list(inputs), ["y"], **attributes)]
    values = [helper.make_value_info(name, kind) for name, kind in inputs.items()]
    output = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph(nodes, "g", values, [output])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def timed(*arguments: object) -> list[dict[str, Any]]:
    arguments = ("time", *arguments, "--runs", 30, "--json", "-", "-q")
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)["results"]
    assert isinstance(found, list)
    return found


def test_test_data_as_onnx_keeps_it_is_fed_to_a_real_agent(tmp_path: Path) -> None:
    scalar = helper.make_tensor_type_proto(TensorProto.BFLOAT16, [])
    join = saved(tmp_path / "join.onnx", "ConcatFromSequence", {"parts": SEQUENCE}, axis=0)
    cast = saved(tmp_path / "cast.onnx", "Cast", {"x": scalar}, to=FLOAT)
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    arrays = [np.zeros(n, np.float32) for n in (2, 5)]
    values: list[Any] = [numpy_helper.from_list(arrays, "parts")]
    values.append(helper.make_tensor("x", TensorProto.BFLOAT16, [], [1.5]))
    for number, value in enumerate(values):
        (folder / f"input_{number}.pb").write_bytes(value.SerializeToString())
    one, other = timed(join, cast, "--device", "local", "--input", folder)
    assert [one["failure"], other["failure"]] == [None, None]
    assert one["inputs"] == [{"name": "parts", "type": "seq(float32)", "dims": []}]
    assert other["inputs"] == [{"name": "x", "type": "bfloat16", "dims": []}]
    assert one["case"]["inputs_sha256"] != other["case"]["inputs_sha256"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    profiler = FakeProfiler(lambda model: 2.0)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    return profiler


def test_a_model_may_lack_what_another_is_given(fake: FakeProfiler, tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, [3])
    one = saved(tmp_path / "one.onnx", "Neg", {"a": tensor})
    two = saved(tmp_path / "two.onnx", "Add", {"a": tensor, "b": tensor})
    path = tmp_path / "inputs.npz"
    np.savez(path, a=np.zeros(3, np.float32), b=np.zeros(3, np.float32))
    sent = [result["case"]["inputs_sha256"] for result in timed(one, two, "--input", path)]
    assert len(set(sent)) == 2
    assert None not in sent


def test_arrays_of_types_that_numpy_lacks_are_given_in_python(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.BFLOAT16, [2])
    model = saved(tmp_path / "cast.onnx", "Cast", {"x": kind}, to=FLOAT)
    array = np.ones(2, helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    esm_host.time(model, "any", inputs={"x": array}, runs=8)
    assert fake.blocks[0].models[0].case.inputs is not None
    with pytest.raises(UsageError, match="'x' is bfloat16 and the array is float32"):
        esm_host.time(model, "any", inputs={"x": np.ones(2, np.float32)}, runs=8)


def test_onnx_values_are_given_in_python(fake: FakeProfiler, tmp_path: Path) -> None:
    model = saved(tmp_path / "join.onnx", "ConcatFromSequence", {"parts": SEQUENCE}, axis=0)
    value = numpy_helper.from_list([np.zeros(2, np.float32)])
    (tmp_path / "parts.pb").write_bytes(value.SerializeToString())
    for inputs in ({"parts": value}, tmp_path / "parts.pb", [tmp_path / "parts.pb"]):
        esm_host.time(model, "any", inputs=inputs, runs=8)  # type: ignore[arg-type]
    cases = [block.models[0].case for block in fake.blocks]
    assert all(case.inputs for case in cases)
    assert cases[1].inputs == cases[2].inputs
