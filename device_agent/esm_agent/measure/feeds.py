"""What a model is fed: arrays that came with it, shapes that were given, the rest drawn.

Every input is a tensor; a free dimension takes the size that its name has elsewhere, or else 1.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from esm_agent.device.facts import memory_bytes
from esm_agent.measure.outcomes import ModelError
from esm_protos.messages import Case, Failure, FailureKind, Input

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
_BFLOAT16 = "tensor(bfloat16)"
"""Numpy has none: drawn as its 16 bits, and fed as a value of the runtime's own."""
_WORDS = ("a", "an", "edge", "model", "of", "the", "to", "words")
_SHOWN = 8
_LONGEST = 100
_STRING_BYTES = 64
"""That a word takes, at least: a Python object and a pointer to it."""

_PLAIN = Case()

Dims = tuple[int, ...]


class _Slot(NamedTuple):
    """An input as the model declares it."""

    name: str
    type: str
    dims: tuple[Any, ...]
    """Integers where fixed, names or None where free; empty also where the rank is not told."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.type == _BFLOAT16 else _TYPES[self.type])

    @property
    def type_name(self) -> str:
        """As :class:`esm_protos.messages.Input` has it."""
        return {_BFLOAT16: "bfloat16", "tensor(string)": "string"}.get(self.type, str(self.dtype))


@dataclass(frozen=True)
class Feed:
    """What a model is fed.

    Attributes:
        arrays: by name, as numpy has them; bfloat16 as ``uint16``.
        inputs: what they are.
        given: whether shapes or arrays came with the model.
        free: names of inputs with dimensions that nobody gave, taken as 1.
    """

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    given: bool = False
    free: tuple[str, ...] = ()

    def blamed(self, failure: Failure) -> Failure:
        """A failure of the first run, where what was fed may be the reason."""
        if failure.kind is not FailureKind.INVALID_MODEL:
            return failure
        text = failure.message
        if self.given:
            fed = [f"{_short(i.name)} {i.type} {_dims(i.dims)}" for i in self.inputs]
            text += f"; fed {_listed(fed)}"
        if self.free:
            text += f"; free dimensions of {_listed(self.free)} were taken as 1: --shape sets them"
        return Failure(FailureKind.INVALID_INPUT if self.given else failure.kind, text)


def draw(session: Any, seed: int, case: Case = _PLAIN, given: Path | None = None) -> Feed:
    """What a session is fed.

    Drawn floats are standard normal; whole numbers 0 or 1, valid indices, tokens and flags almost
    everywhere; strings short words.

    Args:
        session: of the runtime; asked for the inputs that it takes.
        given: an ``.npz``; what it lacks is drawn.

    Raises:
        ModelError: UNSUPPORTED_OP for an input that is no tensor, INVALID_INPUT where the shapes
            or arrays that were given do not fit, OUT_OF_MEMORY where the inputs do not.
    """
    slots = {slot.name: slot for slot in map(_slot, session.get_inputs())}
    shapes = dict(case.shapes)
    for name in shapes:
        _known(name, slots, "a shape")
    arrays = {} if given is None else _read(given, slots)
    for name, array in arrays.items():
        if shapes.setdefault(name, array.shape) != array.shape:
            raise _refused(
                f"input {_short(name)} came with shape {_dims(array.shape)} and is to have "
                f"{_dims(shapes[name])}: leave one of them out"
            )
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        _fit(slots[name], dims, sizes)
    free = []
    for slot in slots.values():
        if slot.name not in shapes:
            unknown = [d for d in slot.dims if not _is_fixed(d) and d not in sizes]
            if unknown:
                free.append(slot.name)
            shapes[slot.name] = tuple(
                d if _is_fixed(d) else sizes.get(d, (1, ""))[0] for d in slot.dims
            )
    drawn = [slot for slot in slots.values() if slot.name not in arrays]
    chosen = bool(case.shapes) or given is not None
    _check_memory({slot.name: _bytes(slot, shapes[slot.name]) for slot in drawn}, shapes, chosen)
    rng = np.random.default_rng(seed)
    for slot in drawn:
        try:
            arrays[slot.name] = _values(slot, shapes[slot.name], rng)
        except ValueError as error:  # numpy's limit of dimensions
            raise _refused(f"input {_short(slot.name)}: {error}") from error
    return Feed(
        {name: arrays[name] for name in slots},
        tuple(Input(s.name, s.type_name, tuple(arrays[s.name].shape)) for s in slots.values()),
        chosen,
        tuple(free),
    )


def _slot(node: Any) -> _Slot:
    slot = _Slot(node.name, node.type, tuple(node.shape))
    if slot.type not in _TYPES and slot.type != _BFLOAT16:
        raise ModelError(
            FailureKind.UNSUPPORTED_OP,
            f"input {_short(slot.name)} is of type {_short(slot.type)}; this agent feeds tensors "
            "of numbers, truth values and strings",
        )
    return slot


def _is_fixed(dim: Any) -> bool:
    return isinstance(dim, int) and dim >= 0


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


def _read(path: Path, slots: Mapping[str, _Slot]) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz``; every header is checked before its array is read."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for name, file in _members(path):
            slot = _known(name, slots, "an array")
            if name in arrays:
                raise _refused(f"the .npz with inputs has two arrays {_short(name)}")
            shape, dtype = _header(file)
            _check_type(slot, dtype)
            _fit(slot, shape, {})
            _check_memory({name: math.prod(shape) * dtype.itemsize}, {name: shape}, given=True)
            file.seek(0)
            array = npy.read_array(file, allow_pickle=False)
            arrays[name] = np.ascontiguousarray(array, np.object_ if dtype.kind == "U" else None)
            # Which makes one dimension of a scalar.
            arrays[name] = arrays[name].reshape(shape)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy have many ways to say it
        raise _refused(f"the inputs are no .npz that numpy.savez wrote: {error}") from error
    return arrays


def _members(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                yield entry.filename.removesuffix(".npy"), file


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
    if slot.type == _BFLOAT16:
        raise _refused(f"input {_short(slot.name)} is bfloat16, which no .npz has: leave it out")
    fits = dtype.kind == "U" if slot.type == "tensor(string)" else dtype == slot.dtype
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
        f"{most / 1e9:.1f} GB; the largest is {_short(name)} {_dims(shapes[name])}"
    )
    raise ModelError(FailureKind.INVALID_INPUT if given else FailureKind.OUT_OF_MEMORY, text)


def _bytes(slot: _Slot, dims: Dims) -> int:
    each = _STRING_BYTES if slot.type == "tensor(string)" else slot.dtype.itemsize
    return math.prod(dims) * each


def _values(slot: _Slot, dims: Dims, rng: np.random.Generator) -> NDArray[Any]:
    if slot.type == "tensor(string)":
        words = np.array(_WORDS, dtype=np.object_)
        return np.asarray(words[rng.integers(0, len(words), dims)], dtype=np.object_)
    if slot.type == _BFLOAT16:  # the upper half of a float32
        floats = np.asarray(rng.standard_normal(dims, dtype=np.float32))
        return (floats.view(np.uint32) >> 16).astype(np.uint16)
    if slot.dtype == np.float32:
        return np.asarray(rng.standard_normal(dims, dtype=np.float32))
    if slot.dtype.kind == "f":
        return np.asarray(rng.standard_normal(dims), dtype=slot.dtype)
    return np.asarray(rng.integers(0, 2, dims, dtype=slot.dtype.type))


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
