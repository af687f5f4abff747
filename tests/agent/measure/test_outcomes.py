"""What the runtime says of a failure, without what it read from a model's data."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from esm_agent.measure.outcomes import one_line, outcome
from esm_protos.messages import FailureKind

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
        "Node (Conv_12) has no input /layers/0/x.5",
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


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Mul node. "
            "Name:'mul_3' Status Message: /src/core/ops.cc:52 virtual onnxruntime::common::Status "
            "onnxruntime::Mul<T>::Compute(onnxruntime::OpKernelContext*) const [with T = float] "
            "a.rank() == b.rank() was false. Shapes do not fit.",
            "Mul 'mul_3': Shapes do not fit.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/a b/m.onnx failed:Fatal error: "
            "ai.onnx:Fancy(-1) is not a registered function/op",
            "ai.onnx:Fancy(…) is not a registered function/op",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
            "/src/text/normalizer.cc:235 onnxruntime::Locale::Locale(const std::string&)::"
            "<lambda()> No such locale",
            "No such locale",
        ),
        ("upsamplebase.h:548 ScalesValidation Scale is too small", "Scale is too small"),
        ("ops.cc:2256 operator() Integer division by zero", "Integer division by zero"),
        (
            '[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, ("n", '
            'Foo, "", -1) : ("x": tensor(float),) -> ("y": tensor(float),) , Error Too few inputs',
            "Too few inputs",
        ),
    ],
)
def test_where_in_the_source_it_was_said_is_not_told(text: str, kept: str) -> None:
    assert one_line(RuntimeError(text)) == kept


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Batchwise operations (layout == 1) are not supported.", FailureKind.UNSUPPORTED_OP),
        (
            "Type Error: Type 'tensor(bfloat16)' of input parameter (x) of operator (Einsum) in "
            "node (n) is invalid.",
            FailureKind.UNSUPPORTED_OP,
        ),
        ("Unrecognized attribute: window for operator Attention", FailureKind.UNSUPPORTED_OP),
        ("std::bad_alloc", FailureKind.OUT_OF_MEMORY),
        ("Graph has a cycle", FailureKind.INVALID_MODEL),
    ],
)
def test_what_the_runtime_lacks_is_no_fault_of_the_model(text: str, kind: FailureKind) -> None:
    assert outcome(RuntimeError(text)).kind is kind


def test_other_exceptions_are_named() -> None:
    assert outcome(KeyError("x")).message == "KeyError: 'x'"
