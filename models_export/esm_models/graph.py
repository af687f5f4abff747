"""Builder of ONNX graphs on top of onnx.helper, with static shapes and weightless by default.

A batch normalisation after a convolution is left out, because inference runtimes fold it into the
convolution's weight and bias. The builder records these convolutions, so that the export can
restore the normalisation in a network for training.

Graphs are built in float32; :mod:`esm_models.quantization` converts a finished one to int8.
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

from esm_models.quantization import quantize

WeightSource = Callable[[str, tuple[int, ...]], NDArray[np.float32]]
"""Function that returns the values of an initializer from its name and shape."""

FLOAT32, INT8 = DTYPES = ("float32", "int8")

# Every ONNX Runtime since 1.13 reads these versions.
OPSET = 17
IR_VERSION = 8

# External data location of a weightless initializer. This file does not exist, so a runtime
# refuses the model unless it gets the values.
WEIGHTLESS_LOCATION = "weightless"


class Network:
    """ONNX graph under construction; each method adds an operator and returns its output's name.

    Args:
        input_shape: Shape (batch, channels, height, width).
        weights: Function that returns the values of the initializers, as in
            :meth:`esm_models.space.SearchSpace.build`; None leaves them out.
        dtype: Type of the arithmetic, one of :data:`DTYPES`; input and output are float32.
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
        """Return the shape of a tensor, (batch, channels, height, width) for images."""
        return self._shapes[tensor]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """Operators added so far; their names begin with their scopes."""
        return self._nodes

    @property
    def initializers(self) -> Sequence[TensorProto]:
        return self._initializers

    @property
    def folded(self) -> AbstractSet[str]:
        """Names of the convolutions with a folded batch normalisation.

        In training they have no bias of their own.
        """
        return self._folded

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the operators added inside, for example with ``unit1.block2.``."""
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
        """Add a convolution with bias and "same" padding: output side = ceil(side / stride).

        Args:
            x: Name of the input.
            channels: Output channels.
            kernel: Side of the kernel, pixels.
            stride: Stride, pixels.
            groups: Groups of channels.
            norm: Whether batch normalisation follows in training; the graph does not depend on it.
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
        """Add a standalone batch normalisation, in inference form."""
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
        """Add clip(x / 6 + 1/2, 0, 1), as in MobileNetV3."""
        return self._add("HardSigmoid", [x], self._shapes[x], alpha=1 / 6, beta=0.5)

    def add(self, a: str, b: str) -> str:
        return self._add("Add", [a, b], self._shapes[a])

    def multiply(self, a: str, b: str) -> str:
        """Multiply an image by an image or by one number per channel."""
        return self._add("Mul", [a, b], self._shapes[a])

    def zeros_like(self, x: str) -> str:
        """Add an image of zeros as the difference x - x, which takes less space than a constant."""
        return self._add("Sub", [x, x], self._shapes[x])

    def shuffle(self, x: str, groups: int) -> str:
        """Interleave the channels of ``groups`` groups: the first of each, then the second, ..."""
        batch, channels, height, width = shape = self._shapes[x]
        apart = (batch, groups, channels // groups, height, width)
        x = self._add("Reshape", [x, self._constant(apart)], apart)
        turned = (batch, channels // groups, groups, height, width)
        x = self._add("Transpose", [x], turned, perm=[0, 2, 1, 3, 4])
        return self._add("Reshape", [x, self._constant(shape)], shape)

    def concat(self, tensors: Sequence[str]) -> str:
        """Concatenate tensors along the channels."""
        batch, _, *sides = self._shapes[tensors[0]]
        channels = sum(self._shapes[tensor][1] for tensor in tensors)
        return self._add("Concat", list(tensors), (batch, channels, *sides), axis=1)

    def max_pool(self, x: str, kernel: int = 3, stride: int = 2) -> str:
        """Add a maximum with "same" padding: output side = ceil(side / stride)."""
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
        """Add a mean over squares of ``kernel`` pixels; incomplete squares are dropped."""
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, height // kernel, width // kernel)
        return self._add(
            "AveragePool", [x], shape, kernel_shape=[kernel, kernel], strides=[kernel, kernel]
        )

    def same_average_pool(self, x: str, kernel: int, stride: int = 1) -> str:
        """Add a mean with "same" padding, which excludes the padding from the mean.

        Output side = ceil(side / stride).
        """
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        # Only as much padding as the windows need: none if they tile the image.
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
        """Add a fully connected layer on (batch, features)."""
        batch, in_features = self._shapes[x]
        name = self._name("linear")
        weight = self._parameter(f"{name}.weight", (features, in_features))
        bias = self._parameter(f"{name}.bias", (features,))
        return self._add("Gemm", [x, weight, bias], (batch, features), name, transB=1)

    # The model

    def serialize(self, name: str, output: str) -> bytes:
        """Return the model as bytes, with its result named ``output``.

        Args:
            name: Name of the graph.
            output: Current name of the output tensor.
        """
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
        return serialize_graph(graph, self.dtype, {**self._shapes, "output": self._shapes[output]})

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
        """Add a list of integers, stored in the graph itself."""
        return self._add(
            "Constant",
            [],
            (len(numbers),),
            value=helper.make_tensor("value", TensorProto.INT64, [len(numbers)], numbers),
        )

    def _parameter(self, name: str, shape: tuple[int, ...]) -> str:
        if self._weights is None:
            tensor = weightless_initializer(name, shape)
        else:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            array = np.ascontiguousarray(self._weights(name, shape), dtype="<f4")
            if array.shape != shape:
                raise ValueError(f"the weights of {name} have shape {array.shape}, not {shape}")
            tensor.raw_data = array.tobytes()
        self._initializers.append(tensor)
        return name


def weightless_initializer(name: str, shape: Sequence[int]) -> TensorProto:
    """Return an initializer without values; a caller gives them to the runtime."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=WEIGHTLESS_LOCATION)
    return tensor


def serialize_graph(
    graph: onnx.GraphProto, dtype: str, shapes: Mapping[str, tuple[int, ...]]
) -> bytes:
    """Return a float32 graph as the bytes of a model; equal graphs give equal bytes.

    Args:
        graph: Graph in float32.
        dtype: Type of the model's arithmetic.
        shapes: Shapes of the graph's tensors, by name; initializers may be left out.
    """
    if dtype == INT8:
        graph = quantize(graph, shapes)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _same_pads(kernel: int) -> list[int]:
    """Return the padding at the top, left, bottom and right, with an odd pixel at the end."""
    return [(kernel - 1) // 2] * 2 + [kernel // 2] * 2
