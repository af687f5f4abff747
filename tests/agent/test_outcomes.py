"""What the runtime says of a failure, without what it read from a model's data."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from esm_agent.measure.outcomes import one_line

SECRET = (7373, 9191)


def said(nodes: list[onnx.NodeProto], data: np.ndarray) -> str:
    """The runtime's own words on a model that reads ``data`` as the tensor "s"."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["a", "b"])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(data, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    feed = {"x": np.ones((2, 3), np.float32)}
    with pytest.raises(Exception, match="ONNXRuntimeError") as raised:
        ort.InferenceSession(model.SerializeToString(), options).run(None, feed)
    return one_line(raised.value)


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs"),
    [
        ("Reshape", ["x", "s"], ["y"]),
        ("Gather", ["x", "s"], ["y"]),
        ("Split", ["x", "s"], ["y", "z"]),
        ("Unsqueeze", ["x", "s"], ["y"]),
        ("Slice", ["x", "s", "s", "s"], ["y"]),
        ("GatherND", ["x", "s"], ["y"]),
    ],
)
def test_values_of_tensors_are_not_told(
    operator: str, inputs: list[str], outputs: list[str]
) -> None:
    text = said([helper.make_node(operator, inputs, outputs, name="n12")], np.array(SECRET))
    assert operator in text
    assert not any(str(number) in text for number in SECRET)


def test_not_even_as_shapes_that_they_become() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Concat", ["r", "x"], ["y"], axis=0),
    ]
    text = said(nodes, np.array([1, 1, 6]))
    assert "rank … != …" in text


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Node (Conv_12) has no input /layers/0/x.5",
        "Could not find an implementation for Mul(14) node with name 'mul_3'",
        "Current official support for domain ai.onnx is till opset 23.",
        "Unsupported model IR version: 14, max supported IR version: 11",
        "Got invalid dimensions for input: x for the following indices index: 1 Got: 3 Expected: 4 "
        "index: 2 Got: 5 Expected: 6 Please fix the inputs",
        "Invalid rank for input: x Got: 2 Expected: 4 Please fix the inputs",
        "CUDA failure 700: an illegal memory access was encountered ; file=/src/cuda_call.cc:123",
    ],
)
def test_what_helps_is_told(text: str) -> None:
    assert one_line(RuntimeError(text)) == text


@pytest.mark.parametrize("number", ["42", "-42", "4.2e+09", "0x7f3c", "3x4x5", ".5"])
def test_all_other_numbers_are_not(number: str) -> None:
    assert one_line(RuntimeError(f"value='{number}',\nsize {number}")) == "value='…', size …"
