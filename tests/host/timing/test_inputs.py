"""Shapes that a request makes of a model's inputs, and what of it makes no sense."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_host.arguments import in_python, on_command_line
from esm_host.errors import UsageError
from esm_host.timing.inputs import (
    Array,
    GivenDim,
    GraphInput,
    Shapes,
    assumption,
    check_names,
    check_symbols,
    graph_inputs,
    parse_dims,
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


def shapes_of(inputs: list[GraphInput], *shapes: str, **others) -> Shapes:
    return resolve("m.onnx", inputs, [parse_shape(text) for text in shapes], **others)


def resolved(inputs: list[GraphInput], *shapes: str, **others) -> dict[str, tuple[int, ...]]:
    return dict(shapes_of(inputs, *shapes, **others).dims)


def assumed(inputs: list[GraphInput], *shapes: str, **others) -> list[tuple[str, int | None]]:
    """Names and axes."""
    found = shapes_of(inputs, *shapes, **others).assumed
    return [(each.input.name, each.axis) for each in found]


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
    with pytest.raises(UsageError, match=r"batch 2 sets nothing in m.onnx: inputs gives 'image' 5"):
        resolved([IMAGE, MASK], arrays=arrays, batch=2)
    with pytest.raises(UsageError, match=r"shapes image:1x3x2x2 and inputs disagree"):
        resolved([IMAGE, MASK], "image:1x3x2x2", arrays=arrays)


def test_dimensions_of_one_symbol_may_differ_where_both_are_given() -> None:
    """As a published classifier has it, and as ONNX Runtime runs it."""
    classifier = GraphInput("x", "float32", (None, 3, "S", "S"))
    assert resolved([classifier], "1x3x48x192") == {"x": (1, 3, 48, 192)}
    assert resolved([classifier], "1x3x48xN") == {"x": (1, 3, 48, 48)}
    given = resolved([IMAGE, MASK], "image:8x3x2x2", "mask:7x2")
    assert given == {"image": (8, 3, 2, 2), "mask": (7, 2)}
    other = GraphInput("y", "float32", ("S",))
    assert resolved([classifier, other], "x:1x3x48x192")["y"] == (1,), "which is meant is unknown"
    assert assumed([classifier, other], "x:1x3x48x192") == [("y", 0)]


def test_each_dimension_takes_what_says_most_of_it() -> None:
    """Its own shape, its symbol's size, the symbol's size elsewhere, the batch, 1."""
    inputs = [IMAGE, MASK, TWINS[0]]
    given = resolved(inputs, "image:NxNx32xN", dims={"H": 64, "W": 16}, batch=4)
    assert given == {"image": (4, 3, 32, 16), "mask": (4, 64), "a": (4, 4)}
    assert resolved(inputs, "image:2x3x8x8", dims={"N": 3}, batch=5) == {
        "image": (2, 3, 8, 8),
        "mask": (3, 8),
        "a": (5, 4),
    }
    assert assumed(inputs, "image:2x3x8x8", dims={"N": 3}, batch=5) == []
    with pytest.raises(
        UsageError, match=r"dims H=9 sets nothing in m.onnx: shapes .* gives 'image' 8"
    ):
        resolved([IMAGE], "1x3x8x8", dims={"H": 9})
    with pytest.raises(UsageError, match=r"batch 8 sets nothing in m.onnx: dims N=2 gives 'image'"):
        resolved([IMAGE], dims={"N": 2}, batch=8)


def test_what_is_assumed_is_told() -> None:
    inputs = [IMAGE, MASK, FIXED, UNKNOWN, SCALAR]
    everything = [("image", 0), ("image", 2), ("image", 3), ("mask", 0), ("mask", 1)]
    assert assumed(inputs) == [*everything, ("unknown", None)]
    assert assumed(inputs, "image:1x3x8x8", "unknown:3") == []
    assert assumed([IMAGE], batch=2) == [("image", 2), ("image", 3)], "also with a batch"
    text = on_command_line(assumption(shapes_of([IMAGE, MASK], batch=2).assumed))
    assert text == (
        "no size is given for H and W of image:Nx3xHxW, mask:NxH: taken as 1; set H and W by "
        "--dim H=SIZE --dim W=SIZE"
    )
    assert "set N by batch, H by dims H=SIZE" in in_python(assumption(shapes_of([MASK]).assumed))
    unnamed = GraphInput("x", "float32", (None, 3, None, None))
    text = on_command_line(assumption(shapes_of([unnamed, UNKNOWN], batch=1).assumed))
    assert "dimensions 2 and 3 of x:?x3x?x?; the whole shape of unknown (a scalar)" in text
    assert (
        "dimensions 2 and 3 of x by --shape x:SIZEx3xSIZExSIZE, "
        "unknown by --shape unknown:SIZExSIZE" in text
    )
    assert "set it by --batch" in on_command_line(assumption(shapes_of(TWINS[:1]).assumed))


def test_items_are_counted_where_the_model_names_its_batch() -> None:
    tokens = GraphInput("ids", "int64", ("batch_size", "sequence"))
    assert shapes_of([tokens], dims={"batch_size": 8}).items == 8
    assert shapes_of([tokens], "4x128").items == 4
    assert shapes_of([tokens], arrays={"ids": Array("int64", (3, 5))}).items == 3
    assert shapes_of([GraphInput("x", "float32", ("time", 4))], "9x4").items == 1
    assert shapes_of(TWINS, "a:9x4", "b:9x4").items == 1, "nothing says that it is a batch"
    assert shapes_of([IMAGE, MASK], "image:8x3x2x2", "mask:7x2").items == 1, "they disagree"


def test_sizes_of_symbols_are_read() -> None:
    assert parse_dims(["H=8,16", "a=b=3"]) == (GivenDim("H", (8, 16)), GivenDim("a=b", (3,)))
    for text in ("H", "=3", "H=", "H=0", "H=1,", "H=-1", "H=1.5", "H=x", "H=9999999999"):
        with pytest.raises(UsageError, match="give NAME=SIZE"):
            parse_dims([text])
    with pytest.raises(UsageError, match="give each size once"):
        parse_dims(["H=2,2"])
    with pytest.raises(UsageError, match="'H' has a size already"):
        parse_dims(["H=2", "H=3"])


def test_a_symbol_has_to_be_one_of_some_model() -> None:
    models = {"a.onnx": [IMAGE], "b.onnx": [FIXED]}
    check_symbols(parse_dims(["H=2", "W=3"]), models)
    with pytest.raises(
        UsageError, match=r"unknown dimension 'h': did you mean 'H'\? the inputs name 'H', 'N', 'W'"
    ):
        check_symbols(parse_dims(["h=2"]), models)
    with pytest.raises(UsageError, match="unknown dimension 'h': the inputs name none"):
        check_symbols(parse_dims(["h=2"]), {"b.onnx": [FIXED, *TWINS]})


@pytest.mark.parametrize(
    ("inputs", "shapes", "batch", "words"),
    [
        ([FIXED], ["2x5"], None, r"shapes 2x5: dimension 0 of input 'fixed' would be 2.* at 1"),
        ([IMAGE], ["1x4x9x9"], None, "would be 4, m.onnx fixes it at 3"),
        ([IMAGE], ["1x3"], None, r"has 4 dimensions \(Nx3xHxW\), not 2"),
        ([SCALAR], ["1"], None, r"has 0 dimensions \(a scalar\), not 1"),
        ([IMAGE], ["1x3x2x2"], 8, r"batch 8 sets nothing .* shapes 1x3x2x2 gives.* write N"),
        ([FIXED, SCALAR], [], 8, r"batch 8: m.onnx has no .* free \('fixed' is 1x5, 'scalar'"),
        ([], [], 8, "it takes none"),
        ([UNKNOWN], [], 8, "'unknown' is of any shape"),
        ([IMAGE, MASK], ["1x3x2x2"], None, r"m.onnx has 2 inputs \('image', 'mask'\): name one"),
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
    with pytest.raises(UsageError, match="unknown input 'imgae': did you mean 'image'"):
        check_names([parse_shape("imgae:1x3x2x2")], models)
    with pytest.raises(UsageError, match="has a shape already"):
        check_names([parse_shape("image:1"), parse_shape("image:2")], models)
    assert resolved([FIXED], "image:1x3x2x2") == {}, "it is another model's"
