"""Every type that ONNX has as input and output: drawn, given as ONNX value, timed, profiled."""

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from esm_agent.measure.backends import LoadedModel
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.onnx_values import decode, packed
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import FailureKind, Input, MeasureSpec
from esm_protos.value_types import BY_NUMBER, ELEMENTS, ValueType, runtime_type

SPEC = MeasureSpec()
COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}
"""No value of these exists in ONNX Runtime."""
RUNNABLE = [element for element in ELEMENTS if element.number not in COMPLEX]
FLOAT = TensorProto.FLOAT
TENSOR = helper.make_tensor_type_proto


def value(name: str, kind: TypeProto) -> ValueInfoProto:
    return helper.make_value_info(name, kind)


def built(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    opset: int = 17,
    initializers: Sequence[TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)]
    ir_version = {19: 9, 21: 10, 23: 11, 25: 12}.get(opset, 8)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return bytes(model.SerializeToString())


def passed_on(kind: TypeProto, opset: int = 17) -> bytes:
    identity = helper.make_node("Identity", ["x"], ["y"])
    return built([identity], [value("x", kind)], [value("y", kind)], opset)


def shape_of(number: int, dims: Sequence[int] = (3,)) -> bytes:
    """Runs with every type of tensor, in the first version that has it."""
    opset = next(
        o for last, o in ((16, 17), (20, 19), (22, 21), (23, 23), (26, 25)) if number <= last
    )
    shape = helper.make_node("Shape", ["x"], ["y"])
    output = value("y", TENSOR(TensorProto.INT64, [len(dims)]))
    return built([shape], [value("x", TENSOR(number, dims))], [output], opset)


def loaded(tmp_path: Path, model: bytes, **given: Any) -> LoadedModel:
    """With protos by name."""
    path, inputs = tmp_path / "model.onnx", tmp_path / "inputs.zip"
    path.write_bytes(model)
    with zipfile.ZipFile(inputs, "w") as archive:
        for name, proto in given.items():
            archive.writestr(f"{name}.pb", proto.SerializeToString())
    backend = CpuProvider()
    return backend.load(UploadedModel("m", path, inputs=inputs if given else None), SPEC)


def outputs(model: LoadedModel) -> Sequence[Any]:
    model.run()
    model.run()
    return model.outputs()


@pytest.mark.parametrize("element", RUNNABLE, ids=lambda element: element.name)
def test_every_type_of_tensor_is_drawn(tmp_path: Path, element: Any) -> None:
    model = loaded(tmp_path, shape_of(element.number))
    assert model.feed.inputs == (Input("x", element.name, (3,)),)
    assert outputs(model)[0].numpy().tolist() == [3]


@pytest.mark.parametrize("element", RUNNABLE, ids=lambda element: element.name)
@pytest.mark.parametrize("dims", [(), (0,), (2, 3)], ids=str)
def test_of_every_shape(tmp_path: Path, element: Any, dims: tuple[int, ...]) -> None:
    model = loaded(tmp_path, shape_of(element.number, dims))
    assert outputs(model)[0].numpy().tolist() == list(dims)


@pytest.mark.parametrize(
    "number",
    [
        *(TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ),
        *(TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ, TensorProto.INT4),
        *(TensorProto.UINT4, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8),
    ],
    ids=lambda number: BY_NUMBER[number].name,
)
@pytest.mark.parametrize("raw", [True, False])
def test_values_that_came_are_those_that_the_model_computes_with(
    tmp_path: Path, number: int, raw: bool
) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    inputs = [value("x", TENSOR(number, [3]))]
    model = built([cast], inputs, [value("y", TENSOR(FLOAT, [3]))], 21)
    wanted = np.array([1, 0, 1], np.float32)
    array = wanted.astype(helper.tensor_dtype_to_np_dtype(number))
    proto = numpy_helper.from_array(array)
    if not raw:
        proto = helper.make_tensor("", number, [3], wanted)
        assert not proto.raw_data
    assert outputs(loaded(tmp_path, model, x=proto))[0].numpy().tolist() == wanted.tolist()


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("raw", [True, False])
def test_protos_are_read_as_onnx_reads_them(element: Any, raw: bool) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(element.number)
    array: Any = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    if element.name == "string":
        array = np.array([["a", "b", "c"], ["d", "e", "é"]], dtype=object)
        raw = False
    proto = numpy_helper.from_array(array)
    if not raw:
        proto = helper.make_tensor("", element.number, array.shape, array.ravel())
    read: Any = decode(proto.SerializeToString(), ValueType(element))
    assert (read.shape, read.dtype) == (array.shape, np.dtype(element.storage))
    if element.in_numpy:
        assert read.tolist() == array.tolist()
    elif element.bits < 8:
        stored = numpy_helper.from_array(array).raw_data
        assert packed(read, element.bits).tobytes() == stored
    else:
        assert read.tobytes() == array.tobytes()


@pytest.mark.parametrize("number", [TensorProto.INT4, TensorProto.UINT4], ids=["int4", "uint4"])
def test_types_that_numpy_lacks_come_out(tmp_path: Path, number: int) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=number)
    model = built([cast], [value("x", TENSOR(FLOAT, [3]))], [value("y", TENSOR(number, [3]))], 21)
    assert outputs(loaded(tmp_path, model))[0].element_type() == number


def test_a_scalar_in_bfloat16_lives(tmp_path: Path) -> None:
    (output,) = outputs(loaded(tmp_path, passed_on(TENSOR(TensorProto.BFLOAT16, []))))
    assert (output.data_type(), output.shape()) == ("tensor(bfloat16)", [])


@pytest.mark.parametrize("number", sorted(COMPLEX), ids=["complex64", "complex128"])
def test_complex_numbers_are_beyond_the_runtime(tmp_path: Path, number: int) -> None:
    with pytest.raises(ModelError, match="complex") as caught:
        loaded(tmp_path, passed_on(TENSOR(number, [2])))
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP


def test_strings_are_given_and_drawn(tmp_path: Path) -> None:
    model = passed_on(TENSOR(TensorProto.STRING, [2]))
    words = helper.make_tensor("", TensorProto.STRING, [2], ["héllo", ""])
    assert outputs(loaded(tmp_path, model, x=words))[0].numpy().tolist() == ["héllo", ""]
    assert all(outputs(loaded(tmp_path, model))[0].numpy())


SEQUENCE = helper.make_sequence_type_proto


def joined(number: int = FLOAT) -> bytes:
    join = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    output = value("y", TENSOR(number, None))
    return built([join], [value("x", SEQUENCE(TENSOR(number, None)))], [output])


def test_sequences_are_drawn_as_two_tensors(tmp_path: Path) -> None:
    for number, name in ((FLOAT, "seq(float32)"), (TensorProto.STRING, "seq(string)")):
        model = loaded(tmp_path, joined(number))
        assert model.feed.inputs == (Input("x", name, (1,)),)
        assert outputs(model)[0].shape() == [2]


def test_tensors_in_a_drawn_sequence_have_the_dimensions_that_the_model_declares(
    tmp_path: Path,
) -> None:
    kind = SEQUENCE(TENSOR(FLOAT, [2, "n"]))
    model = loaded(tmp_path, passed_on(kind))
    assert model.feed.inputs == (Input("x", "seq(float32)", (2, 1)),)
    assert model.feed.free == ("x",)
    assert loaded(tmp_path, passed_on(SEQUENCE(TENSOR(FLOAT, [2])))).feed.free == ()


def test_sequences_are_given(tmp_path: Path) -> None:
    arrays = [np.array([1, 2], np.float32), np.array([3], np.float32)]
    model = loaded(tmp_path, joined(), x=numpy_helper.from_list(arrays))
    assert outputs(model)[0].numpy().tolist() == [1, 2, 3]
    words = [np.array(["a"], object), np.array(["b", "c"], object)]
    model = loaded(tmp_path, joined(TensorProto.STRING), x=numpy_helper.from_list(words))
    assert outputs(model)[0].numpy().tolist() == ["a", "b", "c"]


def test_a_sequence_may_be_empty_and_may_come_out(tmp_path: Path) -> None:
    model = passed_on(SEQUENCE(TENSOR(FLOAT, None)))
    (output,) = outputs(loaded(tmp_path, model, x=numpy_helper.from_list([])))
    assert output.is_tensor_sequence()
    assert len(outputs(loaded(tmp_path, model))) == 1


OPTIONAL = helper.make_optional_type_proto


def is_there(kind: TypeProto) -> bytes:
    node = helper.make_node("OptionalHasElement", ["x"], ["y"])
    return built([node], [value("x", OPTIONAL(kind))], [value("y", TENSOR(TensorProto.BOOL, []))])


@pytest.mark.parametrize("kind", [TENSOR(FLOAT, [3]), SEQUENCE(TENSOR(FLOAT, [3]))], ids=str)
def test_optional_values_are_drawn_and_may_be_given_or_absent(
    tmp_path: Path, kind: TypeProto
) -> None:
    sequence = kind.HasField("sequence_type")
    drawn = loaded(tmp_path, is_there(kind))
    wanted = ("optional(seq(float32))", (3,)) if sequence else ("optional(float32)", (3,))
    assert drawn.feed.inputs == (Input("x", *wanted),)
    assert outputs(drawn)[0].numpy()
    array = np.ones(3, np.float32)
    proto = numpy_helper.from_optional([array] if sequence else array)
    assert outputs(loaded(tmp_path, is_there(kind), x=proto))[0].numpy()
    absent = onnx.OptionalProto(elem_type=proto.elem_type)
    assert not outputs(loaded(tmp_path, is_there(kind), x=absent))[0].numpy()


def test_an_absent_value_and_a_map_may_come_out(tmp_path: Path) -> None:
    kind = OPTIONAL(TENSOR(FLOAT, [3]))
    absent = helper.make_node("Optional", [], ["y"], type=TENSOR(FLOAT, [3]))
    outputs(loaded(tmp_path, built([absent], [], [value("y", kind)])))
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b"]
    )
    maps = SEQUENCE(helper.make_map_type_proto(TensorProto.STRING, TENSOR(FLOAT, [])))
    graph = helper.make_graph([node], "g", [value("x", TENSOR(FLOAT, [1, 2]))], [value("y", maps)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert outputs(loaded(tmp_path, model.SerializeToString()))


@pytest.mark.parametrize("operator", ["SplitToSequence", "SequenceConstruct"])
def test_sequences_that_come_out_do_not_grow_from_run_to_run(tmp_path: Path, operator: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"])
    sequence = SEQUENCE(TENSOR(FLOAT, None))
    model = loaded(
        tmp_path, built([node], [value("x", TENSOR(FLOAT, [2]))], [value("y", sequence)])
    )
    length = helper.make_node("SequenceLength", ["y"], ["n"])
    count = built([length], [value("y", sequence)], [value("n", TENSOR(TensorProto.INT64, []))])
    session = onnxruntime.InferenceSession(count, providers=["CPUExecutionProvider"])
    lengths = []
    for _ in range(3):
        found = onnxruntime.OrtValue(outputs(model)[0])
        lengths.append(int(session.run_with_ort_values(["n"], {"y": found})[0].numpy()))
    assert len(set(lengths)) == 1


def test_an_output_whose_shape_changes_from_run_to_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomUniform", [], ["u"], shape=[64]),
        helper.make_node("Greater", ["u", "x"], ["g"]),
        helper.make_node("NonZero", ["g"], ["y"]),
    ]
    output = value("y", TENSOR(TensorProto.INT64, [1, None]))
    half = numpy_helper.from_array(np.array(0.5, np.float32))
    model = loaded(tmp_path, built(nodes, [value("x", TENSOR(FLOAT, []))], [output]), x=half)
    assert len({tuple(outputs(model)[0].shape()) for _ in range(20)}) > 1


def test_an_error_of_a_run_keeps_its_type(tmp_path: Path) -> None:
    gather = helper.make_node("Gather", ["t", "x"], ["y"])
    table = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    inputs = [value("x", TENSOR(TensorProto.INT64, [1]))]
    outside = numpy_helper.from_array(np.array([9]))
    data = built([gather], inputs, [value("y", TENSOR(FLOAT, [1]))], initializers=[table])
    model = loaded(tmp_path, data, x=outside)
    with pytest.raises(Exception, match="indices") as caught:
        model.run()
    assert type(caught.value).__name__ == "InvalidArgument"


def test_an_initializer_that_is_an_input_too_may_be_given(tmp_path: Path) -> None:
    kind = TENSOR(FLOAT, [2])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    inputs = [value("x", kind), value("w", kind)]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    data = built([add], inputs, [value("y", kind)], initializers=[weight])
    assert [fed.name for fed in loaded(tmp_path, data).feed.inputs] == ["x"]
    zeros, fives = (numpy_helper.from_array(np.full(2, n, np.float32)) for n in (0, 5))
    model = loaded(tmp_path, data, x=zeros, w=fives)
    assert [fed.name for fed in model.feed.inputs] == ["x", "w"]
    assert outputs(model)[0].numpy().tolist() == [5, 5]


PROFILED = [shape_of(element.number) for element in RUNNABLE if element.bits]
PROFILED += [passed_on(TENSOR(TensorProto.STRING, [])), joined(), is_there(TENSOR(FLOAT, [3]))]


@pytest.mark.parametrize("data", PROFILED, ids=range(len(PROFILED)))
def test_every_type_is_profiled(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    told = CpuProvider().profile(UploadedModel("m", path), SPEC, 2, lambda share: None)
    assert told.runs == 2


# What is not to be trusted


def tensor(**fields: Any) -> TensorProto:
    return TensorProto(**{"data_type": FLOAT, "dims": [3], "raw_data": bytes(12)} | fields)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (tensor(raw_data=bytes(8)), "needs 12 bytes, it has 8"),
        (tensor(dims=[2**62, 2**62]), "it has 12"),
        (tensor(dims=[-3]), "invalid shape"),
        (tensor(dims=[1] * 99), "invalid shape"),
        (tensor(dims=[4], raw_data=bytes(16)), "the model takes 3, given 4"),
        (tensor(data_type=TensorProto.DOUBLE, dims=[1], raw_data=bytes(8)), "given float64"),
        (tensor(data_type=99), "the model takes float32, given type 99"),
        (tensor(data_location=TensorProto.EXTERNAL), "is in another file"),
        (TensorProto(data_type=FLOAT, dims=[3], float_data=[1, 2]), "3 numbers, it has 2"),
        (numpy_helper.from_list([np.zeros(3, np.float32)]), "input 'x': "),
    ],
    ids=range(10),
)
def test_protos_that_do_not_fit_are_refused(tmp_path: Path, proto: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        loaded(tmp_path, passed_on(TENSOR(FLOAT, [3])), x=proto)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT
    assert "input 'x'" in str(caught.value)


def test_a_proto_is_not_read_if_it_is_larger_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esm_agent.measure.feeds.memory_bytes", lambda: 1000)
    large = numpy_helper.from_array(np.zeros(300, np.float32))
    with pytest.raises(ModelError, match="more than this device's memory"):
        loaded(tmp_path, passed_on(TENSOR(FLOAT, [300])), x=large)


@pytest.mark.parametrize("write", [lambda d: d[:-9], lambda d: d[:40] + b"\xff" * 40 + d[80:]])
def test_a_damaged_file_of_values_is_refused(
    tmp_path: Path, write: Callable[[bytes], bytes]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.pb", tensor().SerializeToString() + bytes(200))
    inputs = tmp_path / "inputs.zip"
    inputs.write_bytes(write(buffer.getvalue()))
    path = tmp_path / "model.onnx"
    path.write_bytes(passed_on(TENSOR(FLOAT, [3])))
    with pytest.raises(ModelError) as caught:
        CpuProvider().load(UploadedModel("m", path, inputs=inputs), SPEC)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT


def test_types_as_the_runtime_writes_them() -> None:
    for text, name in (
        ("tensor(float)", "float32"),
        ("seq(tensor(double))", "seq(float64)"),
        ("optional(seq(tensor(int4)))", "optional(seq(int4))"),
        ("optional(tensor(string))", "optional(string)"),
    ):
        assert str(runtime_type(text)) == name
    for text in ("map(int64,tensor(float))", "seq(seq(tensor(float)))", "tensor(nothing)", "x"):
        assert runtime_type(text) is None
    for element in ELEMENTS:
        assert TensorProto.DataType.Value(
            {"float32": "FLOAT", "float64": "DOUBLE"}.get(element.name, element.name.upper())
        ) == (element.number)
