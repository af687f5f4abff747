"""Automatic predictor as an ONNX graph, in double precision as kernels nearly cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from esm_host.predictors.base import Floats
from esm_host.predictors.fold_networks import FoldNetworks
from esm_host.predictors.process import Process

if TYPE_CHECKING:
    from torch import nn

    from esm_host.predictors.mlp import MLPPredictor

_OPSET, _IR_VERSION = 17, 8


def mixture_graph(
    width: int, processes: Sequence[Process], networks: FoldNetworks | None, weights: Floats
) -> bytes:
    """Return the weighted geometric mean of the candidates' latencies as ONNX.

    The input is ``encoding`` (n, width), the output ``latency_ms`` (n,).

    Args:
        weights: Weights of the processes, then of the networks.
    """
    graph = _Graph()
    x = graph.add("Cast", "encoding", to=TensorProto.DOUBLE)
    members = [_process(graph, x, each) for each in processes]
    if networks is not None:
        members.append(_networks(graph, x, networks))
    logs = [
        graph.add("Mul", member, graph.constant(float(weight)))
        for member, weight in zip(members, weights, strict=True)
    ]
    latency_ms = graph.add("Exp", graph.add("Sum", *logs))
    graph.nodes.append(helper.make_node("Cast", [latency_ms], ["latency_ms"], to=TensorProto.FLOAT))
    return graph.serialized(width)


class _Graph:
    """Nodes and constants, named by number."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: float | NDArray[np.generic]) -> str:
        name = f"constant{len(self._constants)}"
        array = np.asarray(value)
        self._constants[name] = array if array.dtype == np.int64 else array.astype(np.float64)
        return name

    def serialized(self, width: int) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "latency_predictor",
            [helper.make_tensor_value_info("encoding", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info("latency_ms", TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        opset = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
        data: bytes = model.SerializeToString()
        return data


def _networks(graph: _Graph, x: str, networks: FoldNetworks) -> str:
    logs = [_network(graph, x, each, networks.least_ms_) for each in networks.members_]
    # ONNX Runtime has no Mean of doubles.
    return graph.add("Mul", graph.add("Sum", *logs), graph.constant(1 / len(logs)))


def _network(graph: _Graph, x: str, member: MLPPredictor, least_ms: float) -> str:
    value = graph.add("Sub", x, graph.constant(member.mean_))
    value = graph.add("Div", value, graph.constant(member.scale_))
    *hidden, last = member.linears()
    for layer in hidden:
        value = graph.add("Relu", _linear(graph, value, layer))
    value = graph.add("Squeeze", _linear(graph, value, last), graph.constant(np.array([1])))
    value = graph.add("Mul", value, graph.constant(member.unit_ms_))
    return graph.add("Log", graph.add("Max", value, graph.constant(least_ms)))


def _linear(graph: _Graph, x: str, layer: nn.Linear) -> str:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return graph.add("Gemm", x, graph.constant(weight), graph.constant(bias), transB=1)


def _process(graph: _Graph, x: str, process: Process) -> str:
    design = process.design
    slope = process.slopes_[:, 0] * design.scale
    offset = process.constant_[0] - design.centre @ slope
    terms = [graph.add("MatMul", x, graph.constant(slope)), graph.constant(offset)]
    for kernel in process.smooth_:
        at, points = design.groups[kernel.group], design.inducing[kernel.group]
        columns = np.arange(at.start, at.stop, dtype=np.int64)
        own = graph.add("Gather", x, graph.constant(columns), axis=1)
        own = graph.add("Sub", own, graph.constant(design.centre[at]))
        own = graph.add("Mul", own, graph.constant(design.scale[at]))
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab
        squares = graph.add("ReduceSumSquare", own, axes=[1], keepdims=1)
        product = graph.add("MatMul", own, graph.constant(-2 * points.T))
        distance = graph.add("Sum", squares, product, graph.constant((points**2).sum(axis=1)))
        scaled = graph.add("Mul", distance, graph.constant(-0.5 * np.exp(-2 * kernel.length)))
        dual = np.exp(kernel.variance) * kernel.dual[:, 0]
        terms.append(graph.add("MatMul", graph.add("Exp", scaled), graph.constant(dual)))
    scaled = graph.add("Mul", graph.add("Sum", *terms), graph.constant(process.scale_))
    value = graph.add("Add", scaled, graph.constant(process.mean_))
    if process.log_:
        return value
    return graph.add("Log", graph.add("Max", value, graph.constant(process.least_ms_)))
