"""Drawn inputs: what the graph asks of them, and that nothing else changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure import feeds
from esm_agent.measure.backends import first_run
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import FailureKind, MeasureSpec

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Value = tuple[str, int, Sequence[int | str] | None]


def saved(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    output: Value,
    **weights: Any,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def drawn(path: Path, seed: int = 0) -> dict[str, Any]:
    """What the model is fed, after it has run on that."""
    loaded = CpuProvider().load(UploadedModel("m", path), MeasureSpec(seed=seed))
    first_run(loaded)
    return dict(loaded.feed.arrays)


@pytest.mark.parametrize(
    ("op", "inputs", "output"),
    [
        ("Reshape", [("x", FLOAT, [2, 6]), ("s", INT64, [3])], ("y", FLOAT, [3, 2, 2])),
        ("Expand", [("x", FLOAT, [2, 1]), ("s", INT64, [2])], ("y", FLOAT, [2, 5])),
        ("Tile", [("x", FLOAT, [2, 1]), ("s", INT64, [2])], ("y", FLOAT, [4, 3])),
        ("ConstantOfShape", [("s", INT64, [2])], ("y", FLOAT, [4, 3])),
        ("Pad", [("x", FLOAT, [2, 3]), ("s", INT64, [4])], ("y", FLOAT, [3, 7])),
        ("TopK", [("x", FLOAT, [9]), ("k", INT64, [1])], ("y", FLOAT, [5])),
        (
            "Range",
            [("start", INT64, []), ("limit", INT64, []), ("delta", INT64, [])],
            ("y", INT64, [7]),
        ),
        ("Squeeze", [("x", FLOAT, [1, 3, 1]), ("axes", INT64, [1])], ("y", FLOAT, [1, 3])),
        ("ReduceSum", [("x", FLOAT, [4, 3]), ("axes", INT64, [1])], ("y", FLOAT, [4, 1])),
    ],
)
def test_outputs_have_the_shape_that_the_model_declares(
    tmp_path: Path, op: str, inputs: list[Value], output: Value
) -> None:
    names = [name for name, *_ in inputs]
    outputs = ["y", "places"] if op == "TopK" else ["y"]
    path = saved(tmp_path, [helper.make_node(op, names, outputs)], inputs, output)
    feed = drawn(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(["y"], feed)
    assert list(result.shape) == output[2]


def test_a_rule_reaches_through_what_passes_values_on(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["d"], ["whole"], to=INT64),
        helper.make_node("Identity", ["whole"], ["same"]),
        helper.make_node("Div", ["x", "same"], ["y"]),
    ]
    inputs = [("x", INT64, [64]), ("d", TensorProto.INT32, [64])]
    assert 0 not in drawn(saved(tmp_path, nodes, inputs, ("y", INT64, [64])))["d"]


def test_indices_lie_in_a_table_of_one_row(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    table = np.ones((1, 4), np.float32)
    path = saved(tmp_path, [node], [("ids", INT64, [50])], ("y", FLOAT, [50, 4]), table=table)
    assert not drawn(path)["ids"].any()


def test_an_encoder_gets_categories_that_it_knows(tmp_path: Path) -> None:
    node = helper.make_node(
        "OneHotEncoder", ["x"], ["y"], domain="ai.onnx.ml", cats_strings=["red", "blue"], zeros=0
    )
    path = saved(tmp_path, [node], [("x", STRING, [20])], ("y", FLOAT, None))
    assert set(drawn(path)["x"]) == {"red", "blue"}


def test_a_list_of_sizes_is_as_long_as_the_tensor_has_dimensions(tmp_path: Path) -> None:
    node = helper.make_node("Tile", ["x", "times"], ["y"])
    inputs = [("x", FLOAT, [1, 3, 4]), ("times", INT64, ["n"])]
    path = saved(tmp_path, [node], inputs, ("y", FLOAT, [2, 3, 4]))
    assert drawn(path)["times"].tolist() == [2, 1, 1]


def test_what_no_rule_is_about_stays_as_it_was(tmp_path: Path) -> None:
    """Floats that are data, and tokens of a table with room for them."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Div", ["x", "divisor"], ["quotient"]),
        helper.make_node("Add", ["rows", "quotient"], ["y"]),
    ]
    inputs = [
        *(("ids", INT64, [8]), ("x", FLOAT, [8, 4])),
        *(("divisor", FLOAT, [8, 4]), ("more", INT64, [3])),
    ]
    table = np.ones((5, 4), np.float32)
    path = saved(tmp_path, nodes, inputs, ("y", FLOAT, [8, 4]), table=table)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    plain = feeds.draw(session, 3).arrays
    for name, array in feeds.draw(session, 3, path=path).arrays.items():
        np.testing.assert_array_equal(array, plain[name])


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    node = helper.make_node("Mod", ["x", "d"], ["y"])
    inputs = [("x", INT64, [64]), ("d", INT64, [64])]
    path = saved(tmp_path, [node], inputs, ("y", INT64, [64]))
    one, same, other = (drawn(path, seed)["d"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_dimension_declared_as_zero_is_zero(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = saved(tmp_path, [node], [("x", FLOAT, [0, 3])], ("y", FLOAT, [0, 3]))
    assert drawn(path)["x"].shape == (0, 3)


def test_where_drawing_cannot_fit_the_input_is_to_blame(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["a", "five"], ["shape"]),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    inputs = [("x", FLOAT, [2, 3]), ("a", INT64, [2])]
    path = saved(tmp_path, nodes, inputs, ("y", FLOAT, None), five=[5])
    with pytest.raises(ModelError) as caught:
        drawn(path)
    failure = caught.value.failure
    assert failure.kind is FailureKind.INVALID_INPUT
    assert "values of 'x', 'a' are random: give values" in failure.message
    assert ".h:" not in failure.message


def load_failure(path: Path) -> tuple[FailureKind, str]:
    with pytest.raises(ModelError) as caught:
        CpuProvider().load(UploadedModel("m", path), MeasureSpec())
    return caught.value.failure.kind, caught.value.failure.message


@pytest.mark.parametrize(
    ("ir_version", "opset", "words"),
    [
        (9, 98, ("the model has opset 98, onnxruntime", "export with opset")),
        (99, 18, ("the model has IR version 99, onnxruntime", "save it with ir_version")),
    ],
)
def test_a_model_newer_than_the_runtime_is_told_both_versions(
    tmp_path: Path, ir_version: int, opset: int, words: tuple[str, ...]
) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = saved(tmp_path, [node], [("x", FLOAT, [1])], ("y", FLOAT, [1]))
    model = onnx.load(path)
    model.ir_version, model.opset_import[0].version = ir_version, opset
    onnx.save(model, path)
    kind, text = load_failure(path)
    assert kind is FailureKind.UNSUPPORTED_OP
    assert all(each in text for each in words)
    assert text.endswith("or lower, or update onnxruntime there")
    assert onnxruntime.__version__ in text


def test_a_layout_that_the_runtime_lacks_is_unsupported(tmp_path: Path) -> None:
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=2, layout=1)
    weights = {"w": np.ones((1, 2, 3), np.float32), "r": np.ones((1, 2, 2), np.float32)}
    path = saved(tmp_path, [node], [("x", FLOAT, [1, 4, 3])], ("y", FLOAT, None), **weights)
    kind, text = load_failure(path)
    assert kind is FailureKind.UNSUPPORTED_OP
    assert text == "Batchwise recurrent operations (layout == …) are not supported."
