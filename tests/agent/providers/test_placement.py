"""Placement of nodes: counted, and refused on another provider than the one asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esm_agent.measure.backends import LoadedModel, first_run
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_agent.providers.base import Provider
from esm_agent.providers.built_in import BuiltInProvider
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import FailureKind, MeasureSpec
from tests.agent.fake_runtimes import CPU, OPENVINO, FakeRuntime
from tests.agent.providers.shape_model import write_shape_model

ALL = ["Exp", "Relu", "Shape", "Concat"]


@pytest.fixture
def model(tmp_path: Path) -> UploadedModel:
    """Two nodes on data, one that reads a shape, and one without a name that computes with it."""
    return UploadedModel("m", write_shape_model(tmp_path / "model.onnx"))


def loaded(runtime: FakeRuntime, model: UploadedModel, allow: bool = False) -> LoadedModel:
    provider: Provider = BuiltInProvider(OPENVINO, 0, runtime)
    made = provider.load(model, MeasureSpec(provider="openvino", allow_fallback=allow))
    first_run(made)
    return made


@pytest.mark.parametrize(("older", "sessions"), [(False, 1), (True, 3)])
def test_a_model_is_compiled_once_where_the_runtime_tells(
    model: UploadedModel, older: bool, sessions: int
) -> None:
    runtime = FakeRuntime(older=older)
    made = loaded(runtime, model)
    assert (made.ran_on, made.fallback) == (((OPENVINO, 4),), ())
    assert len(runtime.settings) == sessions


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("claims", "count", "nodes"),
    [
        (["Relu", "Shape"], 1, ["exp (Exp)"]),
        (["Shape", "Concat"], 2, ["exp (Exp)", "relu (Relu)"]),
        ([], 4, ["exp (Exp)", "relu (Relu)", "shape (Shape)", "Concat"]),
    ],
)
def test_a_model_that_falls_back_is_refused_with_its_nodes_and_operators(
    model: UploadedModel, claims: list[str], count: int, nodes: list[str], older: bool
) -> None:
    with pytest.raises(ModelError) as caught:
        loaded(FakeRuntime(claims=claims, older=older), model)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP
    text = str(caught.value)
    assert text.startswith(f"{count} of 4 nodes did not run on OpenVINO: ")
    assert text.endswith("; allow fallback to measure the model anyway")
    assert all(node in text for node in nodes)


class Particular(FakeRuntime):
    """Has a provider that takes no node for one value of an option."""

    def InferenceSession(self, path: str, options: Any, providers: Any, **named: Any) -> Any:
        settings = providers[0][1] if isinstance(providers[0], tuple) else {}
        self.claims = [] if settings.get("device_type") == "FOO" else ["Exp"]
        return super().InferenceSession(path, options, providers, **named)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("allow", [False, True])
def test_options_are_to_blame_if_all_nodes_fall_back_with_them_only(
    model: UploadedModel, allow: bool, older: bool
) -> None:
    provider: Provider = BuiltInProvider(OPENVINO, 0, Particular(older=older))
    spec = MeasureSpec(provider="openvino", allow_fallback=allow)
    with pytest.raises(ModelError) as caught:
        provider.load(model, replace(spec, provider_options={"device_type": "FOO"}))
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT
    assert str(caught.value) == (
        "with the options device_type=FOO none of 4 nodes ran on OpenVINO, without them 1: change "
        "the options"
    )


def test_options_are_not_to_blame_if_all_nodes_fall_back_anyway(model: UploadedModel) -> None:
    provider: Provider = BuiltInProvider(OPENVINO, 0, FakeRuntime(claims=[]))
    spec = MeasureSpec(provider="openvino", provider_options={"device_type": "CPU"})
    with pytest.raises(ModelError, match=r"^4 of 4 nodes did not run on OpenVINO"):
        provider.load(model, spec)
    assert len(provider.load(model, replace(spec, allow_fallback=True)).fallback) == 4


@pytest.mark.parametrize("older", [False, True])
def test_arithmetic_on_shapes_is_no_fallback(model: UploadedModel, older: bool) -> None:
    made = loaded(FakeRuntime(claims=["Exp", "Relu", "Shape"], older=older), model)
    assert (made.ran_on, made.fallback) == (((OPENVINO, 3), (CPU, 1)), ())


@pytest.mark.parametrize("older", [False, True])
def test_a_model_may_fall_back_where_it_is_allowed(model: UploadedModel, older: bool) -> None:
    made = loaded(FakeRuntime(claims=["Shape"], older=older), model, allow=True)
    assert set(made.ran_on) == {(CPU, 3), (OPENVINO, 1)}
    assert made.fallback == ("exp", "relu")


def test_nodes_on_the_processor_are_counted(model: UploadedModel) -> None:
    assert CpuProvider().load(model, MeasureSpec()).ran_on == ((CPU, 4),)
    older = CpuProvider(runtime=FakeRuntime(older=True))
    assert older.load(model, MeasureSpec()).ran_on == ()


def test_placement_comes_with_every_number(model: UploadedModel) -> None:
    worker = Worker(make_provider)
    try:
        block = UploadedBlock("b", MeasureSpec(runs=2), (model,))
        (measured,) = worker.measure(block, lambda told: None, lambda: False).measurements
    finally:
        worker.stop()
    assert (measured.failure, measured.ran_on, measured.fallback) == (None, ((CPU, 4),), ())
