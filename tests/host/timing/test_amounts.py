"""Inputs whose drawn values decide how much a model computes, and the warning about them."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from esm_host.cli.app import app
from esm_host.timing.amounts import deciding_inputs
from esm_protos.v1 import onnx_view_pb2


def looped() -> onnx.ModelProto:
    """Negates ``x`` as often as ``count`` says, which is cast and squeezed on its way."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Neg", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [4]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["count"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["wide"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body),
    ]
    inputs = [
        helper.make_tensor_value_info("count", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph(nodes, "g", inputs, [output])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def found(model: onnx.ModelProto, *names: str) -> list[tuple[str, str]]:
    view = onnx_view_pb2.Model.FromString(model.SerializeToString())
    return deciding_inputs(view, names)


def test_a_trip_count_decides_and_an_image_does_not() -> None:
    assert found(looped(), "count", "x") == [("count", "Loop")]
    assert found(looped(), "x") == [], "what is given needs no warning"


def test_a_size_within_a_body_decides() -> None:
    """An If whose branches take the outer graph's inputs."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tiled = helper.make_graph([helper.make_node("Tile", ["x", "times"], ["y"])], "a", [], [output])
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [output])
    branch = helper.make_node("If", ["which"], ["y"], then_branch=tiled, else_branch=plain)
    model = helper.make_model(helper.make_graph([branch], "g", [], [output]))
    assert found(model, "which", "times", "x") == [("which", "If"), ("times", "Tile")]


@pytest.mark.parametrize("given", [False, True])
def test_a_drawn_trip_count_is_warned_of(tmp_path: Path, given: bool) -> None:
    import numpy as np

    path, values, out = (tmp_path / name for name in ("loop.onnx", "values.npz", "out.json"))
    onnx.save(looped(), path)
    np.savez(values, count=np.array([20], np.int32))
    arguments = ["time", str(path), "--runs", "48", "--json", str(out)]
    result = CliRunner().invoke(app, [*arguments, *(["--input", str(values)] if given else [])])
    assert result.exit_code == 0, result.stderr
    warning = "values of 'count' (of Loop) decide how much is computed and were drawn"
    assert (warning in result.stderr) != given
    (entry,) = json.loads(out.read_text())["results"]
    assert any(warning in text for text in entry["warnings"]) != given
