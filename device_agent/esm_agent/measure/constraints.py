"""Values that a model's graph requires of its inputs: indices, shapes, axes, divisors, categories.

A random 0 or 1 is not a valid shape or divisor. A table holds a rule for each operator and input
position with such a requirement. A rule returns values that fit the declared shapes around the
node. It returns None if any value is valid, or if too little is declared.

Values are followed from the graph's inputs through operators that pass them on.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from esm_protos.graphs import MAX_RANK, bodies, mapped
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import tensor_type

_MOST_BYTES = 256 << 20
"""Maximum size of a model to read; in larger models, 0 and 1 are usually valid tokens."""
_MOST_WAYS = 10_000
"""Maximum number of factorisations to try."""
_PASSED_ON = {"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose"}
"""Operators that pass the values of their first input on."""
_DROPOUT_RATIO, _IOU_THRESHOLD = 0.5, 0.5
_SAMPLE_RATE_HZ, _DFT_LENGTH = 16_000, 16
_DEPTH = 2
_FAR = 2**31 - 1

Dims = tuple[int, ...]
Declared = tuple[int | None, ...]
"""Dimensions; None where a dimension is free."""


@dataclass(frozen=True)
class Use:
    """Input position of a node that receives a drawn input.

    Attributes:
        facts: Declarations of the graph.
        node: Node.
        position: Position of the input.
        dims: Shape of the drawn input.
        kind: Kind of its elements, as in :class:`numpy.dtype`.
        rng: Random number generator.
    """

    facts: Facts
    node: view.Node
    position: int
    dims: Dims
    kind: str
    rng: np.random.Generator

    @property
    def count(self) -> int:
        return math.prod(self.dims)

    def shape(self, position: int = 0) -> Declared | None:
        """Return the shape of an input of the node; None if it is not declared."""
        names = self.node.input
        return self.facts.shapes.get(names[position]) if position < len(names) else None

    def output(self, position: int = 0) -> Declared | None:
        """Return the shape of an output of the node; None if it is not declared."""
        names = self.node.output
        return self.facts.shapes.get(names[position]) if position < len(names) else None

    def attribute(self, name: str) -> view.Attribute | None:
        return next((each for each in self.node.attribute if each.name == name), None)

    def integer(self, name: str, default: int) -> int:
        attribute = self.attribute(name)
        return default if attribute is None else attribute.i

    def size(self, position: int, axis: int) -> int | None:
        """Return a dimension of an input of the node; None if it is not declared."""
        shape = self.shape(position)
        return None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]


Rule = Callable[[Use], Any]
"""Function that returns an array of the input's size, one number for all elements, or None."""


class Facts:
    """Declarations of a model: the shapes of its values, and the nodes that use them.

    Args:
        model: Model.
        drawn: Shapes of the graph's inputs, without free dimensions.
    """

    def __init__(self, model: view.Model, drawn: Mapping[str, Dims]) -> None:
        self.shapes: dict[str, Declared] = {}
        self._uses: dict[str, list[tuple[view.Node, int]]] = defaultdict(list)
        for body in bodies(model):
            if isinstance(body, view.Graph):
                for value in (*body.value_info, *body.output, *body.input):
                    tensor = tensor_type(value.type)
                    if tensor.HasField("shape"):
                        dims = tensor.shape.dim
                        self.shapes[value.name] = tuple(
                            d.dim_value if d.HasField("dim_value") else None for d in dims
                        )
                for weights in body.initializer:
                    self.shapes[weights.name] = tuple(weights.dims)
            for node in body.node:
                for position, name in enumerate(node.input):
                    if name:
                        self._uses[name].append((node, position))
        self.shapes.update(drawn)

    def uses(self, name: str) -> Iterator[tuple[view.Node, int]]:
        """Yield the nodes that use a value, directly or passed on, and the input positions."""
        todo, seen = [name], {name}
        while todo:
            for node, position in self._uses.get(todo.pop(), ()):
                yield node, position
                if node.op_type in _PASSED_ON and position == 0:
                    fresh = [each for each in node.output if each not in seen]
                    seen.update(fresh)
                    todo += fresh


def read(path: Path, drawn: Mapping[str, Dims]) -> Facts | None:
    """Return the declarations of a model; None if it is too large to read."""
    if path.stat().st_size > _MOST_BYTES:
        return None
    model = view.Model()
    try:
        with mapped(path) as data:
            model.MergeFromString(data)
    except DecodeError:
        return None  # although the runtime loaded it
    return Facts(model, drawn)


def length(facts: Facts, name: str) -> int | None:
    """Return the required length of an input of rank 1; None if the graph does not determine it."""
    for node, position in facts.uses(name):
        rule = _LENGTHS.get((node.op_type, position))
        if rule is not None:
            use = Use(facts, node, position, (), "i", np.random.default_rng(0))
            return rule(use) or None
    return None


def fitting(
    facts: Facts, name: str, dims: Dims, dtype: np.dtype[Any], rng: np.random.Generator
) -> NDArray[Any] | None:
    """Return values of a graph's input that fit the first node with a rule for it.

    Args:
        facts: Declarations of the graph.
        name: Name of the input.
        dims: Shape of the input.
        dtype: Type of its elements.
        rng: Random number generator.

    Returns:
        None if there is no such node, or if any values are valid.
    """
    for node, position in facts.uses(name):
        rule = _RULES.get((node.op_type, position))
        if rule is None:
            continue
        try:
            values = rule(Use(facts, node, position, dims, dtype.kind, rng))
            if values is not None:
                array = np.asarray(values)
                if array.ndim and array.size == math.prod(dims):
                    array = array.reshape(dims)
                return np.array(np.broadcast_to(array, dims), dtype=dtype)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue  # invalid declarations, which the runtime reports
    return None


def _rank(shape: Declared | None) -> int | None:
    return None if shape is None or len(shape) > MAX_RANK else len(shape)


def _known(shape: Declared | None) -> Dims | None:
    """Return a shape without free dimensions; None if it has any."""
    return None if shape is None or None in shape else tuple(d for d in shape if d is not None)


def _below(use: Use, size: int | None) -> Any:
    """Return zeros for indices below 1; None, which keeps 0 and 1, for a larger range."""
    return 0 if size == 1 else None


def _gathered(use: Use) -> Any:
    return _below(use, use.size(0, use.integer("axis", 0)))


def _gathered_nd(use: Use) -> Any:
    table, batch = use.shape(0) or (), use.integer("batch_dims", 0)
    depth = use.dims[-1]
    values = use.rng.integers(0, 2, use.dims)
    for place, size in enumerate(table[batch : batch + depth]):
        if size == 1:
            values[..., place] = 0
    return values


def _new_shape(use: Use) -> Any:
    """Return the shape for Reshape, with -1 for the first dimension that is not declared."""
    wanted = use.output()
    if wanted is None or len(wanted) != use.count:
        return [1] * (use.count - 1) + [-1] if use.count else None
    given = _known(use.shape(0))
    free = [place for place, size in enumerate(wanted) if size is None]
    sizes = [1 if size is None else size for size in wanted]
    if free:
        sizes[free[0]] = -1
    elif given is not None and math.prod(given) != math.prod(sizes):
        return None
    return sizes


def _output_shape(use: Use) -> Any:
    """Return the output's sizes; 1 for those that are not declared."""
    wanted = use.output()
    if wanted is None or len(wanted) != use.count:
        return 1
    return [1 if size is None else size for size in wanted]


def _whole_ratios(use: Use) -> Any:
    """Return the repeats for Tile: the sizes of the output over those of the input."""
    before, after = _known(use.shape(0)), _known(use.output())
    if before is None or after is None or not len(before) == len(after) == use.count:
        return 1
    return [b // max(a, 1) for a, b in zip(before, after, strict=True)]


def _resized(use: Use) -> tuple[list[int | None], list[int | None]]:
    """Return the sizes of input and output along the axes of Resize."""
    before, after = use.shape(0) or (), use.output() or ()
    axes_given = use.attribute("axes")
    axes = list(axes_given.ints) if axes_given is not None else list(range(len(before)))
    if len(axes) != use.count:
        raise ValueError("other axes than sizes")
    sizes = [before[axis] for axis in axes]
    return sizes, [after[axis] for axis in axes] if len(after) == len(before) else sizes


def _scales(use: Use) -> Any:
    if not use.count:
        return None
    try:
        return [b / a if a and b else 1.0 for a, b in zip(*_resized(use), strict=True)]
    except (LookupError, ValueError):
        return 1.0


def _sizes(use: Use) -> Any:
    before, after = _resized(use)
    return [b or a or 1 for a, b in zip(before, after, strict=True)]


def _region(use: Use) -> Any:
    """Return the region for Resize: the whole input."""
    half = use.count // 2
    return [0.0] * half + [1.0] * half


def _changed_axes(use: Use, count: int) -> list[int]:
    """Return ``count`` axes: those along which input and output differ, then others."""
    before, after = use.shape(0), use.output()
    if before is None or (len(use.node.input) < 4 and use.node.op_type in ("Pad", "Slice")):
        return list(range(count))
    others = after if after is not None and len(after) == len(before) else before
    ranked = sorted(range(len(before)), key=lambda axis: (before[axis] == others[axis], axis))
    return sorted(ranked[:count])


def _axes(use: Use) -> Any:
    return _changed_axes(use, use.count)


def _ends(use: Use) -> Any:
    before, after = use.shape(0), use.output()
    if before is None or after is None or len(before) != len(after):
        return _FAR if use.kind in "iu" else None
    return [after[axis] or _FAR for axis in _changed_axes(use, use.count)]


def _paddings(use: Use) -> Any:
    before, after = _known(use.shape(0)), _known(use.output())
    half = use.count // 2
    if before is None or after is None or len(before) != len(after):
        return 0
    more = [after[axis] - before[axis] for axis in _changed_axes(use, half)]
    first = [each // 2 for each in more]
    return first + [each - one for each, one in zip(more, first, strict=True)]


def _inserted(before: Declared | None, after: Declared | None, count: int) -> list[int]:
    """Return the places of ``count`` dimensions of ``after`` that ``before`` lacks.

    Dimensions of 1 are preferred.
    """
    if before is None or after is None or len(after) != len(before) + count:
        return list(range(count))

    def fits(places: tuple[int, ...]) -> bool:
        left = (size for place, size in enumerate(after) if place not in places)
        return all(a == b or None in (a, b) for a, b in zip(left, before, strict=True))

    ways = itertools.islice(itertools.combinations(range(len(after)), count), _MOST_WAYS)
    fitting = [places for places in ways if fits(places)]
    ones = [places for places in fitting if all(after[place] == 1 for place in places)]
    return list(next(iter(ones or fitting), range(count)))


def _new_axes(use: Use) -> Any:
    return _inserted(use.shape(0), use.output(), use.count)


def _old_axes(use: Use) -> Any:
    before = use.shape(0)
    if before is None:
        return None
    ones = [axis for axis, size in enumerate(before) if size == 1]
    wanted = _inserted(use.output(), before, use.count)
    return wanted if all(axis in ones for axis in wanted) else ones[: use.count]


def _reduced(use: Use) -> Any:
    if use.integer("keepdims", 1):
        return _changed_axes(use, use.count)
    return _inserted(use.output(), use.shape(0), use.count)


def _parts(use: Use) -> Any:
    """Return the sizes for Split: as declared, else equal ones."""
    axis = use.integer("axis", 0)
    total = use.size(0, axis)
    if not use.dims and use.node.op_type == "SplitToSequence":
        return 1
    if total is None or not use.count:
        return None
    outputs = [use.output(place) for place in range(use.count)]
    sizes = [None if out is None else out[axis] for out in outputs]
    if None not in sizes and sum(size or 0 for size in sizes) == total:
        return sizes
    each, more = divmod(total, use.count)
    return [each + (place < more) for place in range(use.count)]


def _top(use: Use) -> Any:
    """Return k for TopK: the size of the output."""
    wanted = use.output()
    axis = use.integer("axis", -1)
    return 1 if wanted is None else wanted[axis] or 1


def _limit(use: Use) -> Any:
    """Return the limit for Range from 0 in steps of 1: the size of the output."""
    wanted = use.output()
    return 1 if not wanted or wanted[0] is None else wanted[0]


def _divisors(use: Use) -> Any:
    """Return integers above 0."""
    return use.rng.integers(1, 3, use.dims) if use.kind in "iu" else None


def _depth(use: Use) -> Any:
    wanted = use.output()
    axis = use.integer("axis", -1)
    return _DEPTH if wanted is None else wanted[axis] or _DEPTH


def _trips(use: Use) -> Any:
    """Return the iterations for Loop: the length of a collected output, else 1."""
    collected = (use.output(place) for place in range(max(len(use.node.input) - 2, 0), 64))
    return next((shape[0] for shape in collected if shape and shape[0]), 1)


def _classes(use: Use) -> Any:
    return _below(use, use.size(0, 1))


def _whole_sequences(use: Use) -> Any:
    """Return the sequence lengths for recurrent operators: the maximum for all."""
    return use.size(0, 1 if use.integer("layout", 0) else 0)


def _reversed_sequences(use: Use) -> Any:
    return use.size(0, use.integer("time_axis", 0))


def _cropped(use: Use) -> Any:
    wanted = use.output() or use.shape(0) or ()
    axes = use.attribute("axes")
    return [wanted[axis] or 1 for axis in (axes.ints if axes is not None else range(use.count))]


def _grid_size(use: Use) -> Any:
    """Return the size for AffineGrid: batch, one channel, and the sizes of the grid."""
    wanted = use.output() or ()
    batch = use.size(0, 0) or 1
    sizes = [size or 1 for size in wanted[1:-1]] or [1] * (use.count - 2)
    return [batch, 1, *sizes]


def _image(use: Use) -> Any:
    """Return the image shape for Col2Im."""
    wanted = (use.output() or ())[2:]
    return [size or 1 for size in wanted] or None


def _blocks(use: Use) -> Any:
    """Return a block shape for Col2Im that gives the declared channels and positions."""
    given, wanted = _known(use.shape(0)), _known(use.output())
    if given is None or wanted is None or given[1] % wanted[1]:
        return 1
    image, numbers = wanted[2:], given[1] // wanted[1]
    rank = len(image)

    def listed(name: str, default: int) -> list[int]:
        attribute = use.attribute(name)
        return list(attribute.ints) if attribute is not None else [default] * rank

    strides, dilations = listed("strides", 1), listed("dilations", 1)
    given_pads = use.attribute("pads")
    pads = list(given_pads.ints) if given_pads is not None else [0] * (2 * rank)
    divisors = [d for d in range(1, min(numbers, _MOST_WAYS) + 1) if numbers % d == 0]
    for ways in itertools.islice(itertools.product(divisors, repeat=rank), _MOST_WAYS):
        places = (
            (image[i] + pads[i] + pads[i + rank] - dilations[i] * (way - 1) - 1) // strides[i] + 1
            for i, way in enumerate(ways)
        )
        if math.prod(ways) == numbers and math.prod(places) == given[2]:
            return ways
    return None


def _mel_bins(use: Use) -> Any:
    wanted = use.output() or (None, None)
    return wanted[1] or 2


def _mel_length(use: Use) -> Any:
    bins = (use.output() or (None,))[0]
    return _DFT_LENGTH if bins is None else 2 * (bins - 1)


def _signal_length(use: Use) -> Any:
    return use.size(0, use.integer("axis", 1))


def _frame_step(use: Use) -> Any:
    """Return the frame step for STFT at which the declared frames fit into the signal."""
    signal, wanted = use.size(0, 1), use.output() or ()
    frames = wanted[1] if len(wanted) > 1 else None
    length = _frame_length(use)
    return (
        1 if not signal or not frames or frames < 2 else max((signal - length) // (frames - 1), 1)
    )


def _frame_length(use: Use) -> Any:
    window = use.shape(2)
    if window and window[0]:
        return window[0]
    wanted = use.output() or ()
    bins = wanted[2] if len(wanted) > 2 else None
    if bins:
        return 2 * (bins - 1) if use.integer("onesided", 1) else bins
    return use.size(0, 1) or _DFT_LENGTH


def _window(use: Use) -> Any:
    wanted = use.output()
    return _DFT_LENGTH if not wanted else wanted[0] or _DFT_LENGTH


def _categories(use: Use) -> Any:
    """Return categories from the attributes of an encoder."""
    texts = [use.attribute(n) for n in ("keys_strings", "cats_strings", "classes_strings")]
    numbers = [use.attribute(n) for n in ("keys_int64s", "cats_int64s", "keys_floats")]
    known: list[Any] = []
    for each in texts if use.kind in "OUS" else numbers:
        if each is not None and not known:
            known = [*each.ints, *each.floats, *(text.decode() for text in each.strings)]
    if not known:
        return None
    values = np.empty(len(known), dtype=object)
    values[:] = known
    return values[use.rng.integers(0, len(known), use.dims)]


def _always(value: Any) -> Rule:
    return lambda use: value


def _regions(use: Use) -> Any:
    """Return regions for MaxRoiPool, all in the first image."""
    values = np.abs(use.rng.standard_normal(use.dims))
    values[:, 0] = 0
    return values


_RULES: dict[tuple[str, int], Rule] = {
    ("AffineGrid", 1): _grid_size,
    ("ArrayFeatureExtractor", 1): lambda use: _below(use, use.size(0, -1)),
    ("CategoryMapper", 0): _categories,
    ("CenterCropPad", 1): _cropped,
    ("Col2Im", 1): _image,
    ("Col2Im", 2): _blocks,
    ("ConstantOfShape", 0): _output_shape,
    ("CropAndResize", 2): lambda use: _below(use, use.size(0, 0)),
    ("CumProd", 1): _always(0),
    ("CumSum", 1): _always(0),
    ("DFT", 1): _signal_length,
    ("DFT", 2): _always(1),
    ("DequantizeLinear", 2): _always(0),
    ("Div", 1): _divisors,
    ("Dropout", 1): _always(_DROPOUT_RATIO),
    ("Expand", 1): _output_shape,
    ("Gather", 1): _gathered,
    ("GatherElements", 1): _gathered,
    ("GatherND", 1): _gathered_nd,
    ("LabelEncoder", 0): _categories,
    ("Loop", 0): _trips,
    ("Loop", 1): _always(True),
    ("MaxRoiPool", 1): _regions,
    ("MaxUnpool", 2): _output_shape,
    ("MelWeightMatrix", 0): _mel_bins,
    ("MelWeightMatrix", 1): _mel_length,
    ("MelWeightMatrix", 2): _always(_SAMPLE_RATE_HZ),
    ("MelWeightMatrix", 3): _always(0),
    ("MelWeightMatrix", 4): _always(_SAMPLE_RATE_HZ / 2),
    ("Mod", 1): _divisors,
    ("NegativeLogLikelihoodLoss", 1): _classes,
    ("NonMaxSuppression", 2): _always(1),
    ("NonMaxSuppression", 3): _always(_IOU_THRESHOLD),
    ("OneHot", 1): _depth,
    ("OneHotEncoder", 0): _categories,
    ("Pad", 1): _paddings,
    ("Pad", 3): _axes,
    ("QuantizeLinear", 2): _always(0),
    ("Range", 0): _always(0),
    ("Range", 1): _limit,
    ("Range", 2): _always(1),
    ("Reshape", 1): _new_shape,
    ("Resize", 1): lambda use: _region(use) if len(use.node.input) > 2 else _scales(use),
    ("Resize", 2): _scales,
    ("Resize", 3): _sizes,
    ("ReverseSequence", 1): _reversed_sequences,
    ("RoiAlign", 2): lambda use: _below(use, use.size(0, 0)),
    ("RotaryEmbedding", 3): lambda use: _below(use, use.size(1, 0)),
    ("STFT", 1): _frame_step,
    ("STFT", 3): _frame_length,
    ("Scatter", 1): _gathered,
    ("ScatterElements", 1): _gathered,
    ("ScatterND", 1): _gathered_nd,
    ("SequenceAt", 1): _always(0),
    ("SequenceErase", 1): _always(0),
    ("SequenceInsert", 2): _always(0),
    ("Slice", 1): _always(0),
    ("Slice", 2): _ends,
    ("Slice", 3): _axes,
    ("Slice", 4): _always(1),
    ("SoftmaxCrossEntropyLoss", 1): _classes,
    ("Split", 1): _parts,
    ("SplitToSequence", 1): _parts,
    ("Squeeze", 1): _old_axes,
    ("Tile", 1): _whole_ratios,
    ("TopK", 1): _top,
    ("Unsqueeze", 1): _new_axes,
    ("Upsample", 1): _scales,
    **dict.fromkeys(
        ((name, 0) for name in ("BlackmanWindow", "HammingWindow", "HannWindow")), _window
    ),
    **dict.fromkeys(((name, 4) for name in ("GRU", "LSTM", "RNN")), _whole_sequences),
    **dict.fromkeys(
        (
            (f"Reduce{name}", 1)
            for name in (
                *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"),
                "SumSquare",
            )
        ),
        _reduced,
    ),
}
"""Rules by operator and position of the input."""

_LENGTHS: dict[tuple[str, int], Callable[[Use], int | None]] = {
    ("CenterCropPad", 1): lambda use: _rank(use.shape(0)),
    ("ConstantOfShape", 0): lambda use: _rank(use.output()),
    ("Expand", 1): lambda use: _rank(use.output()) or _rank(use.shape(0)),
    ("Pad", 1): lambda use: 2 * (_rank(use.shape(0)) or 0),
    ("Reshape", 1): lambda use: _rank(use.output()),
    ("Resize", 1): lambda use: (1 + (len(use.node.input) > 2)) * (_rank(use.shape(0)) or 0),
    ("Resize", 2): lambda use: _rank(use.shape(0)),
    ("Resize", 3): lambda use: _rank(use.shape(0)),
    ("Split", 1): lambda use: len(use.node.output),
    ("Tile", 1): lambda use: _rank(use.shape(0)),
    ("Upsample", 1): lambda use: _rank(use.shape(0)),
}
"""Rules for the length of an input whose dimension is free, by operator and position."""
