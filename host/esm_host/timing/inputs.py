"""Shapes of a model's inputs: declared by the model, given by a request, or assumed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.nearest import unknown
from esm_protos.text import counted
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import tensor_type, value_type

Dims: TypeAlias = tuple[int, ...]
Dim: TypeAlias = int | str | None
"""Size of a dimension: a number, a symbol that dimensions may share, or None if unknown."""

_OVERRIDABLE_IR_VERSION = 4
"""IR version before which all initializers are inputs too, and constant all the same."""
_FREE = "N"
_UNNAMED = ("", "?")
"""Symbols that exporters write for dimensions without a name."""
_MAX_DIM = 2**31 - 1
_SIZE = re.compile(r"\d+", re.ASCII)
_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
"""Symbols of a first dimension that is the batch size."""
_SHAPE = re.compile(r"(?:\d+|[A-Za-wyz_]\w*?)(?:x(?:\d+|[A-Za-wyz_]\w*?))*", re.ASCII)


@dataclass(frozen=True)
class GraphInput:
    """Input as the model declares it.

    Attributes:
        name: Name of the input.
        type: Type such as ``"float32"``, ``"bfloat16"`` or ``"seq(float32)"``; None for a type
            that cannot be fed.
        dims: Dimensions; None if even the rank is unknown.
    """

    name: str
    type: str | None
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True)
class GivenShape:
    """Shape that a request gives for an input.

    Attributes:
        text: Text of the shape in the request.
        name: Name of the input; None if it was left out.
        dims: Sizes; None for a free dimension.
        symbols: Symbols of free dimensions, which the model must have in the same places.
    """

    text: str
    name: str | None
    dims: tuple[int | None, ...]
    symbols: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class GivenDim:
    """Sizes of a symbol, each a case of its own."""

    symbol: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Assumed:
    """Dimension without a size, taken as 1.

    Attributes:
        input: Input that has the dimension.
        axis: Index of the dimension; None for an input of unknown rank, which is fed a scalar.
        symbol: Symbol of the dimension; None if it has none.
    """

    input: GraphInput
    axis: int | None
    symbol: str | None


@dataclass(frozen=True)
class Shapes:
    """Shapes that a model is fed in one case.

    Attributes:
        dims: Dimensions of every input that has free ones and a known rank.
        assumed: Dimensions without a given size.
        items: Batch size of an inference; 1 if the model does not name its batch dimension.
    """

    dims: tuple[tuple[str, Dims], ...]
    assumed: tuple[Assumed, ...] = ()
    items: int = 1


@dataclass(frozen=True)
class Array:
    """Type and dimensions of an input's value."""

    type: str
    dims: Dims


def graph_inputs(model: view.Model) -> tuple[GraphInput, ...]:
    """Return the inputs that a model must be fed, without those that have an initializer."""
    own = {tensor.name for tensor in model.graph.initializer}
    own |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_graph_input(value) for value in model.graph.input if value.name not in own)


def overridable_inputs(model: view.Model) -> tuple[GraphInput, ...]:
    """Return the inputs that have an initializer. They may be given, and are never drawn."""
    if model.ir_version < _OVERRIDABLE_IR_VERSION:
        return ()
    own = {tensor.name for tensor in model.graph.initializer}
    return tuple(_graph_input(value) for value in model.graph.input if value.name in own)


def parse_shape(text: str) -> GivenShape:
    """Parse ``NAME:1x3x224x224`` or ``1x3x224x224``.

    The name may contain colons. N, or the model's own symbol, in place of a number leaves that
    dimension free.

    Raises:
        UsageError: the text is not a shape.
    """
    name, colon, dims = text.rpartition(":")
    numbers: tuple[int | None, ...] = ()
    symbols: tuple[str | None, ...] = ()
    if _SHAPE.fullmatch(dims):
        parts = dims.split("x")
        numbers = tuple(int(part) if part.isdecimal() else None for part in parts)
        symbols = tuple(None if part.isdecimal() or part == _FREE else part for part in parts)
        if all(symbols):  # symbols alone are not a shape
            numbers = ()
    in_range = all(number is None or 0 < number <= _MAX_DIM for number in numbers)
    if not numbers or not in_range or (colon and not name):
        raise UsageError(
            f"{argument('shapes')} {text}: give NAME:1x3x224x224, or N for a dimension left free"
        )
    return GivenShape(text, name if colon else None, numbers, symbols)


def parse_dims(texts: Sequence[str]) -> tuple[GivenDim, ...]:
    """Parse texts ``NAME=VALUE[,VALUE...]``, each for another symbol.

    Raises:
        UsageError: a text is malformed, or a symbol or a size is given twice.
    """
    found: dict[str, GivenDim] = {}
    for text in texts:
        symbol, _, sizes = text.rpartition("=")
        numbers = [int(size) if _SIZE.fullmatch(size) else 0 for size in sizes.split(",")]
        if not symbol or not all(0 < number <= _MAX_DIM for number in numbers):
            raise UsageError(
                f"{argument('dims')} {text}: give NAME=SIZE, or NAME=SIZE,SIZE; sizes are whole "
                "numbers from 1"
            )
        if len(set(numbers)) < len(numbers):
            raise UsageError(f"{argument('dims')} {text}: give each size once")
        if symbol in found:
            raise UsageError(f"{argument('dims')} {text}: '{symbol}' has a size already, give one")
        found[symbol] = GivenDim(symbol, tuple(numbers))
    return tuple(found.values())


def check_names(shapes: Sequence[GivenShape], models: Mapping[str, Sequence[GraphInput]]) -> None:
    """Check that every shape belongs to an input of some model, and is given once.

    Args:
        shapes: Shapes of the request.
        models: Inputs by the model's path.

    Raises:
        UsageError: an input is unknown, or is given twice.
    """
    known = sorted({known.name for inputs in models.values() for known in inputs})
    seen = set()
    for shape in shapes:
        given = f"{argument('shapes')} {shape.text}"
        if shape.name in seen:
            raise UsageError(f"{given}: this input has a shape already, give one")
        seen.add(shape.name)
        if shape.name is not None and models and shape.name not in known:
            raise UsageError(f"{given}: {unknown_input(shape.name, known)}")


def check_symbols(
    dims: Iterable[GivenDim], models: Mapping[str, Sequence[GraphInput]], name: str = "dims"
) -> None:
    """Check that some model has each symbol.

    Args:
        dims: Sizes of the request.
        models: Inputs by the model's path.
        name: Name of the argument that gives the sizes.

    Raises:
        UsageError: no model has a symbol.
    """
    known = sorted({symbol for inputs in models.values() for symbol in symbols(inputs)})
    for dim in dims:
        if models and dim.symbol not in known:
            choices = f"the inputs name {_quoted(known)}"
            text = unknown("dimension", dim.symbol, known, choices=choices)
            raise UsageError(f"{argument(name)}: {text}")


def check_free_dims(free_dims: Mapping[str, int], models: Mapping[str, bytes]) -> None:
    """Check that some model has each symbol that session settings fix.

    Args:
        free_dims: Sizes by symbol.
        models: ONNX models by name.

    Raises:
        UsageError: no model has a symbol.
    """
    if free_dims:
        inputs = {name: graph_inputs(view.Model.FromString(data)) for name, data in models.items()}
        check_fixed(free_dims, (), inputs)


def check_fixed(
    fixed: Mapping[str, int],
    dims: Sequence[GivenDim],
    models: Mapping[str, Sequence[GraphInput]],
) -> None:
    """Check that some model has each symbol that session settings fix, and no case sizes it.

    Args:
        fixed: Sizes by symbol.
        dims: Sizes of the request.
        models: Inputs by the model's path.

    Raises:
        UsageError: no model has a symbol, or a symbol has sizes of cases as well.
    """
    check_symbols((GivenDim(name, (size,)) for name, size in fixed.items()), models, "free_dims")
    for dim in dims:
        if dim.symbol in fixed:
            raise UsageError(
                f"{argument('free_dims')} {dim.symbol}={fixed[dim.symbol]}: '{dim.symbol}' has "
                f"{argument('dims')} as well, give one"
            )


def takes_batch(inputs: Iterable[GraphInput]) -> bool:
    """Return whether the first dimension of some input is free."""
    return any(
        not isinstance(known.dims[0], int)
        if known.dims
        else known.dims is None and known.type is not None and "(" not in known.type
        for known in inputs
    )


def symbols(inputs: Iterable[GraphInput]) -> list[str]:
    """Return the symbols of dimensions, each once, in order."""
    dims = (dim for known in inputs for dim in known.dims or ())
    return list(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))


def unknown_input(name: str, known: Sequence[str]) -> str:
    """Return the message for an unknown input."""
    return unknown("input", name, known, choices=f"the model takes {_quoted(known)}")


def resolve(
    path: str,
    inputs: Sequence[GraphInput],
    shapes: Sequence[GivenShape] = (),
    batch: int | None = None,
    arrays: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Shapes:
    """Return the dimensions of every input that has free ones.

    The size of a free dimension is the first of these that exists:

    1. the size in the input's own shape or array;
    2. the size of its symbol in ``fixed`` or ``dims``;
    3. the size of its symbol in other shapes and arrays, if they agree;
    4. the batch size, if the dimension is the first;
    5. 1.

    Dimensions of one symbol may differ, as ONNX Runtime allows it.

    Args:
        path: Path of the model, for messages.
        inputs: Inputs of the model.
        shapes: Given shapes.
        batch: Batch size; None if none is given.
        arrays: Given values, by input.
        dims: Given sizes, by symbol.
        fixed: Sizes that the graph is given before it is optimized, by symbol.

    Raises:
        UsageError: an argument contradicts the model, or has no effect on it.
    """
    arrays, dims, fixed = arrays or {}, dims or {}, fixed or {}
    given = {name: _Given(array.dims, argument("inputs")) for name, array in arrays.items()}
    for shape in shapes:
        if (meant := _meant(path, inputs, shape)) is None:
            continue
        new = _Given(shape.dims, f"{argument('shapes')} {shape.text}", shape.symbols)
        old = given.setdefault(meant, new)
        if old is not new and not _agree(old.dims, new.dims):
            raise UsageError(
                f"{new.source} and {old.source} disagree: the array '{meant}' is {shown(old.dims)}"
            )
    for known in inputs:
        if known.name in given:
            _check(path, known, given[known.name])
    elsewhere = _sizes(inputs, given)
    places: dict[GraphInput, list[tuple[int, str] | None]] = {}
    for known in inputs:
        own = given.get(known.name)
        declared: Sequence[Dim] | None = known.dims
        if declared is None and own is not None:  # unknown rank, which the value or shape sets
            declared = [None] * len(own.dims)
        if declared is not None:
            places[known] = [
                _place(known, axis, dim, own, dims, fixed, elsewhere, batch)
                for axis, dim in enumerate(declared)
            ]
    for symbol, size in dims.items():
        _check_used(path, inputs, places, f"{argument('dims')} {symbol}={size}", symbol, size)
    for symbol, size in fixed.items():
        _check_everywhere(path, places, symbol, size)
    if batch is not None:
        _check_used(path, inputs, places, f"{argument('batch')} {batch}", None, batch)
    resolved = {
        known: tuple(1 if place is None else place[0] for place in found)
        for known, found in places.items()
    }
    return Shapes(
        tuple(
            (known.name, sizes)
            for known, sizes in resolved.items()
            if known.name not in arrays and not _is_fixed(known)
        ),
        tuple(_assumed(inputs, places)),
        batch or _items(resolved),
    )


def assumption(assumed: Sequence[Assumed]) -> str:
    """Return the warning about assumed sizes and how to set them, with marked argument names."""
    said, cures = [], []
    named = [each for each in assumed if each.symbol is not None]
    first = {each.symbol for each in named if each.axis == 0}
    if symbols := list(dict.fromkeys(each.symbol for each in named)):
        shapes = dict.fromkeys(f"{each.input.name}:{shown(each.input.dims)}" for each in named)
        more = f" and {len(shapes) - 2} more" if len(shapes) > 2 else ""
        said.append(f"{_and(symbols)} of {', '.join(list(shapes)[:2])}{more}")
        if batches := [symbol for symbol in symbols if symbol in first]:
            cures.append(f"{_and(batches)} by {argument('batch')}")
        if others := [symbol for symbol in symbols if symbol not in first]:
            sizes = " ".join(f"{argument('dims')} {symbol}=SIZE" for symbol in others[:3])
            cures.append(f"{_and(others)} by {sizes}")
    unnamed = [each for each in assumed if each.symbol is None]
    for known in dict.fromkeys(each.input for each in unnamed):
        axes = [str(each.axis) for each in unnamed if each.input == known and each.axis is not None]
        if axes:
            what = f"dimension{'s' * (len(axes) > 1)} {_and(axes)} of {known.name}"
            dims = known.dims or ()
            shape = "x".join(
                "SIZE" if dim is None else _FREE if isinstance(dim, str) else str(dim)
                for dim in dims
            )
            if axes == ["0"]:
                cures.append(f"it by {argument('batch')}")
            else:
                cures.append(f"{what} by {argument('shapes')} {known.name}:{shape}")
            said.append(f"{what}:{shown(known.dims)}")
        else:
            said.append(f"the whole shape of {known.name} (a scalar)")
            cures.append(f"{known.name} by {argument('shapes')} {known.name}:SIZExSIZE")
    return f"no size is given for {'; '.join(said)}: taken as 1; set {', '.join(cures)}"


@dataclass(frozen=True)
class _Given:
    """Given dimensions of an input, and the argument that gives them."""

    dims: tuple[int | None, ...]
    source: str
    symbols: tuple[str | None, ...] = ()


def _check(path: str, known: GraphInput, given: _Given) -> None:
    """Check that given dimensions agree with those that the model declares."""
    if known.dims is None:
        return
    if len(known.dims) != len(given.dims):
        raise UsageError(
            f"{given.source}: input '{known.name}' of {path} has "
            f"{counted(len(known.dims), 'dimension')} ({shown(known.dims)}), not {len(given.dims)}"
        )
    for axis, (dim, size) in enumerate(zip(known.dims, given.dims, strict=True)):
        if isinstance(dim, int) and size not in (None, dim):
            raise UsageError(
                f"{given.source}: dimension {axis} of input '{known.name}' would be {size}, "
                f"{path} fixes it at {dim}"
            )
    for axis, symbol in enumerate(given.symbols):
        if symbol is not None and known.dims[axis] != symbol:
            raise UsageError(
                f"{given.source}: dimension {axis} of input '{known.name}' of {path} is not named "
                f"'{symbol}' ({shown(known.dims)}): give a size, or {_FREE} to leave it free"
            )


def _agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return len(one) == len(other) and all(
        None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True)
    )


def _sizes(inputs: Iterable[GraphInput], given: Mapping[str, _Given]) -> dict[str, set[int]]:
    """Return the sizes of symbols in given shapes and arrays."""
    found: dict[str, set[int]] = {}
    for known in inputs:
        if known.name in given and known.dims is not None:
            for dim, size in zip(known.dims, given[known.name].dims, strict=True):
                if isinstance(dim, str) and size is not None:
                    found.setdefault(dim, set()).add(size)
    return found


def _place(
    known: GraphInput,
    axis: int,
    dim: Dim,
    own: _Given | None,
    dims: Mapping[str, int],
    fixed: Mapping[str, int],
    elsewhere: Mapping[str, set[int]],
    batch: int | None,
) -> tuple[int, str] | None:
    """Return the size of a dimension and its origin; None if no size is given."""
    if isinstance(dim, int):
        return dim, ""
    if own is not None and (size := own.dims[axis]) is not None:
        return size, own.source
    if dim is not None and dim in fixed:
        return fixed[dim], f"{argument('free_dims')} {dim}={fixed[dim]}"
    if dim is not None and dim in dims:
        return dims[dim], f"{argument('dims')} {dim}={dims[dim]}"
    if dim is not None and len(sizes := elsewhere.get(dim, set())) == 1:
        return next(iter(sizes)), f"'{dim}' of another input"
    if axis == 0 and batch is not None:
        return batch, f"{argument('batch')} {batch}"
    return None


def _check_everywhere(
    path: str,
    places: Mapping[GraphInput, Sequence[tuple[int, str] | None]],
    symbol: str,
    size: int,
) -> None:
    """Check that all dimensions of a symbol have its fixed size."""
    for known, found in places.items():
        for dim, place in zip(known.dims or (), found, strict=False):
            if dim == symbol and place is not None and place[0] != size:
                raise UsageError(
                    f"{argument('free_dims')} {symbol}={size}: {place[1]} gives '{known.name}' of "
                    f"{path} {place[0]} there: give one size"
                )


def _check_used(
    path: str,
    inputs: Iterable[GraphInput],
    places: Mapping[GraphInput, Sequence[tuple[int, str] | None]],
    source: str,
    symbol: str | None,
    size: int,
) -> None:
    """Check that a dimension of the symbol (for None a first dimension) has the size."""
    free = [
        (known, place)
        for known, found in places.items()
        for axis, place in enumerate(found)
        for dim in [None if known.dims is None else known.dims[axis]]
        if place is not None
        and not isinstance(dim, int)
        and (axis == 0 if symbol is None else dim == symbol)
    ]
    if not free:
        fixed = any(known.dims and isinstance(known.dims[0], int) for known in inputs)
        cure = "export it with a dynamic batch dimension" if fixed else "leave it out"
        declared = ", ".join(f"'{known.name}' is {shown(known.dims)}" for known in inputs)
        raise UsageError(
            f"{source}: {path} has no input whose first dimension is free "
            f"({declared or 'it takes none'}): {cure}"
        )
    if all(place[0] != size for _, place in free):
        known, (has, giver) = free[0]
        cure = f", or write {_FREE} for it there" if giver.startswith(argument("shapes")) else ""
        raise UsageError(
            f"{source} sets nothing in {path}: {giver} gives '{known.name}' {has} there: leave one "
            f"of them out{cure}"
        )


def _assumed(
    inputs: Iterable[GraphInput], places: Mapping[GraphInput, Sequence[tuple[int, str] | None]]
) -> Iterator[Assumed]:
    for known in inputs:
        for axis, place in enumerate(places.get(known, ())):
            if place is None:
                dim = None if known.dims is None else known.dims[axis]
                yield Assumed(known, axis, dim if isinstance(dim, str) else None)
        if known not in places and known.type is not None and "(" not in known.type:
            yield Assumed(known, None, None)


def _items(resolved: Mapping[GraphInput, Dims]) -> int:
    """Return the batch size, if inputs name their first dimension so and agree; else 1."""
    sizes = {
        dims[0]
        for known, dims in resolved.items()
        if known.dims and isinstance(known.dims[0], str) and _BATCH.search(known.dims[0])
    }
    return sizes.pop() if len(sizes) == 1 else 1


def _is_fixed(known: GraphInput) -> bool:
    return known.dims is not None and all(isinstance(dim, int) for dim in known.dims)


def _and(names: Sequence[str | None]) -> str:
    *others, last = (str(name) for name in names)
    return f"{', '.join(others)} and {last}" if others else last


def shown(dims: Sequence[Dim] | None) -> str:
    """Return dimensions as text: ``Nx3x224x224``."""
    if dims is None:
        return "of any shape"
    return "x".join("?" if dim is None else str(dim) for dim in dims) or "a scalar"


def _meant(path: str, inputs: Sequence[GraphInput], shape: GivenShape) -> str | None:
    """Return the input that a shape belongs to; None if this model has no such input."""
    if shape.name is not None:
        return shape.name if any(known.name == shape.name for known in inputs) else None
    if len(inputs) != 1:
        names = _quoted(known.name for known in inputs)
        raise UsageError(
            f"{argument('shapes')} {shape.text}: {path} has {len(inputs)} inputs ({names}): "
            f"name one, NAME:{shape.text}"
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
        # Some exporters write a free dimension as -1. For the runtime, 0 is a size.
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return None if dim.dim_param in _UNNAMED else str(dim.dim_param)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
