"""Builder of ONNX graphs on top of onnx.helper, weightless by default.

Shapes are static. A dimension that is an :class:`Axis` has a name, and is free in exported graphs.

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
from typing import Any, Literal

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

NEWEST_OPSET = 23
"""Newest opset that a graph may use; a graph declares it only if it has an operator of it."""

_SINCE = {"Gelu": 20, "Attention": 23, "RMSNormalization": 23, "RotaryEmbedding": 23}
"""First opset of the operators that are newer than :data:`OPSET`."""

_LOWEST = float(np.finfo(np.float32).min)
"""Added to the score of a key that attention must not read."""

_ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
"""Types of tensors."""

# External data location of a weightless initializer. This file does not exist, so a runtime
# refuses the model unless it gets the values.
WEIGHTLESS_LOCATION = "weightless"


class Axis(int):
    """Size of a named dimension, such as ``Axis("sequence", 128)``.

    Graphs to measure have this size, and exported graphs leave the dimension free. The sum of two
    has a name too: ``"past + sequence"``.
    """

    name: str

    def __new__(cls, name: str, size: int) -> Axis:
        axis = super().__new__(cls, size)
        axis.name = name
        return axis

    def __add__(self, other: int) -> Axis:
        return Axis(f"{self.name} + {_dim(other)}", int(self) + int(other))

    def __radd__(self, other: int) -> Axis:
        return Axis(f"{_dim(other)} + {self.name}", int(other) + int(self))


class Network:
    """ONNX graph under construction; each method adds an operator and returns its output's name.

    Args:
        input_shape: Shape of the image input, (batch, channels, height, width).
        weights: Function that returns the values of the initializers, as in
            :meth:`esm_models.space.SearchSpace.build`; None leaves them out.
        dtype: Type of the arithmetic, one of :data:`DTYPES`; image and output are float32.
        opset: Newest opset that the graph may use. Operators that need a newer one are made of
            older operators.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        weights: WeightSource | None = None,
        dtype: str = FLOAT32,
        opset: int = NEWEST_OPSET,
    ) -> None:
        self.input = "input"
        self.dtype = dtype
        self._opset = opset
        self._shapes = _Shapes({self.input: input_shape})
        self._types: dict[str, str] = {}
        self._inputs: list[str] = []
        self._outputs: dict[str, str] = {}
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._folded: set[str] = set()
        self._scope = ""
        self._used: dict[str, int] = {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor, (batch, channels, height, width) for images."""
        return self._shapes[tensor]

    def type(self, tensor: str) -> str:
        """Return the type of a tensor's elements: ``float32``, ``int64`` or ``bool``."""
        return self._types.get(tensor, FLOAT32)

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs: the image if an operator reads it or if there is no other."""
        read = any(self.input in node.input for node in self._nodes)
        return [self.input] * (read or not self._inputs) + self._inputs

    @property
    def outputs(self) -> Mapping[str, str]:
        """Further outputs, by tensor, in the order in which they were added."""
        return self._outputs

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

    # Inputs, outputs and parameters

    def add_input(self, name: str, shape: Sequence[int], dtype: str = FLOAT32) -> str:
        """Add an input and return its name.

        The image is then an input only if an operator reads it. Devices draw floats from a normal
        distribution, and integers are 0 or 1: valid tokens, positions and flags.

        Args:
            name: Name of the input.
            shape: Its dimensions; one that varies in use is an :class:`Axis`.
            dtype: ``float32``, ``int64`` or ``bool``.
        """
        _check(dtype in _ELEMENTS, f"dtype {dtype!r} of input {name!r}: choose {_TYPES}")
        self._check_new("input", name)
        self._inputs.append(name)
        self._shapes[name] = tuple(shape)
        self._type(name, dtype)
        return name

    def add_output(self, name: str, tensor: str) -> None:
        """Add an output besides the network's result, such as a cache of keys for the next run."""
        self._check_new("output", name)
        made = any(tensor in node.output for node in self._nodes)
        if not made or tensor in self._outputs:  # an output has an operator of its own
            tensor = self._add("Identity", [tensor], self._shapes[tensor])
        self._outputs[tensor] = name

    def _check_new(self, what: str, name: str) -> None:
        taken = name == "output" or name in self._outputs.values() or name in self._shapes
        _check(not taken, f"{what} {name!r} exists: give another name")

    def parameter(self, *shape: int) -> str:
        """Add a free parameter, such as a class token or position embeddings."""
        name = self._name("parameter")
        self._shapes[name] = shape
        return self._parameter(name, shape)

    def constant(self, values: Any) -> str:
        """Add fixed numbers, stored in the graph itself: an array, or a list of numbers.

        Integers become int64, and floats float32.
        """
        array = np.asarray(values)
        dtype = {"f": FLOAT32, "b": "bool"}.get(array.dtype.kind, "int64")
        array = array.astype(dtype)
        made = helper.make_tensor("value", _ELEMENTS[dtype], array.shape, array.ravel().tolist())
        return self._add("Constant", [], array.shape, dtype=dtype, value=made)

    # Operators

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        padding: int | None = None,
    ) -> str:
        """Add a convolution with bias.

        Args:
            x: Name of the input.
            channels: Output channels.
            kernel: Side of the kernel, pixels.
            stride: Stride, pixels.
            groups: Groups of channels.
            norm: Whether batch normalisation follows in training; the graph does not depend on it.
            padding: Padding of each side, pixels; None for "same" padding, with which the output
                side is ceil(side / stride).
        """
        batch, in_channels, height, width = self._shapes[x]
        _check(
            in_channels % groups == 0 and channels % groups == 0,
            f"conv of {in_channels} to {channels} channels in {groups} groups: give a divisor",
        )
        name = self._name("conv")
        if norm:
            self._folded.add(name)
        weight = self._parameter(
            f"{name}.weight", (channels, in_channels // groups, kernel, kernel)
        )
        bias = self._parameter(f"{name}.bias", (channels,))
        if padding is None:
            sides = [-(-side // stride) for side in (height, width)]
        else:
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        _check(min(sides) > 0, f"conv of kernel {kernel} on {height}x{width}: give a larger image")
        return self._add(
            "Conv",
            [x, weight, bias],
            (batch, channels, *sides),
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=_same_pads(kernel) if padding is None else [padding] * 4,
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

    def relu6(self, x: str) -> str:
        """Add min(max(x, 0), 6), as in MobileNetV2."""
        return self._add("Clip", [x, self.constant(0.0), self.constant(6.0)], self._shapes[x])

    def hard_swish(self, x: str) -> str:
        return self._add("HardSwish", [x], self._shapes[x])

    def hard_sigmoid(self, x: str) -> str:
        """Add clip(x / 6 + 1/2, 0, 1), as in MobileNetV3."""
        return self._add("HardSigmoid", [x], self._shapes[x], alpha=1 / 6, beta=0.5)

    def sigmoid(self, x: str) -> str:
        return self._add("Sigmoid", [x], self._shapes[x])

    def tanh(self, x: str) -> str:
        return self._add("Tanh", [x], self._shapes[x])

    def silu(self, x: str) -> str:
        """Add x * sigmoid(x), also known as swish."""
        return self.multiply(x, self.sigmoid(x))

    def gelu(self, x: str) -> str:
        """Add x * P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016)."""
        if self._opset >= _SINCE["Gelu"]:
            return self._add("Gelu", [x], self._shapes[x])
        scaled = self._add("Div", [x, self.constant(math.sqrt(2))], self._shapes[x])
        share = self.add(self._add("Erf", [scaled], self._shapes[x]), self.constant(1.0))
        return self.multiply(self.multiply(x, share), self.constant(0.5))

    def softmax(self, x: str, axis: int = -1) -> str:
        return self._add("Softmax", [x], self._shapes[x], axis=axis)

    def layer_norm(self, x: str, epsilon: float = 1e-5) -> str:
        """Add a normalisation over the last dimension, with scale and bias (Ba et al. 2016)."""
        shape, name = self._shapes[x], self._name("norm")
        weights = [self._parameter(f"{name}.{part}", shape[-1:]) for part in ("scale", "bias")]
        return self._add("LayerNormalization", [x, *weights], shape, name, axis=-1, epsilon=epsilon)

    def rms_norm(self, x: str, epsilon: float = 1e-6) -> str:
        """Add a division by the root mean square over the last dimension, with a scale.

        Source: Zhang and Sennrich 2019.
        """
        shape, name = self._shapes[x], self._name("norm")
        scale = self._parameter(f"{name}.scale", shape[-1:])
        if self._opset >= _SINCE["RMSNormalization"]:
            return self._add("RMSNormalization", [x, scale], shape, name, axis=-1, epsilon=epsilon)
        self._shapes[scale] = shape[-1:]
        square = self.reduce_mean(self.multiply(x, x), [-1], keepdims=True)
        size = self.add(square, self.constant(epsilon))
        root = self._add("Sqrt", [size], self._shapes[size])
        return self.multiply(self._add("Div", [x, root], shape), scale)

    def add(self, a: str, b: str) -> str:
        """Add two tensors; dimensions of 1 are repeated."""
        return self._add("Add", [a, b], self._broadcast(a, b))

    def multiply(self, a: str, b: str) -> str:
        """Multiply two tensors, such as an image by one number per channel.

        Dimensions of 1 are repeated.
        """
        return self._add("Mul", [a, b], self._broadcast(a, b))

    def matmul(self, a: str, b: str) -> str:
        """Multiply the matrices in the last two dimensions; the others are broadcast."""
        (*_, rows, inner), (*_, inner_b, columns) = self._shapes[a], self._shapes[b]
        shapes = f"{_dims(self._shapes[a])} by {_dims(self._shapes[b])}"
        _check(inner == inner_b, f"matmul of {shapes}: {inner} is not {inner_b}")
        outer = _broadcast(self._shapes[a][:-2], self._shapes[b][:-2])
        return self._add("MatMul", [a, b], (*outer, rows, columns))

    def zeros_like(self, x: str) -> str:
        """Add an image of zeros as the difference x - x, which takes less space than a constant."""
        return self._add("Sub", [x, x], self._shapes[x])

    def shuffle(self, x: str, groups: int) -> str:
        """Interleave the channels of ``groups`` groups: the first of each, then the second, ..."""
        batch, channels, height, width = shape = self._shapes[x]
        x = self.reshape(x, (batch, groups, channels // groups, height, width))
        return self.reshape(self.transpose(x, (0, 2, 1, 3, 4)), shape)

    def concat(self, tensors: Sequence[str], axis: int = 1) -> str:
        """Concatenate tensors along an axis, by default the channels.

        Other dimensions of 1, such as the batch of a class token, are repeated.
        """
        axis %= len(self._shapes[tensors[0]])
        others: tuple[int, ...] = ()
        for tensor in tensors:
            shape = list(self._shapes[tensor])
            shape[axis] = 1
            others = _broadcast(others, shape)
        sizes = [self._shapes[tensor][axis] for tensor in tensors]
        each = [
            self.expand(tensor, (*others[:axis], size, *others[axis + 1 :]))
            for tensor, size in zip(tensors, sizes, strict=True)
        ]
        total = sum(sizes[1:], sizes[0])
        return self._add("Concat", each, (*others[:axis], total, *others[axis + 1 :]), axis=axis)

    def expand(self, x: str, shape: Sequence[int]) -> str:
        """Repeat dimensions of 1; without any to repeat, no operator is added."""
        before, shape = self._shapes[x], tuple(shape)
        if before == shape:
            return x
        _check(_broadcast(before, shape) == shape, f"{_dims(before)} does not fit {_dims(shape)}")
        repeated = [
            1 if isinstance(b, Axis) and _dim(a) == _dim(b) else b
            for a, b in zip((1,) * (len(shape) - len(before)) + before, shape, strict=True)
        ]
        _check(
            not any(isinstance(size, Axis) for size in repeated),
            f"expand to {_dims(shape)}: a named dimension is free, so nothing is repeated to it",
        )
        return self._add("Expand", [x, self._constant(tuple(repeated))], shape)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Give a tensor another shape of as many elements; -1 stands for the rest."""
        before = self._shapes[x]
        if -1 in shape:
            rest = math.prod(before) // -math.prod(shape)
            shape = [rest if size == -1 else size for size in shape]
        shape = tuple(shape)
        _check(
            math.prod(shape) == math.prod(before),
            f"reshape of {_dims(before)} to {_dims(shape)}: the numbers of elements differ",
        )
        sizes = [
            size
            if not isinstance(size, Axis)
            else 0  # as before
            if place < len(before) and _dim(before[place]) == size.name
            else -1
            for place, size in enumerate(shape)
        ]
        _check(
            sizes.count(-1) < 2,
            f"reshape of {_dims(before)} to {_dims(shape)}: one named dimension may move",
        )
        return self._add("Reshape", [x, self._constant(tuple(sizes))], shape)

    def transpose(self, x: str, order: Sequence[int]) -> str:
        """Change the order of the dimensions; ``order`` has the number of each."""
        before = self._shapes[x]
        _check(
            sorted(order) == list(range(len(before))),
            f"transpose of {_dims(before)} by {tuple(order)}: give each dimension once",
        )
        shape = tuple(before[place] for place in order)
        return self._add("Transpose", [x], shape, perm=list(order))

    def split(self, x: str, sizes: int | Sequence[int], axis: int = -1) -> list[str]:
        """Split a tensor along an axis: into a number of equal parts, or parts of these sizes."""
        before = self._shapes[x]
        axis %= len(before)
        if isinstance(sizes, int):
            sizes = [before[axis] // sizes] * sizes
        _check(
            sum(sizes) == before[axis],
            f"split of {before[axis]} into {_dims(sizes)}: the sum is {sum(sizes)}",
        )
        shapes = [(*before[:axis], size, *before[axis + 1 :]) for size in sizes]
        name = self._name("split")
        outputs = [f"{name}.out{number}" for number in range(1, len(shapes) + 1)]
        given = [x, self._constant(tuple(sizes))]
        self._nodes.append(helper.make_node("Split", given, outputs, name, axis=axis))
        for output, shape in zip(outputs, shapes, strict=True):
            self._shapes[output] = shape
            self._type(output, self.type(x))
        return outputs

    def slice(self, x: str, start: int, end: int | None = None, axis: int = -1) -> str:
        """Take elements ``start`` to ``end`` along an axis, as in Python; None is the end."""
        before = self._shapes[x]
        axis %= len(before)
        size = before[axis]
        places = range(*slice(start, end).indices(size))
        _check(len(places) > 0, f"slice {start} to {end} of {size} elements is empty")
        fixed = start < 0 if end is None else (start < 0) == (end < 0)
        _check(
            fixed or not isinstance(size, Axis),
            f"slice {start} to {end} of a named dimension has no fixed size",
        )
        bounds = [(start,), (2**63 - 1 if end is None else end,), (axis,)]
        given = [x, *map(self._constant, bounds)]
        return self._add("Slice", given, (*before[:axis], len(places), *before[axis + 1 :]))

    def gather(self, x: str, indices: str, axis: int = 0) -> str:
        """Take the elements with these indices along an axis."""
        before = self._shapes[x]
        axis %= len(before)
        _check(
            self.type(indices) == "int64",
            f"gather with the indices {indices!r} of {self.type(indices)}: give int64",
        )
        shape = (*before[:axis], *self._shapes[indices], *before[axis + 1 :])
        return self._add("Gather", [x, indices], shape, axis=axis)

    def embedding(self, indices: str, count: int, features: int) -> str:
        """Replace each index below ``count`` by its row of a table of parameters."""
        name = self._name("embedding")
        weight = self._parameter(f"{name}.weight", (count, features))
        shape = (*self._shapes[indices], features)
        return self._add("Gather", [weight, indices], shape, name, dtype=FLOAT32, axis=0)

    def reduce_mean(self, x: str, axes: Sequence[int], keepdims: bool = False) -> str:
        """Add the mean over these axes; ``keepdims`` leaves them as dimensions of 1."""
        before = self._shapes[x]
        over = {axis % len(before) for axis in axes}
        shape = tuple(
            1 if place in over else size
            for place, size in enumerate(before)
            if keepdims or place not in over
        )
        # Opset 18 has the axes as an input.
        return self._add("ReduceMean", [x], shape, axes=sorted(over), keepdims=int(keepdims))

    def upsample(self, x: str, factor: int, mode: Literal["nearest", "linear"] = "nearest") -> str:
        """Enlarge an image by a whole factor, by repetition or linear interpolation."""
        batch, channels, height, width = self._shapes[x]
        shape = (batch, channels, height * factor, width * factor)
        scales = self.constant([1.0, 1.0, float(factor), float(factor)])
        how = {"coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._add("Resize", [x, "", scales], shape, mode=mode, **how)

    # Attention

    def attention(
        self,
        query: str,
        key: str,
        value: str,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = False,
        mask: str | None = None,
    ) -> str:
        """Add scaled dot-product attention (Vaswani et al. 2017), between its linear layers.

        Args:
            query: Queries, (batch, queries, heads * size).
            key: Keys, (batch, keys, kv_heads * size).
            value: Values, (batch, keys, kv_heads * value size).
            heads: Heads of the queries.
            kv_heads: Heads of keys and values, a divisor of ``heads``; None for as many.
            causal: Whether a query reads only the keys up to its own; the last query reads all.
            mask: Tensor that fits (batch, heads, queries, keys) by repetition. Floats are added to
                the scores, such as a relative bias. Booleans say which keys are read.

        Returns:
            Name of the result, (batch, queries, heads * value size).
        """
        kv_heads = kv_heads or heads
        (batch, queries, width), (_, keys, k_width) = self._shapes[query], self._shapes[key]
        v_width = self._shapes[value][2]
        _check(
            width % heads == 0 == heads % kv_heads and k_width * heads == width * kv_heads,
            f"attention of {width} features in {heads} heads, and keys of {k_width} in {kv_heads}: "
            "give both the same size of a head",
        )
        shape = (batch, queries, v_width // kv_heads * heads)
        square = _dim(queries) == _dim(keys)
        one = queries == 1 and not isinstance(queries, Axis)  # it is the last
        fused = self._opset >= _SINCE["Attention"]
        if causal and not one and not (fused and square):
            mask = self._causal_mask(query, key, mask)
        if fused:
            given = [query, key, value, *([] if mask is None else [mask])]
            how = {"q_num_heads": heads, "kv_num_heads": kv_heads}
            if causal and square and not one:
                how["is_causal"] = 1
            return self._add("Attention", given, shape, None, None, **how)
        q = self.transpose(self._heads(query, heads), (0, 2, 1, 3))
        k = self.transpose(self._heads(key, kv_heads, heads), (0, 2, 3, 1))
        v = self.transpose(self._heads(value, kv_heads, heads), (0, 2, 1, 3))
        scale = self.constant(1 / math.sqrt(width // heads))
        scores = self.multiply(self.matmul(q, k), scale)
        if mask is not None and self.type(mask) == "bool":
            given = [mask, scores, self.constant(_LOWEST)]
            scores = self._add("Where", given, self._shapes[scores], dtype=FLOAT32)
        elif mask is not None:
            scores = self.add(scores, mask)
        mixed = self.matmul(self.softmax(scores), v)
        return self.reshape(self.transpose(mixed, (0, 2, 1, 3)), shape)

    def rotary_tables(self, positions: str, size: int, base: float = 10_000.0) -> tuple[str, str]:
        """Add cosines and sines for :meth:`rotary`, once for all blocks.

        Args:
            positions: Positions of the elements, (batch, sequence): an int64 input, or a constant.
            size: Features of a head.
            base: Base of the wavelengths.
        """
        shape = self._shapes[positions]
        x = self._add("Cast", [positions], shape, dtype=FLOAT32, to=TensorProto.FLOAT)
        frequencies = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        angles = self.multiply(self.reshape(x, (*shape, 1)), self.constant(frequencies))
        shape = self._shapes[angles]
        return self._add("Cos", [angles], shape), self._add("Sin", [angles], shape)

    def rotary(self, x: str, heads: int, tables: tuple[str, str]) -> str:
        """Turn queries or keys by their positions (Su et al. 2021), half of a head with the other.

        Args:
            x: Queries or keys, (batch, sequence, heads * size).
            heads: Their heads.
            tables: Result of :meth:`rotary_tables`.
        """
        shape, cos, sin = self._shapes[x], *tables
        if self._opset >= _SINCE["RotaryEmbedding"]:
            return self._add("RotaryEmbedding", [x, cos, sin], shape, num_heads=heads)
        table = self._shapes[cos]
        cos, sin = (self.reshape(each, (*table[:2], 1, table[2])) for each in tables)
        a, b = self.split(self._heads(x, heads), 2)
        real = self._add("Sub", [self.multiply(a, cos), self.multiply(b, sin)], self._shapes[a])
        other = self.add(self.multiply(b, cos), self.multiply(a, sin))
        return self.reshape(self.concat([real, other], axis=-1), shape)

    def _heads(self, x: str, heads: int, repeated: int | None = None) -> str:
        """Return (batch, sequence, heads, size), with each head repeated to ``repeated`` heads."""
        batch, sequence, width = self._shapes[x]
        if repeated in (None, heads):
            return self.reshape(x, (batch, sequence, heads, width // heads))
        assert repeated is not None
        each = (batch, sequence, heads, 1, width // heads)
        times = (batch, sequence, heads, repeated // heads, width // heads)
        x = self.expand(self.reshape(x, each), times)
        return self.reshape(x, (batch, sequence, repeated, width // heads))

    def _causal_mask(self, query: str, key: str, mask: str | None) -> str:
        """Return ``mask`` with the keys after a query's own left out; the last query reads all."""
        queries, keys = self._shapes[query][1], self._shapes[key][1]
        if isinstance(queries, Axis) or isinstance(keys, Axis):
            sizes = [
                self._add("Shape", [each], (1,), dtype="int64", start=1, end=2)
                for each in (query, key)
            ]
            shape = self.concat(sizes, axis=0)
            more = self._add("Sub", sizes[::-1], (1,))
            first = self._add("Squeeze", [self.add(more, self._constant((1,)))], ())
        else:
            shape, first = self._constant((queries, keys)), self.constant(keys - queries + 1)
        lowest = helper.make_tensor("value", TensorProto.FLOAT, [1], [_LOWEST])
        dims = (queries, keys)
        low = self._add("ConstantOfShape", [shape], dims, dtype=FLOAT32, value=lowest)
        causal = self._add("Trilu", [low, first], dims, upper=1)
        if mask is None:
            return causal
        if self.type(mask) == "bool":
            given = [mask, causal, self.constant(_LOWEST)]
            return self._add("Where", given, self._broadcast(mask, causal), dtype=FLOAT32)
        return self.add(mask, causal)

    # Pools and layers

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

    def linear(self, x: str, features: int, bias: bool = True) -> str:
        """Add a fully connected layer on the last dimension."""
        *outer, in_features = self._shapes[x]
        name = self._name("linear")
        shape, flat = (*outer, features), len(outer) == 1
        sides = (features, in_features) if flat else (in_features, features)
        weight = self._parameter(f"{name}.weight", sides)
        biases = [self._parameter(f"{name}.bias", (features,))] if bias else []
        if flat:
            return self._add("Gemm", [x, weight, *biases], shape, name, transB=1)
        result = self._add("MatMul", [x, weight], shape, name)
        return self._add("Add", [result, *biases], shape, f"{name}_bias") if bias else result

    # The model

    def serialize(self, name: str, output: str, free: bool = False) -> bytes:
        """Return the model as bytes, with its result named ``output``.

        Args:
            name: Name of the graph.
            output: Current name of the output tensor.
            free: Whether dimensions with a name (:class:`Axis`) are free.
        """
        _check(
            output not in self._outputs,
            f"output {self._outputs.get(output)!r} is the network's result: leave it out",
        )
        names = {output: "output", **self._outputs}
        for node in self._nodes:
            for tensors in (node.input, node.output):
                for index, tensor in enumerate(tensors):
                    if tensor in names:
                        tensors[index] = names[tensor]
        graph = helper.make_graph(
            self._nodes,
            name,
            [self._value_info(each, each, free) for each in self.inputs],
            [self._value_info(names[each], each, free) for each in names],
            self._initializers,
        )
        shapes = {**self._shapes, **{names[each]: self._shapes[each] for each in names}}
        return serialize_graph(graph, self.dtype, shapes)

    def _value_info(self, name: str, tensor: str, free: bool) -> onnx.ValueInfoProto:
        return value_info(name, self.type(tensor), self._shapes[tensor], free)

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
        dtype: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add an operator with one output; its type is that of the first input by default."""
        name = name or self._name(operator.lower())
        output = f"{name}.out"
        self._nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        self._shapes[output] = shape
        self._type(output, dtype or (self.type(inputs[0]) if inputs else FLOAT32))
        return output

    def _type(self, tensor: str, dtype: str) -> None:
        if dtype != FLOAT32:
            self._types[tensor] = dtype

    def _broadcast(self, a: str, b: str) -> tuple[int, ...]:
        return _broadcast(self._shapes[a], self._shapes[b])

    def _constant(self, numbers: tuple[int, ...]) -> str:
        """Add a list of integers, stored in the graph itself."""
        return self.constant(np.array(numbers, dtype=np.int64))

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


def value_info(
    name: str, dtype: str, shape: Sequence[int], free: bool = False
) -> onnx.ValueInfoProto:
    """Return the declaration of an input or output; ``free`` leaves named dimensions free."""
    dims = [_dim(size) if free else int(size) for size in shape]
    return helper.make_tensor_value_info(name, _ELEMENTS[dtype], dims)


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes of the tensors of a graph, by name."""

    def __missing__(self, tensor: object) -> tuple[int, ...]:
        raise ValueError(f"{tensor!r} is not a tensor of this network: give an operator's result")


def serialize_graph(
    graph: onnx.GraphProto, dtype: str, shapes: Mapping[str, tuple[int, ...]]
) -> bytes:
    """Return a float32 graph as the bytes of a model; equal graphs give equal bytes.

    Args:
        graph: Graph in float32.
        dtype: Type of the model's arithmetic.
        shapes: Shapes of the graph's tensors, by name; initializers may be left out.
    """
    opset = max((_SINCE.get(node.op_type, OPSET) for node in graph.node), default=OPSET)
    if dtype == INT8:
        graph = quantize(graph, shapes)
    if opset > OPSET:
        graph = _moved_axes(graph)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _moved_axes(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Return a graph whose means have their axes as an input, as opset 18 and newer ones do."""
    nodes = []
    for node in graph.node:
        if node.op_type == "ReduceMean":
            (axes,) = (each for each in node.attribute if each.name == "axes")
            made = helper.make_tensor("value", TensorProto.INT64, [len(axes.ints)], axes.ints)
            name = f"{node.name}.axes"
            nodes.append(helper.make_node("Constant", [], [name], name, value=made))
            others = {
                each.name: helper.get_attribute_value(each)
                for each in node.attribute
                if each.name != "axes"
            }
            node = helper.make_node(
                "ReduceMean", [*node.input, name], node.output, node.name, **others
            )
        nodes.append(node)
    return helper.make_graph(nodes, graph.name, graph.input, graph.output, graph.initializer)


_TYPES = ", ".join(_ELEMENTS)


def _check(fits: bool, text: str) -> None:
    """Raise a ValueError with this text if an argument of an operator does not fit."""
    if not fits:
        raise ValueError(text)


def _dim(size: int) -> int | str:
    return size.name if isinstance(size, Axis) else int(size)


def _dims(shape: Sequence[int]) -> str:
    return "x".join(str(int(size)) for size in shape) or "a scalar"


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that two shapes fit by repetition of dimensions of 1."""
    if len(a) < len(b):
        a, b = b, a
    result = list(a)
    for place in range(-1, -len(b) - 1, -1):
        _check(
            a[place] == b[place] or 1 in (a[place], b[place]),
            f"{_dims(a)} and {_dims(b)} do not fit: sizes must be equal or 1",
        )
        if a[place] == 1:
            result[place] = b[place]
    return tuple(result)


def _same_pads(kernel: int) -> list[int]:
    """Return the padding at the top, left, bottom and right, with an odd pixel at the end."""
    return [(kernel - 1) // 2] * 2 + [kernel // 2] * 2
