"""A model file is looked at before the runtime sees it."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure.preflight import examine
from esm_models.spaces import load_space
from esm_protos.messages import FailureKind, Limits
from tests.helpers import REFERENCE_MODELS, largest

LIMITS = Limits(10**9, 256, max_model_bytes=10**6, max_model_nodes=20, max_model_parameters=1000)


def model() -> onnx.ModelProto:
    """An initializer, a constant, a subgraph, a sparse initializer and a function."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "inner")],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", 9, [], [True])),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Mine", ["i"], ["y"], domain="local"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "w")],
    )
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("si", TensorProto.INT64, [1], [2])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    function = helper.make_function(
        "local",
        "Mine",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"], value=helper.make_tensor("k", 1, [1], [2.0])),
            helper.make_node("Mul", ["a", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    return helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        ir_version=9,
    )


Edit = Callable[[onnx.ModelProto], object]
PLACES: dict[str, Callable[[onnx.ModelProto], TensorProto]] = {
    "initializer": lambda m: m.graph.initializer[0],
    "attribute": lambda m: m.graph.node[0].attribute[0].t,
    "subgraph": lambda m: m.graph.node[1].attribute[0].g.initializer[0],
    "sparse values": lambda m: m.graph.sparse_initializer[0].values,
    "sparse indices": lambda m: m.graph.sparse_initializer[0].indices,
    "function": lambda m: m.functions[0].node[0].attribute[0].t,
}


def kind_and_text(edit: Edit) -> tuple[FailureKind | None, str]:
    proto = model()
    edit(proto)
    failure = examine(proto.SerializeToString(), LIMITS)
    return (failure.kind, failure.message) if failure else (None, "")


def test_what_is_well_is_let_through() -> None:
    onnx.checker.check_model(model())
    assert kind_and_text(lambda m: None) == (None, "")
    whole = Limits(10**9, 256)
    for path in REFERENCE_MODELS.glob("*.onnx"):
        assert examine(path.read_bytes(), whole) is None
    for name in ("resnet", "mobilenetv3", "densenet"):
        space = load_space(name)
        assert examine(space.build(largest(space)), whole) is None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "*/_ORT_MEM_ADDR_/*",
        "*//_ORT_MEM_ADDR_//*",
        "*/./_ORT_MEM_ADDR_/*",
        "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*",
        "*/_ort_mem_addr_/*",
    ],
)
@pytest.mark.parametrize("keys", [["location"], ["location", "location"], ["path", "location"]])
def test_addresses_in_memory_are_refused_even_where_a_file_of_that_name_came(
    place: str, location: str, keys: list[str]
) -> None:
    """The runtime would read its own process's memory there."""
    proto = model()
    tensor = PLACES[place](proto)
    tensor.data_location = TensorProto.EXTERNAL
    for key in keys:
        tensor.external_data.add(key=key, value=location)
        location = "weights.bin"
    failure = examine(proto.SerializeToString(), LIMITS, {"*/_ORT_MEM_ADDR_/*", "weights.bin"})
    assert failure is not None
    assert failure.kind is FailureKind.INVALID_MODEL
    assert "refers to an address in memory" in failure.message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../weights", "weights.bin", "", "weightless/../x"],
)
def test_data_elsewhere_is_refused_wherever_it_is_asked_for(place: str, location: str) -> None:
    def edit(m: onnx.ModelProto) -> None:
        tensor = PLACES[place](m)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    kind, text = kind_and_text(edit)
    assert kind is FailureKind.INVALID_MODEL
    assert "is stored in another file" in text


@pytest.mark.parametrize("place", PLACES)
def test_only_the_main_graphs_initializers_may_be_weightless(place: str) -> None:
    def edit(m: onnx.ModelProto) -> None:
        tensor = PLACES[place](m)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weightless")

    assert (kind_and_text(edit)[0] is None) == (place == "initializer")


def test_a_second_location_hides_behind_no_first_one() -> None:
    def edit(m: onnx.ModelProto) -> None:
        for location in ("weightless", "/etc/passwd"):
            m.graph.initializer[0].external_data.add(key="location", value=location)

    assert "/etc/passwd" in kind_and_text(edit)[1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dims", [[-1], [2**40, 2**40], [2**62, 0, 2**62], [1] * 65])
def test_absurd_dimensions_are_refused(place: str, dims: list[int]) -> None:
    kind, text = kind_and_text(lambda m: PLACES[place](m).dims.__setitem__(slice(None), dims))
    assert kind is FailureKind.INVALID_MODEL
    assert "dimension" in text or "more elements than can be addressed" in text or "limit" in text


@pytest.mark.parametrize(
    ("edit", "kind", "words"),
    [
        (lambda m: m.graph.node.extend([m.graph.node[0]] * 20), "INVALID_MODEL", "limit of 20"),
        (
            lambda m: m.graph.node[1].attribute[0].g.node.extend([m.graph.node[0]] * 20),
            "INVALID_MODEL",
            "limit of 20",
        ),
        (lambda m: m.functions[0].node.extend([m.graph.node[0]] * 20), "INVALID_MODEL", "nodes"),
        (lambda m: m.graph.initializer[0].dims.append(1000), "INVALID_MODEL", "limit of 1000"),
        (
            lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(10**6)),
            "INVALID_MODEL",
            "limit of 1 MB",
        ),
        (lambda m: m.ClearField("graph"), "INVALID_MODEL", "not an ONNX file"),
        (lambda m: m.ClearField("functions"), "UNSUPPORTED_OP", "domain 'local'"),
        (
            lambda m: setattr(m.graph.node[1].attribute[0].g.node[0], "domain", "evil"),
            "UNSUPPORTED_OP",
            "domain 'evil'",
        ),
        (
            lambda m: m.graph.node.add(op_type="EPContext", domain="com.microsoft"),
            "UNSUPPORTED_OP",
            "EPContext",
        ),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim.extend(
                [m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2**50)] * 2
            ),
            "INVALID_MODEL",
            "input x",
        ),
        (lambda m: m.graph.sparse_initializer[0].dims.append(-3), "INVALID_MODEL", "sparse"),
    ],
)
def test_what_exceeds_a_limit_or_needs_more_than_is_here_is_refused(
    edit: Edit, kind: str, words: str
) -> None:
    got, text = kind_and_text(edit)
    assert got is FailureKind[kind]
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("data", [b"", b"no model", b"\x0a" * 999, b"\x3a\x02\x0a\x05"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    failure = examine(data, LIMITS)
    assert failure is not None
    assert failure.kind is FailureKind.INVALID_MODEL
    assert "this is not an ONNX file" in failure.message


def test_names_that_are_no_text_are_refused() -> None:
    data = model().SerializeToString().replace(b"local", b"\xff\xfe\xfd\xfc\xfb")
    failure = examine(data, LIMITS)
    assert failure is not None
    assert failure.kind is FailureKind.INVALID_MODEL
