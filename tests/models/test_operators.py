"""Every operator against torch, in graphs of new and old opsets."""

from __future__ import annotations

import inspect

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from esm_models.architecture import Architecture
from esm_models.graph import NEWEST_OPSET, OPSET, Network
from esm_models.parts import parts_of
from esm_protos.weights import draw_weights
from tests.models.operators import OPERATORS, OneOperator, expected, values


def run(data: bytes) -> ort.InferenceSession:
    """Load a weightless graph with the weights that an agent draws."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    names, arrays = [], []
    for tensor in onnx.load_from_string(data).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names.append(tensor.name)
            arrays.append(draw_weights(tensor.name, tuple(tensor.dims)))
    kept = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers(names, kept)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def weights_in(data: bytes) -> dict[str, NDArray[np.float32]]:
    graph = onnx.load_from_string(data).graph
    return {t.name: draw_weights(t.name, tuple(t.dims)) for t in graph.initializer}


def opset_of(data: bytes) -> int:
    (each,) = onnx.load_from_string(data).opset_import
    return each.version


def of_opset(opset: int) -> OneOperator:
    return type("Space", (OneOperator,), {"opset": opset})()


def one(name: str) -> Architecture:
    return Architecture("one-operator", ((name,),))


def test_every_method_has_a_case() -> None:
    added = {"add_input", "add_output", "inputs", "outputs", "type"}
    older = {"shape", "nodes", "initializers", "folded", "scope", "serialize", "batch_norm"}
    older |= {"relu", "hard_swish", "hard_sigmoid", "zeros_like", "shuffle", "max_pool"}
    older |= {"average_pool", "same_average_pool", "global_average_pool", "flatten"}
    public = {name for name, _ in inspect.getmembers(Network) if not name.startswith("_")}
    assert {each.method for each in OPERATORS.values()} == public - added - older


@pytest.mark.parametrize("opset", [OPSET, 20, NEWEST_OPSET])
@pytest.mark.parametrize("name", OPERATORS)
def test_output_agrees_with_torch(name: str, opset: int) -> None:
    data = of_opset(opset).build(one(name))
    assert OPSET <= opset_of(data) <= opset
    model = onnx.load_from_string(of_opset(opset).build(one(name), draw_weights))
    onnx.checker.check_model(model, full_check=True)
    (output,) = run(data).run(None, values(name))
    wanted = expected(name, weights_in(data))
    assert output.shape == wanted.shape
    (declared,) = model.graph.output
    assert output.shape == tuple(d.dim_value for d in declared.type.tensor_type.shape.dim)
    np.testing.assert_allclose(output, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_part_alone_computes_the_same(name: str) -> None:
    """Its inputs are in the order in which they are read."""
    (part,) = parts_of(OneOperator(), one(name))
    session, given = run(part.build()), list(values(name).values())
    fed = {}
    for read in session.get_inputs():
        kind = {"tensor(float)": "f", "tensor(int64)": "i", "tensor(bool)": "b"}[read.type]
        place = next(
            i for i, x in enumerate(given) if x.dtype.kind == kind and list(x.shape) == read.shape
        )
        fed[read.name] = given.pop(place)
    (output,) = session.run(None, fed)
    assert np.isfinite(output).all()
    if not part.parameters:  # which have other names in a part
        wanted = expected(name, {})
        np.testing.assert_allclose(output, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
