"""Session with bound inputs and outputs, in which an inference is one call for all types.

Python's ``session.run`` converts outputs to numpy arrays, which takes time and does not support all
types of ONNX. Bound values stay values of the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice, OrtValueVector

from esm_agent.measure.feeds import Feed
from esm_agent.measure.onnx_values import packed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line
from esm_protos.v1 import onnx_values_pb2 as pb
from esm_protos.value_types import Element, ValueType

_TENSOR, _INT = 4, 2  # AttributeProto.AttributeType
_IR_VERSION, _OPSET = 8, 17
_TENSOR_TYPE = re.compile(r"(optional\()?tensor\(")


def values(feed: Feed) -> dict[str, Any]:
    """Return the runtime's values of a feed, by name, without absent values.

    They may refer to the arrays' memory, and keep it alive.

    Raises:
        ModelError: the runtime does not support a value.
    """
    return {
        name: _value(feed.types[name], value)
        for name, value in feed.arrays.items()
        if value is not None
    }


class Bound:
    """Session with bound inputs and outputs.

    Output tensors are allocated by the first inference and reused, as in an application that binds
    them. Outputs that cannot be reused are allocated at every inference: sequences and maps, to
    which the runtime would append, and shapes that change from run to run.

    Attributes:
        run: Function that runs an inference; it raises the runtime's exceptions.
    """

    run: Callable[[], None]

    def __init__(self, session: Any, fed: dict[str, Any]) -> None:
        """Bind the values that :func:`values` returned."""
        self._binding = binding = session.io_binding()
        self._allocated: Sequence[Any] | None = None
        inputs = OrtValueVector()
        for name, value in fed.items():
            binding.bind_ortvalue_input(name, value)
            inputs.push_back(value._get_c_value())
        kinds = {output.name: output.type for output in session.get_outputs()}
        for name in kinds:
            binding.bind_output(name)
        options, names, outputs = ort.RunOptions(), list(fed), list(kinds)
        cpu = OrtDevice(OrtDevice.cpu(), OrtDevice.default_memory(), 0)
        devices = [cpu] * len(outputs)

        def allocating() -> None:
            found = OrtValueVector()
            session.run_with_ortvaluevector(options, names, inputs, outputs, found, devices)
            self._allocated = found

        def reusing() -> None:
            if self._allocated is not None:
                return allocating()
            try:
                session.run_with_iobinding(binding)
            except Exception:
                # Shapes may have changed. If not, this raises the failure with its type.
                allocating()

        are_tensors = all(_TENSOR_TYPE.match(kind) for kind in kinds.values())
        self.run = reusing if are_tensors else allocating

    def outputs(self) -> Sequence[Any]:
        """Return the outputs of the last run as values of the runtime, in the model's order."""
        found = self._allocated
        return list(self._binding.get_outputs_as_ortvaluevector() if found is None else found)


def _value(kind: ValueType, value: NDArray[Any] | tuple[NDArray[Any], ...]) -> Any:
    if isinstance(value, tuple):
        return _sequence(kind.element, value)
    if kind.element.name == "string":
        node = _constant(value, "strings")
        identity = pb.Node(input=["strings"], output=["value"], op_type="Identity")
        return _made([node, identity], {}, kind)
    return _tensor(kind.element, value)


def _tensor(element: Element, array: NDArray[Any]) -> Any:
    """Return a tensor of numbers in the memory of an array of the same dimensions."""
    contiguous = np.asarray(array, order="C")
    if element.bits < 8:
        small = packed(contiguous, element.bits)
        contiguous = np.zeros(contiguous.shape, dtype=np.uint8)
        contiguous.reshape(-1)[: small.size] = small
    if element.in_numpy:
        return ort.OrtValue.ortvalue_from_numpy(contiguous)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, element.number)


def _sequence(element: Element, arrays: Sequence[NDArray[Any]]) -> Any:
    kind = ValueType(element, is_sequence=True)
    if not arrays:
        number = pb.Attribute(name="dtype", i=element.number, type=_INT)
        empty = pb.Node(output=["value"], op_type="SequenceEmpty", attribute=[number])
        return _made([empty], {}, kind)
    names = [f"tensor{number}" for number in range(len(arrays))]
    join = pb.Node(input=names, output=["value"], op_type="SequenceConstruct")
    if element.name == "string":
        return _made([*map(_constant, arrays, names), join], {}, kind)
    tensors = (_tensor(element, array) for array in arrays)
    return _made([join], dict(zip(names, tensors, strict=True)), kind)


def _constant(array: NDArray[Any], name: str) -> pb.Node:
    """Return a node with a tensor of strings.

    Python can pass strings to the runtime only within a model, or again at every run.
    """
    words = [str(word).encode() for word in array.ravel()]
    strings = pb.Tensor(dims=array.shape, data_type=8, string_data=words)
    attribute = pb.Attribute(name="value", t=strings, type=_TENSOR)
    return pb.Node(output=[name], op_type="Constant", attribute=[attribute])


def _made(nodes: Sequence[pb.Node], fed: dict[str, Any], kind: ValueType) -> Any:
    """Return the output ``value`` of a model of these nodes."""
    tensor = pb.Type(tensor_type=pb.TensorType(elem_type=kind.element.number))
    sequence = pb.Type(sequence_type=pb.SequenceType(elem_type=tensor))
    graph = pb.Graph(
        node=nodes,
        name="value",
        input=[pb.ValueInfo(name=name, type=tensor) for name in fed],
        output=[pb.ValueInfo(name="value", type=sequence if kind.is_sequence else tensor)],
    )
    opset = pb.OperatorSet(domain="", version=_OPSET)
    model = pb.Model(ir_version=_IR_VERSION, graph=graph, opset_import=[opset])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run_with_ort_values(["value"], fed)[0]
    except Exception as error:
        text = f"this runtime does not support values of type {kind}: {one_line(error)}"
        raise ModelError(failure_kind(error), text) from error
