"""What a model is fed: which inputs it has, and the shapes that a request makes of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from esm_host.errors import UsageError
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import tensor_type, value_type

Dims: TypeAlias = tuple[int, ...]
Dim: TypeAlias = int | str | None
"""A number, a symbol that other dimensions may share, or nothing known."""

_OVERRIDABLE_IR_VERSION = 4
"""Before it, every initializer was an input too, and a constant all the same."""
_FREE = "N"
_MAX_DIM = 2**31 - 1
_SHAPE = re.compile(rf"(?:\d+|{_FREE})(?:x(?:\d+|{_FREE}))*", re.ASCII)


@dataclass(frozen=True)
class GraphInput:
    """An input as the model declares it.

    Attributes:
        type: such as ``"float32"``, ``"bfloat16"`` or ``"seq(float32)"``; None if it is of no
            kind that is fed.
        dims: None where not even the rank is known.
    """

    name: str
    type: str | None
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True)
class GivenShape:
    """``--shape NAME:1x3x224x224``; ``name`` is None where it was left out, a dim where it is N."""

    text: str
    name: str | None
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Array:
    """Type and dimensions of a value that an input is given."""

    type: str
    dims: Dims


def graph_inputs(model: view.Model) -> tuple[GraphInput, ...]:
    """What the model has to be fed; inputs that are initializers as well have their value."""
    own = {tensor.name for tensor in model.graph.initializer}
    own |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_graph_input(value) for value in model.graph.input if value.name not in own)


def overridable_inputs(model: view.Model) -> tuple[GraphInput, ...]:
    """Return inputs that are initializers too: they may be given, and are never drawn."""
    if model.ir_version < _OVERRIDABLE_IR_VERSION:
        return ()
    own = {tensor.name for tensor in model.graph.initializer}
    return tuple(_graph_input(value) for value in model.graph.input if value.name in own)


def parse_shape(text: str) -> GivenShape:
    """Reads ``NAME:1x3x224x224`` or ``1x3x224x224``; raises UsageError.

    A name may hold colons itself; N in place of a number leaves that dimension to ``--batch``.
    """
    name, colon, dims = text.rpartition(":")
    numbers: tuple[int | None, ...] = ()
    if _SHAPE.fullmatch(dims):
        numbers = tuple(None if d == _FREE else int(d) for d in dims.split("x"))
    in_range = all(number is None or 0 < number <= _MAX_DIM for number in numbers)
    if not numbers or not in_range or (colon and not name):
        raise UsageError(f"--shape {text}: give NAME:1x3x224x224, or N for a dimension left free")
    return GivenShape(text, name if colon else None, numbers)


def check_names(shapes: Sequence[GivenShape], models: Mapping[str, Sequence[GraphInput]]) -> None:
    """Raises UsageError for a shape of an input that no model has, or of one given twice.

    Args:
        models: inputs, by the model's path.
    """
    known = sorted({known.name for inputs in models.values() for known in inputs})
    seen = set()
    for shape in shapes:
        if shape.name in seen:
            raise UsageError(f"--shape {shape.text}: this input has a shape already, give one")
        seen.add(shape.name)
        if shape.name is not None and models and shape.name not in known:
            raise UsageError(f"--shape {shape.text}: {unknown(shape.name, known)}")


def unknown(name: str, known: Sequence[str]) -> str:
    """Of an input that is not there, and what is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    there = f"there are {', '.join(known)}" if known else "the model takes none"
    return f"there is no input '{name}': {hint}{there}"


def resolve(
    path: str,
    inputs: Sequence[GraphInput],
    shapes: Sequence[GivenShape] = (),
    batch: int | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> tuple[tuple[str, Dims], ...]:
    """Dimensions of every input that is to be drawn and leaves some free.

    Arrays and shapes come first; dimensions that share a symbol with them follow; then the
    batch; what is left is 1.

    Args:
        path: of the model, for messages.
        batch: of the first dimension of every input that leaves it free.
        arrays: what inputs are fed, where that is given.

    Raises:
        UsageError: something contradicts the model or each other.
    """
    arrays = arrays or {}
    bound = _Binding(path, inputs)
    for name, array in arrays.items():
        bound.take(name, array.dims, "--input")
    for shape in shapes:
        if (meant := _meant(path, inputs, shape)) is not None:
            bound.take(meant, shape.dims, f"--shape {shape.text}")
    if batch is not None:
        bound.take_batch(batch)
    return tuple(
        (known.name, dims)
        for known in inputs
        if known.name not in arrays and (dims := bound.explicit(known)) is not None
    )


class _Binding:
    """Values of a model's free dimensions, as they become known, and who gave them."""

    def __init__(self, path: str, inputs: Iterable[GraphInput]) -> None:
        self._path = path
        self._inputs = {known.name: known for known in inputs}
        self._symbols: dict[str, tuple[int, str]] = {}
        self._places: dict[tuple[str, int], tuple[int, str]] = {}
        self._ranks: dict[str, int] = {}

    def take(self, name: str, dims: Sequence[int | None], source: str) -> None:
        known = self._inputs[name].dims
        if known is not None and len(known) != len(dims):
            raise UsageError(
                f"{source}: input '{name}' of {self._path} has {len(known)} dimensions "
                f"({shown(known)}), not {len(dims)}"
            )
        self._ranks[name] = len(dims)
        for axis, value in enumerate(dims):
            if value is not None:
                self._bind(name, axis, value, source)

    def take_batch(self, batch: int) -> None:
        source = f"--batch {batch}"
        free = [
            known.name
            for known in self._inputs.values()
            if (known.dims is None and known.name in self._ranks)
            or (known.dims and not isinstance(known.dims[0], int))
        ]
        if not free:
            declared = ", ".join(
                f"'{known.name}' is {shown(known.dims)}" for known in self._inputs.values()
            )
            raise UsageError(
                f"{source}: {self._path} has no input whose first dimension is free "
                f"({declared or 'it takes none'}): export it with a dynamic batch dimension"
            )
        for name in free:
            self._bind(name, 0, batch, source)

    def explicit(self, known: GraphInput) -> Dims | None:
        """None where the model says all itself, or nothing is known."""
        if known.dims is None:
            if known.name not in self._ranks:
                return None
            dims: Sequence[Dim] = [None] * self._ranks[known.name]
        elif all(isinstance(dim, int) for dim in known.dims):
            return None
        else:
            dims = known.dims
        return tuple(self._value(known.name, axis, dim) for axis, dim in enumerate(dims))

    def _value(self, name: str, axis: int, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        if isinstance(dim, str) and dim in self._symbols:
            return self._symbols[dim][0]
        return self._places.get((name, axis), (1, ""))[0]

    def _bind(self, name: str, axis: int, value: int, source: str) -> None:
        dims = self._inputs[name].dims
        dim = None if dims is None else dims[axis]
        if isinstance(dim, int):
            if dim != value:
                raise UsageError(
                    f"{source}: dimension {axis} of input '{name}' would be {value}, "
                    f"{self._path} fixes it at {dim}"
                )
            return
        if isinstance(dim, str):
            before, giver = self._symbols.setdefault(dim, (value, source))
            what = f"'{dim}', dimension {axis} of input '{name}',"
        else:
            before, giver = self._places.setdefault((name, axis), (value, source))
            what = f"dimension {axis} of input '{name}'"
        if before != value:
            cure = f": write {_FREE} for it in --shape" if "--shape" in giver + source else ""
            raise UsageError(
                f"{source} and {giver} disagree: {what} would be both {value} and {before}{cure}"
            )


def shown(dims: Sequence[Dim] | None) -> str:
    """As people write it: ``Nx3x224x224``."""
    if dims is None:
        return "of any shape"
    return "x".join("?" if dim is None else str(dim) for dim in dims) or "a scalar"


def _meant(path: str, inputs: Sequence[GraphInput], shape: GivenShape) -> str | None:
    """The input that a shape is of; None where another model has it."""
    if shape.name is not None:
        return shape.name if any(known.name == shape.name for known in inputs) else None
    if len(inputs) != 1:
        names = ", ".join(known.name for known in inputs) or "none"
        raise UsageError(
            f"--shape {shape.text}: {path} has {len(inputs)} inputs ({names}): "
            f"say which, --shape NAME:{shape.text}"
        )
    return inputs[0].name


def _graph_input(value: view.ValueInfo) -> GraphInput:
    kind = value_type(value.type)
    tensor = tensor_type(value.type)
    dims = None
    if tensor.HasField("shape"):
        dims = tuple(_dim(dim) for dim in tensor.shape.dim)
    return GraphInput(value.name, None if kind is None else str(kind), dims)


def _dim(dim: view.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write a free dimension as -1. The runtime insists on 0 as on any size.
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None
