"""Malformed inputs for an agent, drawn by seed: requests, uploads and models."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from esm_models.spaces import load_space
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from tests.helpers import ARITHMETIC, smallest

_NUMBERS = (0, 1, 2, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_SIGNED = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 1000, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
_LOCATIONS = ("weightless", "/etc/passwd", "../../x", "", "weights.bin", "*/_ORT_MEM_ADDR_/*")
_OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some flips, cuts, copies and insertions."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[rng.randrange(len(out) + 1) :][: rng.randrange(1, 64)]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 32)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(out)


# Requests


def unary_request(rng: random.Random) -> tuple[str, bytes]:
    """A method that answers with one message, and bytes that are hardly a request of it."""
    names = {"lease_id": "fuzz", "owner": "ada@workstation", "purpose": "test"}
    version = PROTOCOL_VERSION
    good = {
        "GetDeviceInfo": pb.GetDeviceInfoRequest(protocol_version=version),
        "Lease": pb.LeaseRequest(protocol_version=version, no_wait=True, **names),
        "Release": pb.ReleaseRequest(protocol_version=version, lease_id="fuzz"),
        "Offer": pb.OfferRequest(
            protocol_version=version,
            lease_id="fuzz",
            files=[pb.File(sha256=bytes(32), size_bytes=5)],
        ),
        "FinishBlock": pb.FinishRequest(protocol_version=version, lease_id="fuzz", block_id="b"),
        # Of a lease that is not there: a mutated duration is not to be waited for.
        "Diagnose": pb.DiagnoseRequest(protocol_version=version, probe_s=0.1, lease_id="nobody"),
    }
    method = rng.choice(sorted(good))
    kind = rng.randrange(8)
    if kind == 0:
        return method, rng.randbytes(rng.choice((0, 1, 10, 1000)))
    if kind == 1:  # another one's
        return method, good[rng.choice(sorted(good))].SerializeToString()
    if kind == 2:
        return method, good[method].SerializeToString() + b"\x12\x90\x4e" + b"x" * 10_000
    return method, mutated_bytes(good[method].SerializeToString(), rng)


@cache
def _small_model() -> bytes:
    return _chain().SerializeToString()


@cache
def _zeros(size: int) -> tuple[bytes, bytes]:
    """So many, packed, and their hash."""
    return zlib.compress(bytes(size)), hashlib.sha256(bytes(size)).digest()


def _good_upload(lease_id: str, rng: random.Random) -> list[pb.MeasureBlockRequest]:
    data = _small_model()
    models = tuple(Model(f"m{i}", data + bytes([0x4A, 1, i])) for i in range(rng.choice((1, 2))))
    spec = MeasureSpec(runs=1, warmup=0, model_timeout_s=10, load_timeout_s=10)
    return list(convert.block_to_requests(Block(f"b{rng.random()}", spec, models), lease_id))


def upload(lease_id: str, rng: random.Random) -> list[bytes]:
    """The messages of a MeasureBlock call, most of them not as they should be."""
    sent = _good_upload(lease_id, rng)
    header = sent[0].header
    model = header.models[0]
    kinds = {"bytes": 5, "order": 3, "sizes": 4, "spec": 2, "case": 2, "parts": 2, "bomb": 1}
    (kind,) = rng.choices(list(kinds), list(kinds.values()))
    if kind == "order":
        for _ in range(rng.choice((1, 2, 3))):
            at, to = rng.randrange(len(sent)), rng.randrange(len(sent))
            what = rng.randrange(4)
            if what == 0:
                sent.insert(to, sent[at])
            elif what == 1:
                sent.insert(to, sent.pop(at))
            elif what == 2:
                sent = sent[:at] + sent[at + 1 :] or sent
            else:
                sent.reverse()
    elif kind == "sizes":
        field = rng.choice(("size_bytes", "sent_bytes", "sha256", "encoding", "data", "place"))
        near = max(0, model.size_bytes + rng.randrange(-2, 3))
        if field in ("size_bytes", "sent_bytes"):
            setattr(model, field, rng.choice((near, *_NUMBERS)))
        elif field == "sha256":
            model.sha256 = rng.choice((b"", bytes(32), rng.randbytes(64)))
        elif field == "encoding":
            model.encoding = rng.choice((0, 1, 3, 99))
        elif field == "data":
            sent[1].chunk.data = rng.choice((b"", bytes(3_000_000), bytes(5_000_000), b"x"))
        else:
            sent[1].chunk.model = rng.choice((1, 2**31))
            sent[1].chunk.offset = rng.choice(_NUMBERS)
    elif kind == "spec":
        spec = header.spec
        rng.choice(
            (
                lambda: setattr(spec, "protocol", rng.choice((0, 1, 7))),
                lambda: setattr(spec, "threads", rng.choice((0, 2, 16, 2**32 - 1))),
                lambda: setattr(spec, "seed", rng.choice(_NUMBERS)),
                lambda: setattr(spec, "provider", rng.choice(("", "cuda", "x" * 1000))),
                lambda: setattr(spec, "trim", rng.choice((float("nan"), -1.0, 0.5, 1e300))),
                lambda: setattr(spec, "precision", rng.choice((float("inf"), -0.0, 0.5))),
                lambda: setattr(spec, "model_timeout_s", rng.choice((0.0, -1.0, float("nan")))),
                lambda: setattr(spec, "max_block_s", rng.choice((1e-9, -1.0, float("inf")))),
                lambda: setattr(header, "block_id", rng.choice(("", "x" * 100_000, "\0\n"))),
                lambda: setattr(header, "lease_id", rng.choice(("", "nobody", "x" * 1000))),
                lambda: setattr(header, "protocol_version", rng.choice((0, 2, 99))),
                lambda: header.models.extend([model] * rng.choice((1, 300, 5000))),
            )
        )()
    elif kind == "case":
        odd = rng.choice(("", "x", "\x1b[2J\n", "x" * 5000))
        rng.choice(
            (
                lambda: model.shapes.add(input=odd, dims=rng.choices(_NUMBERS, k=3)),
                lambda: [model.shapes.add(input="x", dims=[1]) for _ in range(2)],
                lambda: model.external.add(location=odd, file=pb.File(sha256=bytes(32))),
                lambda: setattr(model, "model_id", odd),
                lambda: setattr(model, "threads", rng.choice((2**31, 2**32 - 1))),
                lambda: setattr(header, "profile_runs", rng.choice((2**31, 2**32 - 1))),
            )
        )()
    elif kind == "parts":
        part = pb.MeasureBlockRequest(header_part=header)
        sent[:1] = [part] * rng.choice((1, 2, 300)) + rng.choice(([], [sent[0]]))
    elif kind == "bomb":
        size = rng.choice((10**5, 10**7, 10**8))
        sent[1].chunk.data, model.sha256 = _zeros(size)
        model.size_bytes = rng.choice((100, size - 1, size))
        model.sent_bytes = len(sent[1].chunk.data)
    raw = [message.SerializeToString() for message in sent]
    if kind == "bytes":
        at = rng.randrange(len(raw))
        raw[at] = rng.choice((mutated_bytes(raw[at], rng), mutated_bytes(raw[at], rng), b""))
    return raw


# Models


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _array(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.full(shape, 0.5, np.float32), name)


def _model(graph: onnx.GraphProto, **more: Any) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def _chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], group=1),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["t"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "g"], ["m"], transB=1),
        helper.make_node("Softmax", ["m"], ["y"], axis=-1),
    ]
    weights = [_array("w", 4, 2, 3, 3), _array("g", 3, 64)]
    return _model(
        helper.make_graph(nodes, "g", [_value("x", 1, 2, 8, 8)], [_value("y", 1, 3)], weights)
    )


def _shapes() -> onnx.ModelProto:
    def ints(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Gather", ["r", "which"], ["g"], axis=1),
        helper.make_node("Slice", ["g", "from", "to", "axes"], ["s"]),
        helper.make_node("Expand", ["s", "large"], ["e"]),
        helper.make_node("Pad", ["e", "pads"], ["p"]),
        helper.make_node("Tile", ["p", "times"], ["t"]),
        helper.make_node("Split", ["t"], ["a", "b"], axis=0),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=1),
    ]
    weights = [
        *(ints("shape", 4, -1), ints("which", 0, 2, 1), ints("large", 4, 2)),
        *(ints("from", 0), ints("to", 2), ints("axes", 1)),
        *(ints("pads", 0, 1, 0, 1), ints("times", 1, 2)),
    ]
    return _model(helper.make_graph(nodes, "g", [_value("x", 2, 8)], [_value("y", 1, 1)], weights))


def _control() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["b"])], "branch", [], [_value("b", 4)],
        [_array("inner", 4)],
    )  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["go"]),
            helper.make_node("Add", ["v", "v"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            _value("v", 4),
        ],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []), _value("w", 4)],
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", 9, [], [True])),
        helper.make_node("Constant", [], ["many"], value=helper.make_tensor("many", 7, [], [3])),
        helper.make_node("If", ["yes"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Loop", ["many", "yes", "i"], ["l"], body=body),
        helper.make_node("Mine", ["l"], ["y"], domain="local"),
    ]
    function = helper.make_function(
        "local", "Mine", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(nodes, "g", [_value("x", 4)], [_value("y", 4)])
    values, indices = _array("sparse", 1), helper.make_tensor("si", TensorProto.INT64, [1], [2])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return _model(graph, functions=[function])


def _recurrent() -> onnx.ModelProto:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=4),
        helper.make_node("Squeeze", ["h"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "g"], ["n"], axis=-1),
        helper.make_node("Resize", ["n", "", "scales"], ["y"], mode="nearest"),
    ]
    scales = numpy_helper.from_array(np.array([2.0], np.float32), "scales")
    weights = [_array("w", 1, 16, 3), _array("r", 1, 16, 4), _array("g", 4), scales]
    return _model(helper.make_graph(nodes, "g", [_value("x", 5, 1, 3)], [_value("y", 8)], weights))


@cache
def good_models() -> tuple[bytes, ...]:
    """Small ones of many kinds of parts, and real ones, without their weights."""
    small = [made().SerializeToString() for made in (_chain, _shapes, _control, _recurrent)]
    spaces = [
        load_space(name, resolution=64, width_mult=0.25)
        for name in ("resnet", "mobilenetv3", "densenet")
    ]
    real = [space.build(smallest(space)) for space in spaces]
    # Small ones more often: they take less time, and each byte of them matters.
    return (*small * 3, *real, ARITHMETIC.read_bytes())


def model(rng: random.Random) -> bytes:
    """A good model with something wrong, as bytes or in its structure."""
    data = rng.choice(good_models())
    kind = rng.randrange(10)
    if kind < 3:
        return mutated_bytes(data, rng)
    if rng.random() < 0.02:
        return data + _nested(rng.choice((2, 10, 30, 40, 1000)))
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_EDITS)(proto, rng)
    data = proto.SerializeToString()
    return mutated_bytes(data, rng) if kind == 3 else data


def _graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    graphs = [proto.graph]
    for graph in graphs:
        graphs += [a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]
    return graphs


def _tensors(proto: onnx.ModelProto) -> list[TensorProto]:
    found = []
    for graph in _graphs(proto):
        found += graph.initializer
        found += [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
        found += [t for s in graph.sparse_initializer for t in (s.values, s.indices)]
    return found or [proto.graph.initializer.add()]


def _node(proto: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes = [node for graph in _graphs(proto) for node in graph.node]
    return rng.choice(nodes) if nodes else proto.graph.node.add(op_type="Relu")


def _edit_dims(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(proto))
    if tensor.dims and rng.random() < 0.8:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_SIGNED)
    else:
        tensor.dims.extend([rng.choice(_SIGNED)] * rng.choice((1, 1, 8, 100)))


def _edit_input(proto: onnx.ModelProto, rng: random.Random) -> None:
    infos = [*proto.graph.input, *proto.graph.output]
    if infos:
        tensor = rng.choice(infos).type.tensor_type
        tensor.shape.dim.add(dim_value=1)
        rng.choice(tensor.shape.dim).dim_value = rng.choice(_SIGNED)
        if rng.random() < 0.3:
            tensor.elem_type = rng.randrange(24)


def _edit_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if rng.random() < 0.8:
        node.op_type = rng.choice((rng.choice(_OPERATORS), "NoSuch", "", "x" * 1000))
    else:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "evil", "local"))


def _edit_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if not node.attribute:
        name = rng.choice(("axis", "pads", "group", "kernel_shape", "to", "strides", "body"))
        node.attribute.add(name=name, type=rng.randrange(1, 12), i=rng.choice(_SIGNED))
        return
    attribute = rng.choice(node.attribute)
    kind = rng.randrange(5)
    if kind == 0:
        attribute.i = rng.choice(_SIGNED)
    elif kind == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIGNED)
    elif kind == 2:
        attribute.ints.extend([rng.choice(_SIGNED)] * rng.choice((1, 10)))
    elif kind == 3:
        attribute.type = rng.choice(AttributeProto.AttributeType.values())
    else:
        node.attribute.remove(attribute)


def _edit_external(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(proto))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=rng.choice(_LOCATIONS))
    if rng.random() < 0.5:
        key, value = rng.choice((("offset", "-1"), ("length", str(2**63)), ("offset", "x")))
        tensor.external_data.add(key=key, value=value)


def _edit_wires(proto: onnx.ModelProto, rng: random.Random) -> None:
    node, other = _node(proto, rng), _node(proto, rng)
    ends = rng.choice((node.input, node.output))
    name = rng.choice([*other.input, *other.output, "", "missing"])
    if ends and rng.random() < 0.8:
        ends[rng.randrange(len(ends))] = name
    else:
        ends.extend([name] * rng.choice((1, 3, 100)))


def _edit_nodes(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(_graphs(proto))
    if not graph.node:
        return
    node = rng.choice(graph.node)
    kind = rng.randrange(3)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1:
        graph.node.extend([node] * rng.choice((1, 5, 500)))
    else:
        nodes = list(graph.node)
        rng.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)


def _edit_data(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(proto))
    kind = rng.randrange(4)
    if kind == 0:
        tensor.data_type = rng.randrange(26)
    elif kind == 1:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 2 and tensor.raw_data:
        tensor.raw_data = mutated_bytes(tensor.raw_data, rng)
    elif tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        count = len(tensor.raw_data) // 8
        tensor.raw_data = np.array([rng.choice(_SIGNED) for _ in range(count)], np.int64).tobytes()


def _edit_versions(proto: onnx.ModelProto, rng: random.Random) -> None:
    proto.ir_version = rng.choice((0, 3, 7, 9, 99, 2**62))
    if proto.opset_import:
        rng.choice(proto.opset_import).version = rng.choice((-1, 0, 1, 6, 13, 21, 10**6))


def _nested(depth: int) -> bytes:
    """A graph in a graph in a graph, which the library itself would not make so deep."""

    def field(number: int, data: bytes) -> bytes:
        size, rest = b"", len(data)
        while rest > 0x7F:
            size, rest = size + bytes([rest & 0x7F | 0x80]), rest >> 7
        return bytes([number << 3 | 2]) + size + bytes([rest]) + data

    graph = b""
    for _ in range(depth):  # GraphProto.node.attribute.g
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))
    return field(7, graph)  # ModelProto.graph, merged with what is there


Edit = Callable[[onnx.ModelProto, random.Random], None]
_EDITS: Sequence[Edit] = (
    *(_edit_dims, _edit_input, _edit_operator, _edit_attribute, _edit_external),
    *(_edit_wires, _edit_nodes, _edit_data, _edit_versions),
)
