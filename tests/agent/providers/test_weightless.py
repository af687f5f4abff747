"""Providers that refuse the weights of weightless models: the agent writes them into the model."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure.backends import first_run
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.weightless import with_weights
from esm_agent.providers.built_in import BuiltInProvider
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import FailureKind, MeasureSpec
from esm_protos.weights import WEIGHTLESS_LOCATION, draw_weights
from tests.agent.fake_runtimes import CPU, OPENVINO, FakeRuntime

SPEC = MeasureSpec(provider="openvino", seed=3)


def external(name: str, dims: list[int], location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def written(path: Path, *initializers: TensorProto) -> UploadedModel:
    """A chain of matrix products with these weights of 8 x 8."""
    names = ["x", *(f"h{n}" for n in range(1, len(initializers))), "y"]
    nodes = [
        helper.make_node("MatMul", [names[n], each.name], [names[n + 1]], name=f"mm{n}")
        for n, each in enumerate(initializers)
    ]
    value = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [next(value)], [next(value)], [*initializers])
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return UploadedModel("m", path)


@pytest.fixture
def model(tmp_path: Path) -> UploadedModel:
    return written(tmp_path / "m.onnx", external("w", [8, 8], WEIGHTLESS_LOCATION))


class Refusing(FakeRuntime):
    """A runtime whose provider raises for weightless models, or leaves their nodes to the CPU.

    Args:
        message: Error; empty to leave the nodes to the CPU.
    """

    def __init__(self, message: str) -> None:
        super().__init__([OPENVINO, CPU])
        self._message = message
        self.weightless: list[bool] = []

    def InferenceSession(self, path: str, *rest: Any, **named: Any) -> Any:
        self.weightless.append(WEIGHTLESS_LOCATION.encode() in Path(path).read_bytes())
        if self.weightless[-1] and self._message:
            raise RuntimeError(self._message)
        self.claims = ["Relu"] if self.weightless[-1] else None
        return super().InferenceSession(path, *rest, **named)


def outputs(provider: Any, model: UploadedModel) -> np.ndarray:
    loaded = provider.load(model, SPEC)
    first_run(loaded)
    (output,) = loaded.outputs()
    found: np.ndarray = output.numpy()
    return found


@pytest.mark.parametrize("message", ["", "initializer w: no external data", "no file weightless"])
def test_weights_that_a_provider_refuses_are_written_into_the_model(
    model: UploadedModel, message: str
) -> None:
    runtime = Refusing(message)
    provider = BuiltInProvider(OPENVINO, 0, runtime)
    before = os.listdir(model.path.parent)
    loaded = provider.load(model, SPEC)
    assert (loaded.ran_on, loaded.fallback) == (((OPENVINO, 1),), ())
    np.testing.assert_array_equal(outputs(provider, model), outputs(CpuProvider(), model))
    assert os.listdir(model.path.parent) == before
    runtime.weightless.clear()
    outputs(provider, model)
    provider.profile(model, SPEC, 1, lambda share: None)
    assert runtime.weightless == [False, False], "it is known from then on"


def test_an_error_that_weights_do_not_mend_is_the_first_one(model: UploadedModel) -> None:
    class Never(FakeRuntime):
        def InferenceSession(self, path: str, *rest: Any, **named: Any) -> Any:
            weightless = WEIGHTLESS_LOCATION.encode() in Path(path).read_bytes()
            raise RuntimeError(f"initializer w: {'first' if weightless else 'second'}")

    with pytest.raises(ModelError, match="initializer w: first"):
        BuiltInProvider(OPENVINO, 0, Never([OPENVINO, CPU])).load(model, SPEC)


def test_another_error_is_not_tried_again(model: UploadedModel) -> None:
    runtime = Refusing("no driver")
    with pytest.raises(ModelError, match="no driver"):
        BuiltInProvider(OPENVINO, 0, runtime).load(model, SPEC)
    assert runtime.weightless == [True]


def test_a_model_with_weights_is_refused_as_it_is(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    runtime = FakeRuntime([OPENVINO, CPU], claims=["Relu"])
    with pytest.raises(ModelError, match="1 of 1 nodes did not run on OpenVINO") as caught:
        BuiltInProvider(OPENVINO, 0, runtime).load(written(tmp_path / "m.onnx", weights), SPEC)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP


def test_external_data_stays_beside_drawn_weights(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(np.full((8, 8), 2, np.float32).tobytes())
    drawn, kept = (external(*each) for each in (("w", [8, 8], "weightless"), ("v", [8, 8], "data")))
    model = written(tmp_path / "m.onnx", drawn, kept)
    model = UploadedModel("m", model.path, external=frozenset({"data"}))
    with with_weights(model, 3) as whole:
        assert whole is not None
        values = {t.name: numpy_helper.to_array(t) for t in onnx.load(whole.path).graph.initializer}
    assert values.keys() == {"w", "v"}
    np.testing.assert_array_equal(values["w"], draw_weights("w", (8, 8), 3))
    assert (values["v"] == 2).all()
