"""Shapes that a request makes of a model's inputs, and what of it makes no sense."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_host.errors import UsageError
from esm_host.inputs import (
    Array,
    GraphInput,
    check_names,
    graph_inputs,
    parse_shape,
    resolve,
)
from esm_protos.v1 import onnx_view_pb2

IMAGE = GraphInput("image", "float32", ("N", 3, "H", "W"))
MASK = GraphInput("mask", "bool", ("N", "H"))
FIXED = GraphInput("fixed", "int64", (1, 5))
UNKNOWN = GraphInput("unknown", "float32", None)
SCALAR = GraphInput("scalar", "float32", ())
TWINS = [GraphInput("a", "float32", (None, 4)), GraphInput("b", "float32", (None, 4))]


def resolved(inputs: list[GraphInput], *shapes: str, **others) -> dict[str, tuple[int, ...]]:
    return dict(resolve("m.onnx", inputs, [parse_shape(text) for text in shapes], **others))


def test_what_is_read_of_a_graph() -> None:
    """As exporters write it: symbols, zeros and -1, no shape at all, initializers as inputs."""
    shapes = {"x": ["N", 3, 0, -1], "s": [], "u": None, "w": [2]}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, dims)
        for name, dims in shapes.items()
    ]
    weight = numpy_helper.from_array(np.ones(2, np.float16), "w")
    sequence = helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None)
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.BFLOAT16, [2]))
    optional = helper.make_value_info("o", kind)
    graph = helper.make_graph([], "g", [*values, sequence, optional], [], [weight])
    data = helper.make_model(graph).SerializeToString()
    assert graph_inputs(onnx_view_pb2.Model.FromString(data)) == (
        GraphInput("x", "float16", ("N", 3, 0, None)),
        GraphInput("s", "float16", ()),
        GraphInput("u", "float16", None),
        GraphInput("q", "seq(float32)", None),
        GraphInput("o", "optional(bfloat16)", (2,)),
    )


@pytest.mark.parametrize(
    ("text", "name", "dims"),
    [
        ("x:1x3x224x224", "x", (1, 3, 224, 224)),
        ("serving:0:8x2", "serving:0", (8, 2)),
        ("7", None, (7,)),
        ("x:Nx3", "x", (None, 3)),
    ],
)
def test_shapes_are_read(text: str, name: str | None, dims: tuple[int | None, ...]) -> None:
    shape = parse_shape(text)
    assert (shape.name, shape.dims) == (name, dims)


@pytest.mark.parametrize(
    "text", ["", "x", "x:", ":1", "1x", "x1", "1xx2", "0x3", "1,3", "1x-3", "9999999999", "²"]
)
def test_no_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="give NAME:1x3x224x224"):
        parse_shape(text)


def test_free_dimensions_are_one_and_fixed_inputs_left_alone() -> None:
    inputs = [IMAGE, MASK, FIXED, UNKNOWN, SCALAR]
    assert resolved(inputs) == {"image": (1, 3, 1, 1), "mask": (1, 1)}
    assert resolved([FIXED, SCALAR]) == {}


def test_dimensions_that_share_a_symbol_follow() -> None:
    shapes = resolved([IMAGE, MASK], "image:8x3x32x16")
    assert shapes == {"image": (8, 3, 32, 16), "mask": (8, 32)}
    assert resolved([IMAGE, MASK], "mask:2x7") == {"image": (2, 3, 7, 1), "mask": (2, 7)}
    agreed = resolved([IMAGE, MASK], "image:2x3x7x9", "mask:2x7")
    assert agreed == {"image": (2, 3, 7, 9), "mask": (2, 7)}


def test_the_batch_is_the_first_dimension_where_it_is_free() -> None:
    shapes = resolved([IMAGE, MASK, FIXED, *TWINS, SCALAR], batch=8)
    assert shapes == {"image": (8, 3, 1, 1), "mask": (8, 1), "a": (8, 4), "b": (8, 4)}
    shapes = resolved([IMAGE, MASK], "image:Nx3x32x32", batch=4)
    assert shapes == {"image": (4, 3, 32, 32), "mask": (4, 32)}
    assert resolved([UNKNOWN], "Nx2", batch=4) == {"unknown": (4, 2)}


def test_arrays_say_the_shapes_of_what_is_drawn_beside_them() -> None:
    arrays = {"image": Array("float32", (5, 3, 2, 2))}
    assert resolved([IMAGE, MASK], arrays=arrays) == {"mask": (5, 2)}
    with pytest.raises(UsageError, match=r"--batch 2 and --input disagree: 'N'"):
        resolved([IMAGE, MASK], arrays=arrays, batch=2)


@pytest.mark.parametrize(
    ("inputs", "shapes", "batch", "words"),
    [
        ([FIXED], ["2x5"], None, r"--shape 2x5: dimension 0 of input 'fixed' would be 2.* at 1"),
        ([IMAGE], ["1x4x9x9"], None, "would be 4, m.onnx fixes it at 3"),
        ([IMAGE], ["1x3"], None, r"has 4 dimensions \(Nx3xHxW\), not 2"),
        ([SCALAR], ["1"], None, r"has 0 dimensions \(a scalar\), not 1"),
        ([IMAGE, MASK], ["image:8x3x2x2", "mask:7x2"], None, "mask:7x2 and --shape image.* disagr"),
        ([IMAGE], ["1x3x2x2"], 8, r"--batch 8 and --shape 1x3x2x2 disagree: 'N'.*write N for it"),
        ([FIXED, SCALAR], [], 8, r"--batch 8: m.onnx has no .* free \('fixed' is 1x5, 'scalar'"),
        ([], [], 8, "it takes none"),
        ([UNKNOWN], [], 8, "'unknown' is of any shape"),
        ([IMAGE, MASK], ["1x3x2x2"], None, r"m.onnx has 2 inputs \(image, mask\): say which"),
    ],
)
def test_contradictions_name_both_sides(
    inputs: list[GraphInput], shapes: list[str], batch: int | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        resolved(inputs, *shapes, batch=batch)


def test_a_name_has_to_be_one_of_some_model() -> None:
    models = {"a.onnx": [IMAGE], "b.onnx": [FIXED]}
    check_names([parse_shape("image:1x3x2x2"), parse_shape("fixed:1x5")], models)
    with pytest.raises(UsageError, match="no input 'imgae': did you mean 'image'"):
        check_names([parse_shape("imgae:1x3x2x2")], models)
    with pytest.raises(UsageError, match="has a shape already"):
        check_names([parse_shape("image:1"), parse_shape("image:2")], models)
    assert resolved([FIXED], "image:1x3x2x2") == {}, "it is another model's"
