"""Inputs of a model: given values, given shapes, and random values for the rest.

A free dimension gets the size that its name has in another input, else 1.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from esm_agent.device.facts import memory_bytes
from esm_agent.measure import constraints, onnx_values
from esm_agent.measure.onnx_values import Value
from esm_agent.measure.outcomes import ModelError
from esm_protos.graphs import mapped
from esm_protos.messages import Case, Failure, FailureKind, Input
from esm_protos.nearest import unknown
from esm_protos.text import counted
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import Element, ValueType, runtime_type, tensor_type

_WORDS = ("a", "an", "edge", "model", "of", "the", "to", "words")
_SHOWN = 8
_LONGEST = 100
_STRING_BYTES = 64
"""Minimum memory of a word: a Python object and a pointer to it."""
_DRAWN_TENSORS = 2
"""Number of tensors in a drawn sequence."""
_SEQUENCE_DIMS = (1,)
"""Shape of these tensors if the model declares none."""
_PROTO_COPIES = 4
"""Memory of a proto relative to its file: it is read, parsed and converted."""
_EIGHTHS = {
    "float8e4m3fn": (3, 7),
    "float8e4m3fnuz": (3, 8),
    "float8e5m2": (2, 15),
    "float8e5m2fnuz": (2, 16),
    "float8e8m0": (0, 127),
    "float4e2m1": (1, 1),
}
"""Bits of the mantissa, and the exponent of the number 1, by type of small floats."""

_FEW = 64
"""Maximum number of floats that can be scales, ratios or limits; more floats are data."""
_PLAIN = Case()

Dims = tuple[int, ...]


class _Slot(NamedTuple):
    """Input as the model declares it.

    Attributes:
        name: Name of the input.
        type: Type in ONNX Runtime's form.
        dims: Dimensions: an integer if fixed, else a name or None; empty if the rank is unknown.
    """

    name: str
    type: str
    dims: tuple[Any, ...]

    @property
    def kind(self) -> ValueType:
        kind = runtime_type(self.type)
        if kind is None:
            raise ModelError(
                FailureKind.UNSUPPORTED_OP,
                f"input {_quoted(self.name)} is of type {_short(self.type)}; this agent supports "
                "tensors, sequences of tensors and optional ones",
            )
        return kind

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array that holds its values or, if numpy lacks their type, their bits."""
        return np.dtype(self.kind.element.storage)

    @property
    def type_name(self) -> str:
        """Type in the form of :class:`esm_protos.messages.Input`."""
        return str(self.kind)


@dataclass(frozen=True)
class Feed:
    """Inputs of a model's runs.

    Attributes:
        arrays: Values by name: an array for a tensor, a tuple for a sequence, None for an absent
            optional value. Arrays of types that numpy lacks hold the bits.
        inputs: Descriptions of the inputs.
        types: Types by name.
        given: Whether shapes or values were given with the model.
        free: Names of inputs with free dimensions that were set to 1.
        drawn: Names of inputs with random values.
    """

    arrays: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    types: Mapping[str, ValueType] = field(default_factory=dict)
    given: bool = False
    free: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()

    def blamed(self, failure: Failure) -> Failure:
        """Return a failure of the first run, with the inputs if they may be its cause.

        The runtime has loaded the model, so the inputs do not fit.
        """
        if failure.kind is not FailureKind.INVALID_MODEL or not self.inputs:
            return failure
        fed = [f"{_short(i.name)} {i.type} {_dims(i.dims)}" for i in self.inputs]
        text = f"{failure.message}; fed {_listed(fed)}"
        if self.free:
            free = _listed(self.free, _quoted)
            text += f"; free dimensions of {free} were set to 1: give their sizes"
        if self.drawn:
            text += f"; values of {_listed(self.drawn, _quoted)} are random: give values"
        return Failure(FailureKind.INVALID_INPUT, text)


def draw(
    session: Any,
    seed: int,
    case: Case = _PLAIN,
    given: Path | None = None,
    path: Path | None = None,
) -> Feed:
    """Return the inputs for a session.

    Random floats are standard normal, and strings are short words. Random integers are 0 or 1,
    which are nearly always valid indices, tokens and flags. If the graph needs other values, for
    example a shape or a divisor, :mod:`~.constraints` supplies them. A random sequence has two
    tensors. An optional value is present.

    Args:
        session: Session of the runtime, which lists the inputs.
        seed: Random seed.
        case: Settings of the runs, with given shapes.
        given: Zip of values by input name; None for none. An entry is ``NAME.npy`` as in an
            ``.npz``, or ``NAME.pb`` with a TensorProto, SequenceProto or OptionalProto. Missing
            values are random. Inputs that are also initializers keep their value.
        path: Path of the model. It gives the shapes of tensors in sequences, which the runtime
            does not report, and the constraints of its nodes. Without it, these tensors are
            vectors of one element, and there are no constraints.

    Raises:
        ModelError: UNSUPPORTED_OP for an unsupported type, INVALID_INPUT if given shapes or values
            do not fit, OUT_OF_MEMORY if the inputs do not fit into memory.
    """
    slots = {slot.name: slot for slot in map(_slot, session.get_inputs())}
    if path is not None and any(slot.kind.is_sequence for slot in slots.values()):
        slots |= _declared(path, slots)
    shapes = dict(case.shapes)
    for name in shapes:
        _known(name, slots, "a shape")
    arrays: dict[str, Value] = {}
    if given is not None:
        optional = {slot.name: slot for slot in map(_slot, session.get_overridable_initializers())}
        arrays = _read(given, {**slots, **optional})
        slots |= {name: slot for name, slot in optional.items() if name in arrays}
    for name, value in arrays.items():
        dims = _dims_of(value)
        if dims is not None and shapes.setdefault(name, dims) != dims:
            raise _refused(
                f"the given value of input {_quoted(name)} has shape {_dims(dims)}, the given "
                f"shape is {_dims(shapes[name])}: leave one of them out"
            )
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        _fit(slots[name], dims, sizes)
    free = []
    for slot in slots.values():
        if slot.name not in shapes and slot.name not in arrays:
            unset = [d for d in slot.dims if not _is_fixed(d) and d not in sizes]
            if unset or (slot.kind.is_sequence and not slot.dims):
                free.append(slot.name)
            dims = tuple(d if _is_fixed(d) else sizes.get(d, (1, ""))[0] for d in slot.dims)
            shapes[slot.name] = dims or (_SEQUENCE_DIMS if slot.kind.is_sequence else ())
    drawn = [slot for slot in slots.values() if slot.name not in arrays]
    facts = _facts(path, drawn, shapes)
    if facts is not None:
        for slot in drawn:
            if slot.name in free and len(slot.dims) == 1 and not slot.kind.is_sequence:
                length = constraints.length(facts, slot.name)
                if length is not None:
                    facts.shapes[slot.name] = shapes[slot.name] = (length,)
                    free.remove(slot.name)
    chosen = bool(case.shapes) or given is not None
    _check_memory({slot.name: _bytes(slot, shapes[slot.name]) for slot in drawn}, shapes, chosen)
    rng = np.random.default_rng(seed)
    for position, slot in enumerate(drawn):
        try:
            if slot.kind.is_sequence:
                tensors = (_values(slot, shapes[slot.name], rng) for _ in range(_DRAWN_TENSORS))
                arrays[slot.name] = tuple(tensors)
            else:
                dims = shapes[slot.name]
                arrays[slot.name] = _values(slot, dims, rng)
                if facts is not None:  # a generator of their own keeps the other values the same
                    own = np.random.default_rng((seed, position))
                    fitting = constraints.fitting(facts, slot.name, dims, slot.dtype, own)
                    arrays[slot.name] = arrays[slot.name] if fitting is None else fitting
        except ValueError as error:  # numpy's limit of dimensions
            raise _refused(f"input {_quoted(slot.name)}: {error}") from error
    return Feed(
        {name: arrays[name] for name in slots},
        tuple(Input(s.name, s.type_name, _dims_of(arrays[s.name]) or ()) for s in slots.values()),
        {name: slot.kind for name, slot in slots.items()},
        chosen,
        tuple(free),
        tuple(slot.name for slot in drawn),
    )


def _slot(node: Any) -> _Slot:
    slot = _Slot(node.name, node.type, tuple(node.shape or ()))
    assert slot.kind  # raises for an unsupported type
    return slot


def _facts(
    path: Path | None, drawn: Sequence[_Slot], shapes: Mapping[str, Dims]
) -> constraints.Facts | None:
    """Return the declarations of the graph; None if no input of this kind can be constrained."""
    open_ = (slot.dtype.kind not in "fc" or math.prod(shapes[slot.name]) <= _FEW for slot in drawn)
    if path is None or not any(open_):
        return None
    return constraints.read(path, {s.name: shapes[s.name] for s in drawn if not s.kind.is_sequence})


def _declared(path: Path, slots: Mapping[str, _Slot]) -> dict[str, _Slot]:
    """Return the sequences, with the declared dimensions of their tensors."""
    model = view.Model()
    with mapped(path) as data:
        model.MergeFromString(data)
    sequences = {}
    for given in model.graph.input:
        if given.name in slots and slots[given.name].kind.is_sequence:
            shape = tensor_type(given.type).shape
            dims = (d.dim_value if d.dim_value > 0 else d.dim_param or None for d in shape.dim)
            sequences[given.name] = slots[given.name]._replace(dims=tuple(dims))
    return sequences


def _dims_of(value: Value) -> Dims | None:
    """Return the shape of a tensor, or of all tensors in a sequence.

    None if the tensors' shapes differ, or if there is no tensor.
    """
    if not isinstance(value, tuple):
        return None if value is None else tuple(value.shape)
    dims = {tuple(tensor.shape) for tensor in value}
    return dims.pop() if len(dims) == 1 else None


def _is_fixed(dim: Any) -> bool:
    return isinstance(dim, int) and dim >= 0  # for the runtime, 0 is fixed too


def _fit(slot: _Slot, dims: Dims, sizes: dict[str, tuple[int, str]]) -> None:
    """Check a shape against the declared one, and add its named dimensions to ``sizes``.

    Args:
        slot: Input as declared.
        dims: Given shape.
        sizes: Size of each named dimension, and the input that set it.

    Raises:
        ModelError: INVALID_INPUT if the shape does not fit.
    """
    if not slot.dims:
        return  # a scalar or any rank: the runtime reports both in the same way
    given = f"input {_quoted(slot.name)}: the model takes {_dims(slot.dims)}, given {_dims(dims)}"
    if len(slot.dims) != len(dims):
        raise _refused(f"{given}, of {counted(len(dims), 'dimension')} instead of {len(slot.dims)}")
    for declared, size in zip(slot.dims, dims, strict=True):
        if _is_fixed(declared):
            if declared != size:
                raise _refused(given)
        elif isinstance(declared, str):
            # The runtime accepts different sizes for dimensions of the same name.
            sizes.setdefault(declared, (size, slot.name))


def _read(path: Path, slots: Mapping[str, _Slot]) -> dict[str, Value]:
    """Read the given values; every header is checked before its array is read."""
    values: dict[str, Value] = {}
    try:
        for name, is_proto, size_bytes, file in _members(path):
            slot = _known(name, slots, "a value")
            if name in values:
                raise _refused(f"the file with inputs has two values {_quoted(name)}")
            read = _from_proto if is_proto else _from_npy
            values[name] = read(slot, size_bytes, file)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types of errors
        raise _refused(
            f"the inputs are neither an .npz of numpy.savez nor a zip of ONNX values: {error}"
        ) from error
    return values


def _members(path: Path) -> Iterator[tuple[str, bool, int, Any]]:
    """Yield name, whether it is a proto, size in bytes, and open file of every value."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, dot, suffix = entry.filename.rpartition(".")
            is_proto = suffix == "pb"
            with archive.open(entry) as file:
                named = name if dot and suffix in ("npy", "pb") else entry.filename
                yield named, is_proto, entry.file_size, file


def _from_proto(slot: _Slot, size_bytes: int, file: Any) -> Value:
    _check_memory({slot.name: _PROTO_COPIES * size_bytes}, {}, given=True)
    try:
        value = onnx_values.decode(file.read(), slot.kind)
    except ValueError as error:
        raise _refused(f"input {_quoted(slot.name)}: {_short(error)}") from error
    if isinstance(value, np.ndarray):  # tensors in a sequence may have any shape
        _fit(slot, value.shape, {})
    return value


def _from_npy(slot: _Slot, size_bytes: int, file: Any) -> NDArray[Any]:
    shape, dtype = _header(file)
    _check_type(slot, dtype)
    _fit(slot, shape, {})
    _check_memory({slot.name: math.prod(shape) * dtype.itemsize}, {slot.name: shape}, given=True)
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    array = np.ascontiguousarray(array, np.object_ if dtype.kind == "U" else slot.dtype)
    return array.reshape(shape)  # ascontiguousarray adds a dimension to a scalar


def _header(file: Any) -> tuple[Dims, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"arrays of version {version[0]} have a type that no model accepts")
    if any(dim < 0 for dim in shape):
        raise ValueError("a negative dimension")
    return shape, dtype


def _check_type(slot: _Slot, dtype: np.dtype[Any]) -> None:
    element = slot.kind.element
    if slot.kind.is_sequence or not element.in_numpy:
        raise _refused(
            f"input {_quoted(slot.name)} is {slot.type_name}, which an .npz cannot hold: give it "
            "as an ONNX value, or leave it out"
        )
    fits = dtype.kind == "U" if element.name == "string" else dtype == slot.dtype
    if not fits:
        raise _refused(
            f"input {_quoted(slot.name)}: the model takes {slot.type_name}, given {_short(dtype)}"
        )


def _check_memory(sizes: Mapping[str, int], shapes: Mapping[str, Dims], given: bool) -> None:
    """Check the size of inputs before they are allocated, because systems overcommit memory.

    Raises:
        ModelError: INVALID_INPUT or, if nothing was given, OUT_OF_MEMORY.
    """
    total, most = sum(sizes.values()), memory_bytes()
    if total <= most:
        return
    name = max(sizes, key=sizes.__getitem__)
    text = (
        f"the inputs need {total / 1e9:.1f} GB, more than this device's memory of "
        f"{most / 1e9:.1f} GB; the largest is {_quoted(name)}"
    )
    if name in shapes:
        text += f" {_dims(shapes[name])}"
    raise ModelError(FailureKind.INVALID_INPUT if given else FailureKind.OUT_OF_MEMORY, text)


def _bytes(slot: _Slot, dims: Dims) -> int:
    each = _STRING_BYTES if slot.kind.element.name == "string" else slot.dtype.itemsize
    return math.prod(dims) * each * (_DRAWN_TENSORS if slot.kind.is_sequence else 1)


def _values(slot: _Slot, dims: Dims, rng: np.random.Generator) -> NDArray[Any]:
    element = slot.kind.element
    if element.name == "string":
        words = np.array(_WORDS, dtype=np.object_)
        return np.asarray(words[rng.integers(0, len(words), dims)], dtype=np.object_)
    if element.name == "bfloat16":  # the upper half of a float32
        floats = np.asarray(rng.standard_normal(dims, dtype=np.float32))
        return np.asarray(floats.view(np.uint32) >> 16, dtype=np.uint16)
    if element.name in _EIGHTHS:
        return _small_floats(element, dims, rng)
    if slot.dtype == np.float32:
        return np.asarray(rng.standard_normal(dims, dtype=np.float32))
    if slot.dtype.kind == "f":
        return np.asarray(rng.standard_normal(dims), dtype=slot.dtype)
    if slot.dtype.kind == "c":
        parts = rng.standard_normal((2, *dims))
        return np.asarray(parts[0] + 1j * parts[1], dtype=slot.dtype)
    return np.asarray(rng.integers(0, 2, dims, dtype=slot.dtype.type))


def _small_floats(element: Element, dims: Dims, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the bits of numbers between 0.5 and 2, of both signs if the type has them."""
    mantissa, one = _EIGHTHS[element.name]
    bits = rng.integers(one - 1 << mantissa, one + 1 << mantissa, dims)
    if element.name != "float8e8m0":
        bits = bits | rng.integers(0, 2, dims) << element.bits - 1
    return np.asarray(bits, dtype=np.uint8)


def _known(name: str, slots: Mapping[str, _Slot], what: str) -> _Slot:
    if name not in slots:
        takes = f"the model takes {_listed(list(slots), _quoted) or 'none'}"
        refused = unknown("input", _short(name), map(_short, slots), choices=takes)
        raise _refused(f"{what} is given for an {refused}")
    return slots[name]


def _refused(text: str) -> ModelError:
    return ModelError(FailureKind.INVALID_INPUT, text[:1000])


def _dims(dims: tuple[Any, ...]) -> str:
    """Return a shape as text such as ``1x3xheight``, with ``?`` for a dimension without name."""
    return "x".join(_short("?" if d in (None, "") else d) for d in dims[:_SHOWN]) or "a scalar"


def _short(text: object) -> str:
    return str(text)[:_LONGEST]


def _quoted(name: object) -> str:
    return f"'{_short(name)}'"


def _listed(names: Sequence[object], show: Callable[[object], str] = _short) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(show, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
