"""Int8 subnets: their QDQ form, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from esm_models.architecture import Architecture
from esm_models.errors import InvalidSpaceError
from esm_models.graph import NEWEST_OPSET, OPSET, Network
from esm_models.parts import parts_of
from esm_models.quantization import _clipped, _Moments
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.models import operators as operators_of_all_kinds

ROOT = Path(__file__).parents[2]

SPACES = (
    *("resnet", "mobilenetv3", "densenet", "nasbench201", "fbnet", "ofa"),
    *("proxyless", "mobilenetv4", "detector"),
)
OWN = f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:PlainNet"

FLOATING = {"HardSwish", "HardSigmoid", "BatchNormalization"}
"""Without an int8 kernel. ``Mul`` and ``Sub`` are of HardSwish and of cells without an edge."""
INTEGER = {
    *("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QGemm"),
    *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid"),
    *("QLinearAveragePool", "QLinearGlobalAveragePool", "MaxPool", "NhwcMaxPool"),
    *("Transpose", "Reshape", "Flatten", "Resize"),
}


def int8_space(name: str, dtype: str = "int8") -> SearchSpace:
    side = 64 if name == "densenet" else 32
    return load_space(name, resolution=side, width_mult=0.25, dtype=dtype)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def runs(data: bytes, optimized: Path | None = None) -> list[NDArray[np.float32]]:
    """What comes out with the weights that an agent draws, of standard normal inputs."""
    session = loaded(data, optimized)
    rng = np.random.default_rng(0)
    return session.run(
        None,
        {x.name: rng.standard_normal(x.shape, dtype=np.float32) for x in session.get_inputs()},
    )


def loaded(data: bytes, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    weights = [
        tensor
        for tensor in onnx.load_from_string(data).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in weights)
    arrays = [draw_weights(tensor.name, tuple(tensor.dims)) for tensor in weights]
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers([tensor.name for tensor in weights], values)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Case:
    space: SearchSpace
    plain: SearchSpace
    architecture: Architecture

    @cached_property
    def data(self) -> bytes:
        return self.space.build(self.architecture)

    @cached_property
    def graph(self) -> onnx.GraphProto:
        return onnx.load_from_string(self.data).graph

    @cached_property
    def plain_data(self) -> bytes:
        return self.plain.build(self.architecture)


@pytest.fixture(
    scope="module", params=[(name, end) for name in (*SPACES, OWN) for end in (0, 1)], ids=str
)
def case(request: pytest.FixtureRequest) -> Case:
    name, end = request.param
    space = int8_space(name)
    return Case(space, int8_space(name, "float32"), space.extremes()[end])


def test_every_product_is_between_conversions(case: Case) -> None:
    makers = {output: node for node in case.graph.node for output in node.output}
    readers = {name: node for node in case.graph.node for name in node.input}
    products = [node for node in case.graph.node if node.op_type in ("Conv", "Gemm")]
    assert products
    types = {tensor.name: tensor.data_type for tensor in case.graph.initializer}
    for node in products:
        kinds = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
        for name, kind in zip(node.input, kinds, strict=True):
            made = makers[name]
            assert made.op_type == "DequantizeLinear"
            assert types[made.input[2]] == kind
        weight = makers[makers[node.input[1]].input[0]]
        assert weight.op_type == "QuantizeLinear"
        assert types[weight.input[0]] == TensorProto.FLOAT
        reader = readers[node.output[0]]
        if reader.op_type in ("Relu", "Clip"):
            reader = readers[reader.output[0]]
        assert reader.op_type == "QuantizeLinear"


def test_integers_are_read_by_the_scale_that_they_were_written_by(case: Case) -> None:
    makers = {output: node for node in case.graph.node for output in node.output}
    for node in case.graph.node:
        if node.op_type == "DequantizeLinear" and makers[node.input[0]].op_type != "Cast":
            assert node.input[1:] == makers[node.input[0]].input[1:]


def test_weights_are_left_out_as_in_float32(case: Case) -> None:
    def external(graph: onnx.GraphProto) -> list[TensorProto]:
        return [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]

    plain = onnx.load_from_string(case.plain_data).graph
    assert external(case.graph) == [*plain.initializer]
    inside = [t for t in case.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    assert {tuple(tensor.dims) for tensor in inside} == {()}, "scales and zero points alone"


def test_the_same_arguments_give_the_same_bytes(case: Case) -> None:
    assert case.space.build(case.architecture) == case.data != case.plain_data
    assert case.graph.input == onnx.load_from_string(case.plain_data).graph.input
    assert case.graph.output == onnx.load_from_string(case.plain_data).graph.output


def test_the_checker_accepts_it(case: Case) -> None:
    data = case.space.build(case.architecture, draw_weights)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_the_runtime_computes_in_integers(case: Case, tmp_path: Path) -> None:
    """Of all operators that have an int8 kernel none is left in float32, and weights are int8
    when the graph is loaded, not when it runs."""
    path = tmp_path / "optimized.onnx"
    (output,) = runs(case.data, path)
    model = onnx.load(path)
    found, asked = operators(model), operators(onnx.load_from_string(case.plain_data))
    assert found["QLinearConv"] == asked["Conv"] > 0
    assert found["QGemm"] == asked["Gemm"] == (case.space.name != "detector")
    allowed = INTEGER | (asked.keys() & (FLOATING | {"Sub"}))
    if "HardSwish" in allowed:  # a function, of which this is made
        allowed |= {"HardSigmoid", "Mul"}
    assert found.keys() <= allowed
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}
    assert np.isfinite(output).all()


def test_the_output_is_about_that_of_float32(case: Case) -> None:
    """So activations are neither all zero nor all as large as can be, in the deepest network."""
    (output,), (plain,) = runs(case.data), runs(case.plain_data)
    assert len(np.unique(output)) > 3
    assert np.corrcoef(output.ravel(), plain.ravel())[0, 1] > 0.75
    assert 0.4 < output.std() / plain.std() < 2.5


@pytest.mark.parametrize(
    "name", ["resnet", "mobilenetv3", "fbnet", "proxyless", "detector", OWN], ids=str
)
def test_parts_are_int8_as_well_and_cost_what_they_cost(name: str) -> None:
    space, plain = int8_space(name), int8_space(name, "float32")
    architecture = space.extremes()[0]
    parts, plain_parts = parts_of(space, architecture), parts_of(plain, architecture)
    assert [part.name for part in parts] == [part.name for part in plain_parts]
    assert [part.operators for part in parts] == [part.operators for part in plain_parts]
    assert not {part.key for part in parts} & {part.key for part in plain_parts}
    for part, same in zip(parts, plain_parts, strict=True):
        kinds = operators(onnx.load_from_string(part.build()))
        assert kinds["QuantizeLinear"] > 0
        outputs, plain_outputs = runs(part.build()), runs(same.build())
        assert [output.shape for output in outputs] == [output.shape for output in plain_outputs]
        assert all(len(np.unique(output)) > 3 for output in outputs)


# Every operator

OPERATORS: dict[str, Callable[[Network, str], str]] = {
    "conv": lambda net, x: net.conv(x, 8, kernel=3, stride=2, groups=4),
    "batch_norm": lambda net, x: net.batch_norm(x),
    "relu": lambda net, x: net.relu(x),
    "hard_swish": lambda net, x: net.hard_swish(x),
    "hard_sigmoid": lambda net, x: net.hard_sigmoid(x),
    "add": lambda net, x: net.add(x, x),
    "multiply": lambda net, x: net.multiply(x, net.global_average_pool(x)),
    "zeros_like": lambda net, x: net.add(x, net.zeros_like(x)),
    "shuffle": lambda net, x: net.shuffle(x, 2),
    "concat": lambda net, x: net.concat([x, net.relu(x)]),
    "max_pool": lambda net, x: net.max_pool(x),
    "average_pool": lambda net, x: net.average_pool(x),
    "same_average_pool": lambda net, x: net.same_average_pool(x, 3),
    "global_average_pool": lambda net, x: net.global_average_pool(x),
    "flatten": lambda net, x: net.flatten(x),
    "linear": lambda net, x: net.linear(net.flatten(x), 10),
}


def test_no_operator_is_forgotten() -> None:
    public = {name for name in vars(Network) if not name.startswith("_")}
    others = {"shape", "nodes", "initializers", "folded", "scope", "serialize"}
    others |= {"type", "inputs", "outputs", "add_input", "add_output"}
    others |= {each.method for each in operators_of_all_kinds.OPERATORS.values()}
    assert OPERATORS.keys() - others == public - others


@pytest.mark.parametrize("opset", [OPSET, NEWEST_OPSET])
@pytest.mark.parametrize("name", operators_of_all_kinds.OPERATORS)
def test_operators_of_any_input_are_int8(name: str, opset: int) -> None:
    cls = type("Space", (operators_of_all_kinds.OneOperator,), {"opset": opset})
    architecture = Architecture("one-operator", ((name,),))
    if name == "rms_norm" and opset == OPSET:
        with pytest.raises(InvalidSpaceError, match=r"^dtype int8: operator Sqrt \(.*float32"):
            cls(dtype="int8").build(architecture)
        return
    given = operators_of_all_kinds.values(name)
    integer, plain = (
        loaded(cls(dtype=dtype).build(architecture)).run(None, given)[0]
        for dtype in ("int8", "float32")
    )
    assert integer.shape == plain.shape
    spread = np.abs(plain - plain.mean()).max()
    assert np.abs(integer - plain).max() < 0.1 * max(spread, np.abs(plain).max())


def test_products_of_transformers_are_of_integers(tmp_path: Path) -> None:
    net = Network((1, 3, 8, 8), dtype="int8", opset=OPSET)
    x = net.add_input("x", (1, 5, 16))
    x = net.attention(*(net.linear(x, 16) for _ in range(3)), heads=2, causal=True)
    x = net.linear(net.gelu(net.linear(x, 16)), 16)
    path = tmp_path / "optimized.onnx"
    loaded(net.serialize("graph", x), path)
    found = operators(onnx.load(path))
    assert found["QLinearMatMul"] == 7
    assert not {"MatMul", "Gemm", "FusedMatMul"} & found.keys()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_int8_wherever_it_stands(operator: str, between: bool) -> None:
    """Between the input and the output, and between others."""

    def outcome(dtype: str) -> NDArray[np.float32]:
        net = Network((2, 8, 16, 16), dtype=dtype)
        x = net.conv(net.input, 8) if between else net.input
        x = OPERATORS[operator](net, x)
        if between:
            x = net.linear(net.flatten(x) if len(net.shape(x)) > 2 else x, 10)
        (output,) = runs(net.serialize("graph", x))
        assert output.shape == net.shape(x)
        return output

    integer, plain = outcome("int8"), outcome("float32")
    assert np.corrcoef(integer.ravel(), plain.ravel())[0, 1] > 0.95


def test_relu6_has_the_whole_range_of_its_integers(tmp_path: Path) -> None:
    """So that the runtime leaves the clip to the conversion."""
    net = Network((1, 8, 8, 8), dtype="int8")
    x = net.conv(net.relu6(net.conv(net.input, 8)), 8)
    path = tmp_path / "optimized.onnx"
    data = net.serialize("graph", x)
    loaded(data, path)
    scales = {t.name: t for t in onnx.load_from_string(data).graph.initializer}
    scale = onnx.numpy_helper.to_array(scales["clip1.out.scale"])
    assert float(scale) == pytest.approx(6 / 255)
    found = operators(onnx.load(path))
    assert found["QLinearConv"] == 2
    assert "Clip" not in found


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.0, 4.0), (5.0, 3.0), (-2.0, 1.0)])
def test_moments_of_clipped_numbers(mean: float, deviation: float) -> None:
    drawn = np.random.default_rng(0).normal(mean, deviation, 1_000_000).clip(0, 6)
    found = _clipped(_Moments(mean, deviation**2), 0.0, 6.0)
    assert found.mean == pytest.approx(drawn.mean(), abs=0.01)
    assert found.variance == pytest.approx(drawn.var(), abs=0.02)


# The setting


@pytest.mark.parametrize("name", SPACES)
def test_the_setting_is_told_only_where_it_is_not_float32(name: str) -> None:
    plain, space = load_space(name), load_space(name, dtype="int8")
    assert "dtype" not in plain.settings()
    assert load_space(name, dtype="float32").settings() == plain.settings()
    assert space.settings() == {**plain.settings(), "dtype": "int8"}
    assert [a.key for a in space.extremes()] == [a.key for a in plain.extremes()]


@pytest.mark.parametrize("dtype", ["int4", "", "INT8", "float16"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(
        InvalidSpaceError, match=f"^unknown dtype '{dtype}': .*choose float32, int8"
    ):
        load_space("resnet", dtype=dtype)


def test_an_operator_without_int8_form_is_told(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from esm_models.space import Feature, SearchSpace\n"
        "class Own(SearchSpace):\n"
        "    name, depths, features = 'own', ((1,),), (Feature('kind', '', ('a', 'sin', 'b')),)\n"
        "    def network(self, net, units):\n"
        "        x = net.conv(net.input, 8)\n"
        "        if units[0][0]['kind'] != 'sin':\n"
        "            return x\n"
        "        return net._add('Sin', [x], (1, 8, 32, 32))\n"
    )
    assert load_space(f"{path}:Own", resolution=32).name == "own"
    with pytest.raises(InvalidSpaceError, match=r"^dtype int8: operator Sin \(sin1\) has no int8"):
        load_space(f"{path}:Own", resolution=32, dtype="int8")
