"""ONNX Runtime as the backend: weightless graphs, inputs by type, and typed refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure import backends, feeds, weightless
from esm_agent.measure.backends import LoadedModel, first_run
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_models.graph import WEIGHTLESS_LOCATION
from esm_models.spaces import load_space
from esm_protos.messages import Case, FailureKind, Input, MeasureSpec
from esm_protos.session_settings import OPT_LEVELS, SessionSettings
from esm_protos.weights import draw_weights
from tests.helpers import smallest

SPEC = MeasureSpec(seed=3)
TRANSFORMERS = Path(__file__).parents[2] / "host" / "transformers.py"
VIT, DECODER = f"{TRANSFORMERS}:ViT", f"{TRANSFORMERS}:Decoder"


def save(tmp_path: Path, data: bytes) -> UploadedModel:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return UploadedModel("m", path)


def identity(kind: int, operator: str = "Identity", domain: str = "") -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("resnet", "float32"), ("mobilenetv3", "float32"), ("densenet", "float32")),
        *(("fbnet", "int8"), (VIT, "float32"), (VIT, "int8")),
        *((DECODER, "float32"), (DECODER, "int8")),
    ],
)
def test_a_weightless_graph_runs_as_the_network_that_it_stands_for(
    tmp_path: Path, name: str, dtype: str
) -> None:
    small = {} if name == DECODER else {"resolution": 64, "width_mult": 0.25}
    space = load_space(name, **small, dtype=dtype)
    architecture = smallest(space)
    model = CpuProvider().load(save(tmp_path, space.build(architecture)), SPEC)
    weighted = space.build(architecture, lambda n, shape: draw_weights(n, shape, SPEC.seed))
    session = onnxruntime.InferenceSession(weighted, providers=["CPUExecutionProvider"])
    feed = feeds.draw(session, SPEC.seed)
    outputs = session.run(None, feed.arrays)
    model.run()
    for expected, value in zip(outputs, model.outputs(), strict=True):
        got = value.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.isfinite(got).all()
    assert np.abs(got).max() > 1e-3


def test_both_sides_agree_on_where_no_weights_lie() -> None:
    assert weightless.WEIGHTLESS_LOCATION == WEIGHTLESS_LOCATION


@pytest.mark.parametrize(
    "kind",
    [
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT16,
        TensorProto.INT8,
        TensorProto.UINT64,
        TensorProto.UINT32,
        TensorProto.UINT16,
        TensorProto.UINT8,
        TensorProto.BOOL,
        TensorProto.STRING,
    ],
)
def test_inputs_are_drawn_by_type_and_free_dimensions_are_one(tmp_path: Path, kind: int) -> None:
    model = CpuProvider().load(save(tmp_path, identity(kind)), SPEC)
    model.run()
    output = model.outputs()[0].numpy()
    assert output.shape == (1, 2)
    dtype = "string" if kind == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(kind)
    assert model.feed.inputs == (Input("x", str(dtype), (1, 2)),)
    assert output.dtype == (object if kind == TensorProto.STRING else dtype)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", FailureKind.INVALID_MODEL),
        (b"not a model at all", FailureKind.INVALID_MODEL),
        (identity(TensorProto.FLOAT)[:-9], FailureKind.INVALID_MODEL),
        (identity(TensorProto.FLOAT, "NoSuchOperator"), FailureKind.UNSUPPORTED_OP),
        (identity(TensorProto.FLOAT, "Mine", "my.ops"), FailureKind.UNSUPPORTED_OP),
    ],
    ids=["empty", "text", "truncated", "no such operator", "custom operator"],
)
def test_a_model_that_cannot_run_is_a_typed_refusal(
    tmp_path: Path, data: bytes, kind: FailureKind
) -> None:
    with pytest.raises(ModelError) as caught:
        CpuProvider().load(save(tmp_path, data), SPEC)
    assert caught.value.failure.kind is kind
    assert "\n" not in caught.value.failure.message


def test_external_data_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=str(tmp_path / "secret"))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError) as caught:
        CpuProvider().load(save(tmp_path, model.SerializeToString()), SPEC)
    assert caught.value.failure.kind is FailureKind.INVALID_MODEL


def test_a_weightless_initializer_of_another_type_is_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(load_space("resnet").build(smallest(load_space("resnet"))))
    model.graph.initializer[0].data_type = TensorProto.INT8
    with pytest.raises(ModelError, match="float32"):
        CpuProvider().load(save(tmp_path, model.SerializeToString()), SPEC)


def test_a_failure_of_the_first_run_is_typed() -> None:
    def run() -> None:
        raise RuntimeError("shape mismatch\nin node 7")

    with pytest.raises(ModelError, match="the first run failed: shape mismatch in node …"):
        first_run(LoadedModel(run))


@pytest.mark.parametrize(("own", "threads", "stops"), [(0, 1, False), (2, 2, True)])
def test_a_models_own_threads_go_before_the_blocks_and_do_not_spin_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int, threads: int, stops: bool
) -> None:
    seen = []
    real = onnxruntime.InferenceSession

    def spy(path, options, providers):
        seen.append(options)
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    model = save(tmp_path, identity(TensorProto.FLOAT))
    CpuProvider().load(replace(model, case=Case(threads=own)), MeasureSpec(threads=1))
    (options,) = seen
    assert options.intra_op_num_threads == threads
    if stops:
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[onnxruntime.SessionOptions]:
    """Options of the sessions that are created."""
    found: list[onnxruntime.SessionOptions] = []
    real = onnxruntime.InferenceSession

    def spy(path, options, providers):
        found.append(options)
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    return found


@pytest.mark.parametrize("level", OPT_LEVELS)
def test_every_level_is_the_runtimes(tmp_path: Path, seen: list, level: str) -> None:
    session = SessionSettings(level)
    CpuProvider().load(save(tmp_path, identity(TensorProto.FLOAT)), MeasureSpec(session=session))
    (options,) = seen
    suffix = "DISABLE_ALL" if level == "disable" else f"ENABLE_{level.upper()}"
    assert options.graph_optimization_level.name == f"ORT_{suffix}"


def test_a_level_that_an_older_runtime_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Levels:
        ORT_ENABLE_ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

    monkeypatch.setattr(onnxruntime, "GraphOptimizationLevel", Levels)
    spec = MeasureSpec(session=SessionSettings("layout"))
    with pytest.raises(ModelError, match=r"^opt_level layout: onnxruntime .* has no such level"):
        CpuProvider().load(save(tmp_path, identity(TensorProto.FLOAT)), spec)


@pytest.mark.parametrize(("inter_op", "threads"), [(3, 3), (0, 2)])
def test_parallel_nodes_have_threads(
    tmp_path: Path, seen: list, monkeypatch: pytest.MonkeyPatch, inter_op: int, threads: int
) -> None:
    monkeypatch.setattr(backends, "usable_cpus", lambda: (0, 1))
    model = save(tmp_path, identity(TensorProto.FLOAT))
    CpuProvider().load(model, SPEC)
    session = SessionSettings(execution_mode="parallel", inter_op=inter_op)
    CpuProvider().load(model, MeasureSpec(session=session))
    plain, parallel = seen
    assert (plain.execution_mode.name, plain.inter_op_num_threads) == ("ORT_SEQUENTIAL", 1)
    told = parallel.execution_mode.name, parallel.inter_op_num_threads
    assert told == ("ORT_PARALLEL", threads)
    assert parallel.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_given_entry_goes_before_those_of_the_agent_and_the_provider(
    tmp_path: Path, seen: list
) -> None:
    class Own(CpuProvider):
        def configure(self, session, options):
            session.add_session_config_entry("session.intra_op.allow_spinning", "1")

    entries = {"session.force_spinning_stop": "0", "session.intra_op.allow_spinning": "0"}
    spec = MeasureSpec(threads=2, session=SessionSettings(session_options=entries))
    Own().load(save(tmp_path, identity(TensorProto.FLOAT)), spec)
    (options,) = seen
    assert {name: options.get_session_config_entry(name) for name in entries} == entries


def test_a_free_dimension_is_fixed_for_the_runtime(tmp_path: Path) -> None:
    model = save(tmp_path, identity(TensorProto.FLOAT))
    fixed = MeasureSpec(session=SessionSettings(free_dims={"n": 3, "unknown": 4}))
    assert CpuProvider().load(model, fixed).feed.inputs == (Input("x", "float32", (3, 2)),)
    with pytest.raises(ModelError, match="the model takes 3x2, given 4x2"):
        first_run(CpuProvider().load(replace(model, case=Case((("x", (4, 2)),))), fixed))


def test_entries_are_to_blame_only_where_the_model_loads_without_them(tmp_path: Path) -> None:
    entries = {"session.dynamic_block_base": "many"}
    spec = MeasureSpec(session=SessionSettings(session_options=entries))
    with pytest.raises(ModelError, match=r"refuses the session options .*_base=many: ") as caught:
        CpuProvider().load(save(tmp_path, identity(TensorProto.FLOAT)), spec)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT
    with pytest.raises(ModelError) as caught:
        CpuProvider().load(save(tmp_path, identity(TensorProto.FLOAT, "Nothing")), spec)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP
