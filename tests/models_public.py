"""Models of kinds that people publish, beside those of :mod:`benchmarks.public_models`: what has
free dimensions, other types than float32, control flow, strings, or its weights beside itself.

Small, with random weights; built by hand, so that nothing but onnx and numpy is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.public_models import build
from esm_protos.messages import File

FLOAT, HALF, INT64, TRUTH, STRING = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.STRING,
)
Value = tuple[str, int, Sequence[int | str] | None]
"""Name, type and shape of an input or output."""


def _weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Of a scale that keeps activations in range."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return (values * np.float32(np.sqrt(2 / np.prod(shape[1:])))).astype(np.float32)


def _values(*values: Value) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(*value) for value in values]


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    **weights: NDArray[Any],
) -> bytes:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    opsets = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("ai.onnx.ml", 2),
        helper.make_opsetid("custom.ops", 1),
    ]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def detection() -> bytes:
    """A detector's head on an image of any size: boxes, scores, non-maximum suppression."""
    node = helper.make_node
    return _model(
        [
            node("Conv", ["image", "stem"], ["s"], strides=[8, 8], pads=[1, 1, 1, 1]),
            node("Relu", ["s"], ["features"]),
            node("Conv", ["features", "to_boxes"], ["b"]),
            node("Conv", ["features", "to_scores"], ["c"]),
            node("Reshape", ["b", "four"], ["by_place"]),
            node("Transpose", ["by_place"], ["boxes"], perm=[0, 2, 1]),
            node("Reshape", ["c", "classes"], ["logits"]),
            node("Sigmoid", ["logits"], ["scores"]),
            node(
                "NonMaxSuppression",
                ["boxes", "scores", "most", "overlap", "least"],
                ["selected"],
            ),
        ],
        _values(("image", FLOAT, [1, 3, "height", "width"])),
        _values(("selected", INT64, ["found", 3]), ("scores", FLOAT, [1, 5, "places"])),
        stem=_weights(16, 3, 3, 3),
        to_boxes=_weights(4, 16, 1, 1, seed=1),
        to_scores=_weights(5, 16, 1, 1, seed=2),
        four=np.array([1, 4, -1]),
        classes=np.array([1, 5, -1]),
        most=np.array([10]),
        overlap=np.array([0.5], np.float32),
        least=np.array([0.3], np.float32),
    )


def quantized() -> bytes:
    """Convolutions in 8 bits, as quantisation tools write them: every tensor quantised and back."""
    nodes, weights, x = [], {}, "image"

    def both(x: str, scale: str, zero: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [x, scale, zero], [f"{x}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{x}.q", scale, zero], [f"{x}.dq"]))
        return f"{x}.dq"

    ins = 3
    for number, outs in enumerate((16, 32, 32)):
        kernel = np.random.default_rng(number).integers(-90, 90, (outs, ins, 3, 3)).astype(np.int8)
        weights[f"w{number}"] = kernel
        scaled = [f"w{number}", "w_scale", "w_zero"]
        nodes.append(helper.make_node("DequantizeLinear", scaled, [f"w{number}.dq"]))
        quantised = both(x, "x_scale", "x_zero")
        pads = [1, 1, 1, 1]
        nodes.append(
            helper.make_node("Conv", [quantised, f"w{number}.dq"], [f"y{number}"], pads=pads)
        )
        x, ins = f"y{number}", outs
    x = both(x, "x_scale", "x_zero")
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    return _model(
        nodes,
        _values(("image", FLOAT, [1, 3, 32, 32])),
        _values(("pooled", FLOAT, [1, 32, 1, 1])),
        **weights,
        w_scale=np.float32(0.002),
        w_zero=np.int8(0),
        x_scale=np.float32(0.05),
        x_zero=np.uint8(128),
    )


def half() -> bytes:
    """Two layers in float16, input and output too."""
    return _model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["c"]),
            helper.make_node("Softmax", ["c"], ["y"], axis=-1),
        ],
        _values(("x", HALF, ["batch", 64])),
        _values(("y", HALF, ["batch", 10])),
        w1=_weights(64, 128).astype(np.float16),
        w2=_weights(128, 10).astype(np.float16),
    )


def control_flow() -> bytes:
    """Four passages of a loop, in each of which a condition on the data chooses a branch."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        nodes = [helper.make_node(operator, ["product"], [f"{name}.y"])]
        return helper.make_graph(nodes, name, [], _values((f"{name}.y", FLOAT, [1, 32])))

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "nothing"], ["positive"]),
            helper.make_node(
                "If",
                ["positive"],
                ["next"],
                then_branch=branch("then", "Tanh"),
                else_branch=branch("else", "Sigmoid"),
            ),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "body",
        _values(("i", INT64, []), ("going", TRUTH, []), ("state", FLOAT, [1, 32])),
        _values(("goes_on", TRUTH, []), ("next", FLOAT, [1, 32])),
    )
    return _model(
        [
            helper.make_node("Loop", ["times", "", "x"], ["last"], body=body),
            helper.make_node("Neg", ["last"], ["y"]),
        ],
        _values(("x", FLOAT, [1, 32])),
        _values(("y", FLOAT, [1, 32])),
        times=np.int64(4),
        w=_weights(32, 32),
        nothing=np.float32(0),
    )


def text() -> bytes:
    """A bag of words: strings to numbers to vectors, their mean, a layer."""
    node = helper.make_node
    words = ["the", "model", "on", "edge"]
    return _model(
        [
            node(
                "LabelEncoder",
                ["words"],
                ["numbers"],
                domain="ai.onnx.ml",
                keys_strings=words,
                values_int64s=list(range(1, 5)),
                default_int64=0,
            ),
            node("Gather", ["table", "numbers"], ["vectors"]),
            node("ReduceMean", ["vectors"], ["mean"], axes=[0]),
            node("MatMul", ["mean", "w"], ["y"]),
        ],
        _values(("words", STRING, ["count"])),
        _values(("y", FLOAT, [1, 3])),
        table=_weights(5, 16),
        w=_weights(16, 3),
    )


PUBLIC: dict[str, bytes] = {}
"""By name, built once: :func:`public`."""


def public() -> dict[str, bytes]:
    """Nine models, one of each kind."""
    if not PUBLIC:
        PUBLIC.update({name: build(name) for name in ("inverted", "residual", "encoder", "lstm")})
        builders = (detection, quantized, half, control_flow, text)
        PUBLIC.update({builder.__name__: builder() for builder in builders})
    return PUBLIC


# What a device refuses


def sequence() -> bytes:
    """Takes a sequence of tensors."""
    given = helper.make_tensor_sequence_value_info("many", FLOAT, [1, 4])
    nodes = [helper.make_node("ConcatFromSequence", ["many"], ["y"], axis=0)]
    return _model(nodes, [given], _values(("y", FLOAT, None)))


def mapping() -> bytes:
    """Takes numbers by their keys."""
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    node = helper.make_node("CastMap", ["many"], ["y"], domain="ai.onnx.ml")
    given = [helper.make_value_info("many", kind)]
    return _model([node], given, _values(("y", FLOAT, None)))


def custom() -> bytes:
    """Needs a library of operators."""
    nodes = [helper.make_node("Fancy", ["x"], ["y"], domain="custom.ops")]
    return _model(nodes, _values(("x", FLOAT, [1])), _values(("y", FLOAT, [1])))


# Weights beside the model

_ROW = 256
_TABLE_BYTES = 256 << 20


def external_data_model(folder: Path, size_bytes: int) -> tuple[bytes, str, File]:
    """Tables of embeddings, of about so many bytes, that lie in a file of their own: a sparse one.

    Returns:
        The model, the location by which it names the file, and the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    location = "tables.bin"
    nodes, tables, offset = [], [], 0
    while size_bytes - offset >= 2 * 4 * _ROW:  # tokens are 0 and 1
        rows = min(_TABLE_BYTES, size_bytes - offset) // (4 * _ROW)
        name = f"table{len(tables)}"
        table = TensorProto(
            name=name, dims=[rows, _ROW], data_type=FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, value in (
            ("location", location),
            ("offset", str(offset)),
            ("length", str(rows * _ROW * 4)),
        ):
            table.external_data.add(key=key, value=value)
        nodes.append(helper.make_node("Gather", [name, "tokens"], [f"{name}.rows"]))
        tables.append(table)
        offset += rows * _ROW * 4
    nodes.append(helper.make_node("Sum", [node.output[0] for node in nodes], ["sum"]))
    nodes.append(helper.make_node("MatMul", ["sum", "w"], ["y"]))
    path = folder / location
    with path.open("wb") as file:
        file.truncate(offset)
        for table in range(len(tables)):  # its first two rows, which tokens name
            file.seek(table * _TABLE_BYTES)
            file.write(_weights(2, _ROW, seed=table).tobytes())
    graph = helper.make_graph(
        nodes,
        "external",
        _values(("tokens", INT64, ["count"])),
        _values(("y", FLOAT, ["count", 8])),
        [*tables, numpy_helper.from_array(_weights(_ROW, 8), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return model, location, File(digest, offset, path)
