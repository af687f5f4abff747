"""A thin layer over onnx.helper: static shapes, operator by operator, weightless by default.

Batch normalisation that follows a convolution is not written: inference runtimes fold it into
the convolution's weight and bias, so a graph that is only timed starts from the folded form. Which
convolutions that is true of is kept beside the graph, for whoever makes a network to train of it.

Networks are written down in float32; :mod:`esm_models.quantization` makes int8 ones of them at the
end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from esm_models.quantization import quantized

WeightSource = Callable[[str, tuple[int, ...]], NDArray[np.float32]]
"""Draws the array of an initializer from its name and shape."""

FLOAT32, INT8 = DTYPES = ("float32", "int8")

# Read by every ONNX Runtime since 1.13; nothing here needs more.
OPSET = 17
IR_VERSION = 8

# Where a weightless initializer says its data lies. No such file exists: a runtime that is not
# given the arrays refuses the model instead of reading something else.
WEIGHTLESS_LOCATION = "weightless"


class Network:
    """An ONNX graph under construction. Methods add one operator and return its output's name.

    Args:
        input_shape: (batch, channels, height, width).
        weights: see :meth:`esm_models.space.SearchSpace.build`.
        dtype: one of :data:`DTYPES`, of the arithmetic; the input and the output are float32.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        weights: WeightSource | None = None,
        dtype: str = FLOAT32,
    ) -> None:
        self.input = "input"
        self.dtype = dtype
        self._shapes: dict[str, tuple[int, ...]] = {self.input: input_shape}
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._folded: set[str] = set()
        self._scope = ""
        self._used: dict[str, int] = {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor of this graph, (batch, channels, height, width) for images."""
        return self._shapes[tensor]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The operators so far; names begin with their scopes."""
        return self._nodes

    @property
    def initializers(self) -> Sequence[TensorProto]:
        return self._initializers

    @property
    def folded(self) -> AbstractSet[str]:
        """Names of the convolutions whose weight and bias stand for a convolution without bias and
        a batch normalisation."""
        return self._folded

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of the operators added inside, such as ``unit1.block2.``."""
        outer, self._scope = self._scope, f"{self._scope}{name}."
        try:
            yield
        finally:
            self._scope = outer

    # Operators

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
    ) -> str:
        """Convolution with bias and "same" padding: output side = ceil(side / stride).

        Args:
            norm: whether batch normalisation follows it in the network as it is trained. Nothing
                in the graph depends on that.
        """
        batch, in_channels, height, width = self._shapes[x]
        name = self._name("conv")
        if norm:
            self._folded.add(name)
        weight = self._parameter(
            f"{name}.weight", (channels, in_channels // groups, kernel, kernel)
        )
        bias = self._parameter(f"{name}.bias", (channels,))
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        return self._add(
            "Conv",
            [x, weight, bias],
            shape,
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=_same_pads(kernel),
            group=groups,
        )

    def batch_norm(self, x: str) -> str:
        """Batch normalisation in inference form, for where no convolution comes before it."""
        channels = self._shapes[x][1]
        name = self._name("norm")
        parameters = [
            self._parameter(f"{name}.{part}", (channels,))
            for part in ("scale", "bias", "mean", "variance")
        ]
        return self._add("BatchNormalization", [x, *parameters], self._shapes[x], name)

    def relu(self, x: str) -> str:
        return self._add("Relu", [x], self._shapes[x])

    def hard_swish(self, x: str) -> str:
        return self._add("HardSwish", [x], self._shapes[x])

    def hard_sigmoid(self, x: str) -> str:
        """clip(x / 6 + 1/2, 0, 1), as in MobileNetV3."""
        return self._add("HardSigmoid", [x], self._shapes[x], alpha=1 / 6, beta=0.5)

    def add(self, a: str, b: str) -> str:
        return self._add("Add", [a, b], self._shapes[a])

    def multiply(self, a: str, b: str) -> str:
        """Product of an image with an image or with one number per channel."""
        return self._add("Mul", [a, b], self._shapes[a])

    def zeros_like(self, x: str) -> str:
        """An image of zeros, as a difference: a constant of this size would fill the file."""
        return self._add("Sub", [x, x], self._shapes[x])

    def shuffle(self, x: str, groups: int) -> str:
        """Takes the channels of ``groups`` groups in turns: first of each, second of each, ..."""
        batch, channels, height, width = shape = self._shapes[x]
        apart = (batch, groups, channels // groups, height, width)
        x = self._add("Reshape", [x, self._constant(apart)], apart)
        turned = (batch, channels // groups, groups, height, width)
        x = self._add("Transpose", [x], turned, perm=[0, 2, 1, 3, 4])
        return self._add("Reshape", [x, self._constant(shape)], shape)

    def concat(self, tensors: Sequence[str]) -> str:
        """Concatenation along the channels."""
        batch, _, *sides = self._shapes[tensors[0]]
        channels = sum(self._shapes[tensor][1] for tensor in tensors)
        return self._add("Concat", list(tensors), (batch, channels, *sides), axis=1)

    def max_pool(self, x: str, kernel: int = 3, stride: int = 2) -> str:
        """Maximum with "same" padding: output side = ceil(side / stride)."""
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        return self._add(
            "MaxPool",
            [x],
            shape,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=_same_pads(kernel),
        )

    def average_pool(self, x: str, kernel: int = 2) -> str:
        """Mean over squares of ``kernel`` pixels; a rest at the border is dropped."""
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, height // kernel, width // kernel)
        return self._add(
            "AveragePool", [x], shape, kernel_shape=[kernel, kernel], strides=[kernel, kernel]
        )

    def same_average_pool(self, x: str, kernel: int, stride: int = 1) -> str:
        """Mean with "same" padding, over the pixels of the image alone: output side =
        ceil(side / stride)."""
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        # Only as much padding as the windows need: none where they tile the image.
        missing = [
            max((out - 1) * stride + kernel - side, 0)
            for out, side in zip(shape[2:], (height, width), strict=True)
        ]
        return self._add(
            "AveragePool",
            [x],
            shape,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[m // 2 for m in missing] + [m - m // 2 for m in missing],
            count_include_pad=0,
        )

    def global_average_pool(self, x: str) -> str:
        batch, channels, *_ = self._shapes[x]
        return self._add("GlobalAveragePool", [x], (batch, channels, 1, 1))

    def flatten(self, x: str) -> str:
        batch, *rest = self._shapes[x]
        return self._add("Flatten", [x], (batch, math.prod(rest)), axis=1)

    def linear(self, x: str, features: int) -> str:
        """Fully connected layer on (batch, features)."""
        batch, in_features = self._shapes[x]
        name = self._name("linear")
        weight = self._parameter(f"{name}.weight", (features, in_features))
        bias = self._parameter(f"{name}.bias", (features,))
        return self._add("Gemm", [x, weight, bias], (batch, features), name, transB=1)

    # The model

    def serialize(self, name: str, output: str) -> bytes:
        """The model as bytes, its result named ``output``."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, tensor in enumerate(names):
                    if tensor == output:
                        names[index] = "output"
        graph = helper.make_graph(
            self._nodes,
            name,
            [self._value_info(self.input, self._shapes[self.input])],
            [self._value_info("output", self._shapes[output])],
            self._initializers,
        )
        return serialized(graph, self.dtype, {**self._shapes, "output": self._shapes[output]})

    @staticmethod
    def _value_info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def _name(self, kind: str) -> str:
        stem = self._scope + kind
        self._used[stem] = number = self._used.get(stem, 0) + 1
        return f"{stem}{number}"

    def _add(
        self,
        operator: str,
        inputs: list[str],
        shape: tuple[int, ...],
        name: str | None = None,
        **attributes: Any,
    ) -> str:
        name = name or self._name(operator.lower())
        output = f"{name}.out"
        self._nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        self._shapes[output] = shape
        return output

    def _constant(self, numbers: tuple[int, ...]) -> str:
        """A list of integers, in the graph itself."""
        return self._add(
            "Constant",
            [],
            (len(numbers),),
            value=helper.make_tensor("value", TensorProto.INT64, [len(numbers)], numbers),
        )

    def _parameter(self, name: str, shape: tuple[int, ...]) -> str:
        if self._weights is None:
            tensor = weightless(name, shape)
        else:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            array = np.ascontiguousarray(self._weights(name, shape), dtype="<f4")
            if array.shape != shape:
                raise ValueError(f"the weights of {name} have shape {array.shape}, not {shape}")
            tensor.raw_data = array.tobytes()
        self._initializers.append(tensor)
        return name


def weightless(name: str, shape: Sequence[int]) -> TensorProto:
    """An initializer whose array whoever runs the graph brings."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=WEIGHTLESS_LOCATION)
    return tensor


def serialized(graph: onnx.GraphProto, dtype: str, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A float32 graph as a model of that dtype in bytes; equal graphs give equal bytes.

    Args:
        shapes: of all its tensors, by name; initializers may be left out.
    """
    if dtype == INT8:
        graph = quantized(graph, shapes)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _same_pads(kernel: int) -> list[int]:
    """Padding at the top, left, bottom and right; an even kernel has its odd pixel at the end."""
    return [(kernel - 1) // 2] * 2 + [kernel // 2] * 2
