"""The feed of a model: values that came with it, shapes that were given, the rest drawn.

A free dimension takes the size that its name has elsewhere, or else 1.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import Element, ValueType, runtime_type, tensor_type

_WORDS = ("a", "an", "edge", "model", "of", "the", "to", "words")
_SHOWN = 8
_LONGEST = 100
_STRING_BYTES = 64
"""That a word takes, at least: a Python object and a pointer to it."""
_DRAWN_TENSORS = 2
"""In a sequence that is drawn."""
_SEQUENCE_DIMS = (1,)
"""Of each of them, where the model declares none."""
_PROTO_COPIES = 4
"""How much more than its file a proto may take here: it is read, parsed and converted."""
_EIGHTHS = {
    "float8e4m3fn": (3, 7),
    "float8e4m3fnuz": (3, 8),
    "float8e5m2": (2, 15),
    "float8e5m2fnuz": (2, 16),
    "float8e8m0": (0, 127),
    "float4e2m1": (1, 1),
}
"""Bits of the mantissa, and the exponent of 1, of small floats."""

_FEW = 64
"""Floats are scales, ratios or limits only where there are no more; more of them are data."""
_PLAIN = Case()

Dims = tuple[int, ...]


class _Slot(NamedTuple):
    """An input as the model declares it."""

    name: str
    type: str
    dims: tuple[Any, ...]
    """Integers where fixed, names or None where free; empty also where the rank is not told."""

    @property
    def kind(self) -> ValueType:
        found = runtime_type(self.type)
        if found is None:
            raise ModelError(
                FailureKind.UNSUPPORTED_OP,
                f"input {_short(self.name)} is of type {_short(self.type)}; this agent feeds "
                "tensors, sequences of tensors and optional ones",
            )
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its array; of types that numpy lacks, of their bits."""
        return np.dtype(self.kind.element.storage)

    @property
    def type_name(self) -> str:
        """As :class:`esm_protos.messages.Input` has it."""
        return str(self.kind)


@dataclass(frozen=True)
class Feed:
    """What a model is fed.

    Attributes:
        arrays: by name, one for a tensor, a tuple for a sequence, None for an absent optional
            value; of types that numpy lacks, the bits.
        inputs: what they are.
        types: by name.
        given: whether shapes or arrays came with the model.
        free: names of inputs with dimensions that nobody gave, taken as 1.
        drawn: names of inputs whose values were drawn.
    """

    arrays: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    types: Mapping[str, ValueType] = field(default_factory=dict)
    given: bool = False
    free: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()

    def blamed(self, failure: Failure) -> Failure:
        """Return a failure of the first run with what was fed, where that may be the reason.

        The runtime took the model, so that it is the inputs that do not fit.
        """
        if failure.kind is not FailureKind.INVALID_MODEL or not self.inputs:
            return failure
        fed = [f"{_short(i.name)} {i.type} {_dims(i.dims)}" for i in self.inputs]
        text = f"{failure.message}; fed {_listed(fed)}"
        if self.free:
            text += f"; free dimensions of {_listed(self.free)} were taken as 1: --shape sets them"
        if self.drawn:
            text += f"; values of {_listed(self.drawn)} were drawn: --input gives others"
        return Failure(FailureKind.INVALID_INPUT, text)


def draw(
    session: Any,
    seed: int,
    case: Case = _PLAIN,
    given: Path | None = None,
    path: Path | None = None,
) -> Feed:
    """Return what a session is fed.

    Drawn floats are standard normal; whole numbers 0 or 1, valid indices, tokens and flags almost
    everywhere; strings short words. Where the model's graph asks for others, as a shape or a
    divisor, :mod:`~.constraints` gives them. A drawn sequence has two tensors, an optional value
    is there.

    Args:
        session: of the runtime; asked for the inputs that it takes.
        given: a zip of values by their inputs' names, ``NAME.npy`` as in an ``.npz``, or
            ``NAME.pb`` of an ONNX TensorProto, SequenceProto or OptionalProto. What it lacks is
            drawn; inputs that are initializers too keep their value.
        path: of the model, which declares what the runtime does not tell: the dimensions of
            tensors in sequences, and what its nodes ask of their inputs. Without it those tensors
            are vectors of one element, and any values are drawn.

    Raises:
        ModelError: UNSUPPORTED_OP for an input of another kind, INVALID_INPUT where the shapes
            or values that were given do not fit, OUT_OF_MEMORY where the inputs do not.
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
                f"input {_short(name)} came with shape {_dims(dims)} and is to have "
                f"{_dims(shapes[name])}: leave one of them out"
            )
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        _fit(slots[name], dims, sizes)
    free = []
    for slot in slots.values():
        if slot.name not in shapes and slot.name not in arrays:
            unknown = [d for d in slot.dims if not _is_fixed(d) and d not in sizes]
            if unknown or (slot.kind.is_sequence and not slot.dims):
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
                if facts is not None:  # by numbers of their own, so that all others stay
                    own = np.random.default_rng((seed, position))
                    fitting = constraints.fitting(facts, slot.name, dims, slot.dtype, own)
                    arrays[slot.name] = arrays[slot.name] if fitting is None else fitting
        except ValueError as error:  # numpy's limit of dimensions
            raise _refused(f"input {_short(slot.name)}: {error}") from error
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
    assert slot.kind  # or it is refused
    return slot


def _facts(
    path: Path | None, drawn: Sequence[_Slot], shapes: Mapping[str, Dims]
) -> constraints.Facts | None:
    """Return what the graph asks of its inputs; None where it asks nothing of such inputs."""
    asked = (slot.dtype.kind not in "fc" or math.prod(shapes[slot.name]) <= _FEW for slot in drawn)
    if path is None or not any(asked):
        return None
    return constraints.read(path, {s.name: shapes[s.name] for s in drawn if not s.kind.is_sequence})


def _declared(path: Path, slots: Mapping[str, _Slot]) -> dict[str, _Slot]:
    """Sequences with the dimensions that the model declares of their tensors."""
    model = view.Model()
    with mapped(path) as data:
        model.MergeFromString(data)
    found = {}
    for given in model.graph.input:
        if given.name in slots and slots[given.name].kind.is_sequence:
            shape = tensor_type(given.type).shape
            dims = (d.dim_value if d.dim_value > 0 else d.dim_param or None for d in shape.dim)
            found[given.name] = slots[given.name]._replace(dims=tuple(dims))
    return found


def _dims_of(value: Value) -> Dims | None:
    """Dimensions of a tensor, or of every tensor in a sequence; None if those differ or are
    none."""
    if not isinstance(value, tuple):
        return None if value is None else tuple(value.shape)
    dims = {tuple(tensor.shape) for tensor in value}
    return dims.pop() if len(dims) == 1 else None


def _is_fixed(dim: Any) -> bool:
    return isinstance(dim, int) and dim >= 0  # the runtime insists on 0 too


def _fit(slot: _Slot, dims: Dims, sizes: dict[str, tuple[int, str]]) -> None:
    """Refuses dimensions that the model does not take; adds to ``sizes`` what they make of its
    named ones: how much, and by which input."""
    if not slot.dims:
        return  # a scalar or of any rank, the runtime's words are the same
    given = f"input {_short(slot.name)}: the model takes {_dims(slot.dims)}, given {_dims(dims)}"
    if len(slot.dims) != len(dims):
        raise _refused(f"{given}, of {len(dims)} dimensions instead of {len(slot.dims)}")
    for declared, size in zip(slot.dims, dims, strict=True):
        if _is_fixed(declared):
            if declared != size:
                raise _refused(given)
        elif isinstance(declared, str):
            # Dimensions of one name may differ: the runtime does not hold them together.
            sizes.setdefault(declared, (size, slot.name))


def _read(path: Path, slots: Mapping[str, _Slot]) -> dict[str, Value]:
    """The values that came; every header is checked before its array is read."""
    values: dict[str, Value] = {}
    try:
        for name, is_proto, size_bytes, file in _members(path):
            slot = _known(name, slots, "a value")
            if name in values:
                raise _refused(f"the file with inputs has two values {_short(name)}")
            read = _from_proto if is_proto else _from_npy
            values[name] = read(slot, size_bytes, file)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy have many ways to say it
        raise _refused(
            f"the inputs are no .npz that numpy.savez wrote, nor a zip of ONNX values: {error}"
        ) from error
    return values


def _members(path: Path) -> Iterator[tuple[str, bool, int, Any]]:
    """Name, whether it is a proto, bytes, and an open file, of every value."""
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
        raise _refused(f"input {_short(slot.name)}: {_short(error)}") from error
    if isinstance(value, np.ndarray):  # tensors in a sequence may be of any shape
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
    return array.reshape(shape)  # of a scalar it makes one dimension


def _header(file: Any) -> tuple[Dims, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"arrays of version {version[0]} are of no type that models take")
    if any(dim < 0 for dim in shape):
        raise ValueError("a negative dimension")
    return shape, dtype


def _check_type(slot: _Slot, dtype: np.dtype[Any]) -> None:
    element = slot.kind.element
    if slot.kind.is_sequence or not element.in_numpy:
        raise _refused(
            f"input {_short(slot.name)} is {slot.type_name}, which no .npz has: give it as an "
            "ONNX value, or leave it out"
        )
    fits = dtype.kind == "U" if element.name == "string" else dtype == slot.dtype
    if not fits:
        raise _refused(
            f"input {_short(slot.name)}: the model takes {slot.type_name}, given {_short(dtype)}"
        )


def _check_memory(sizes: Mapping[str, int], shapes: Mapping[str, Dims], given: bool) -> None:
    """Before anything is allocated, since a system may promise more memory than it has."""
    total, most = sum(sizes.values()), memory_bytes()
    if total <= most:
        return
    name = max(sizes, key=sizes.__getitem__)
    text = (
        f"the inputs take {total / 1e9:.1f} GB, more than this device's memory of "
        f"{most / 1e9:.1f} GB; the largest is {_short(name)}"
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
    """Bits of numbers between 0.5 and 2, of either sign where the type has one."""
    mantissa, one = _EIGHTHS[element.name]
    bits = rng.integers(one - 1 << mantissa, one + 1 << mantissa, dims)
    if element.name != "float8e8m0":
        bits = bits | rng.integers(0, 2, dims) << element.bits - 1
    return np.asarray(bits, dtype=np.uint8)


def _known(name: str, slots: Mapping[str, _Slot], what: str) -> _Slot:
    if name not in slots:
        raise _refused(
            f"{what} is given for input {_short(name)}, which the model does not have; it has "
            f"{_listed(list(slots)) or 'none'}"
        )
    return slots[name]


def _refused(text: str) -> ModelError:
    return ModelError(FailureKind.INVALID_INPUT, text[:1000])


def _dims(dims: tuple[Any, ...]) -> str:
    """``1x3xheight``, ``?`` where a dimension has no name."""
    return "x".join(_short("?" if d in (None, "") else d) for d in dims[:_SHOWN]) or "a scalar"


def _listed(names: Any) -> str:
    more = len(names) - _SHOWN
    return ", ".join(_short(n) for n in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _short(text: object) -> str:
    return str(text)[:_LONGEST]
