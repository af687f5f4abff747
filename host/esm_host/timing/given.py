"""Input values from files: arrays of an ``.npz``, or ONNX values in ``.pb`` files.

The device gets one zip per model, with a file for each input: ``NAME.npy`` as in an ``.npz``, or
``NAME.pb`` of a TensorProto, SequenceProto or OptionalProto.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from google.protobuf.message import DecodeError

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.timing.inputs import Array, Dims, GraphInput, unknown_input
from esm_host.timing.model_file import hashed
from esm_host.timing.other_formats import HEAD_BYTES, stands_in
from esm_protos.messages import File
from esm_protos.v1 import onnx_values_pb2 as pb
from esm_protos.value_types import BY_NUMBER

_PROTOS = {"tensor": pb.Tensor, "sequence": pb.Sequence, "optional": pb.Optional}
_NUMBERED = re.compile(r"input_(\d+)", re.ASCII)
_NPZ = "np.savez(path, name=array) makes one"
FROM_MEMORY = "values-from-memory.npz"
"""Name of the file of values that were given in memory."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of all files in a zip, so that equal values make equal zips, which are sent once."""


_UNREADABLE = (
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # encrypted, or compressed by an unsupported method
)


class _Head(NamedTuple):
    """Name of a proto, and the types (numbers) and dimensions of its tensors."""

    name: str
    tensors: tuple[tuple[int, Dims], ...]


@dataclass(frozen=True, eq=False)
class _Source:
    """Value in a file.

    Attributes:
        path: File of the value.
        member: Name within a zip; None if the file is the value.
        name: Name of the input; None if the position or the value itself gives it.
        position: Index of the input; None if the file's name has none.
        array: Type and dimensions of an ``.npy``; None for an ONNX value.
    """

    path: Path
    member: str | None = None
    name: str | None = None
    position: int | None = None
    array: Array | None = None
    _heads: dict[str, _Head | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return _label(self.path) + ("" if self.member is None else f": '{self.name}'")

    def copy_to(self, target: IO[bytes]) -> None:
        if self.member is None:
            with self.path.open("rb") as file:
                shutil.copyfileobj(file, target)
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                shutil.copyfileobj(file, target)

    def head(self, proto: str) -> _Head | None:
        """Return the head of the file read as a proto of that kind; None if it is not one."""
        if proto not in self._heads:
            self._heads[proto] = _head(self.data(), proto)
        return self._heads[proto]

    def calls_itself(self, known: GraphInput) -> bool:
        """Return whether the value has the name of this input."""
        head = self.head(_proto(known.type))
        return head is not None and head.name == known.name

    def data(self) -> bytes:
        if self.member is None:
            return self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self.member)


class Given:
    """Values from files, for the inputs of one or several models.

    Args:
        paths: Zips (``.npz``), files of ONNX values, or folders of such files.
        folder: Folder for the zips that are sent.
        models: Inputs by the model's path, in the graph's order; inputs that are initializers too
            come last.

    Raises:
        UsageError: a file cannot be read or holds no values, a value belongs to no input or has
            the wrong type, or two values belong to one input.
    """

    def __init__(
        self, paths: Sequence[Path], folder: Path, models: Mapping[str, Sequence[GraphInput]]
    ) -> None:
        self._folder = folder
        self._sources = [source for path in paths for source in _sources(path)]
        self._all = [known for inputs in models.values() for known in inputs]
        self._files: dict[tuple[tuple[str, _Source], ...], File] = {}
        used: set[_Source] = set()
        self._given: dict[str, tuple[File | None, dict[str, Array | None]]] = {}
        for path, inputs in models.items():
            chosen = self._chosen(path, inputs)
            used.update(chosen.values())
            types = {known.name: known for known in inputs}
            arrays = {name: _checked(source, path, types[name]) for name, source in chosen.items()}
            self._given[path] = self._packed(chosen), arrays
        unused = [source for source in self._sources if source not in used]
        if models and unused:  # the device refuses files that are not ONNX
            raise _of_no_input(unused[0], list(dict.fromkeys(known.name for known in self._all)))

    def of(self, path: str) -> tuple[File | None, dict[str, Array | None]]:
        """Return the file of a model's values, and the type and dimensions of each by input.

        Values without dimensions of their own are None: sequences of several, absent values.
        """
        return self._given.get(path, (None, {}))

    def _chosen(self, path: str, inputs: Sequence[GraphInput]) -> dict[str, _Source]:
        chosen: dict[str, _Source] = {}
        for source in self._sources:
            name = _meant(source, inputs, self._all)
            if name is not None and name in chosen:
                raise UsageError(f"{source}: {path}: '{name}' is given twice, by {chosen[name]}")
            if name is not None:
                chosen[name] = source
        return chosen

    def _packed(self, chosen: Mapping[str, _Source]) -> File | None:
        if not chosen:
            return None
        key = tuple(chosen.items())
        if key not in self._files:
            (path, *others) = {source.path for source in chosen.values()}
            whole = [source for source in self._sources if source.path == path]
            as_is = not others and whole == list(chosen.values()) and whole[0].member is not None
            self._files[key] = hashed(path if as_is else self._zip(chosen))
        return self._files[key]

    def _zip(self, chosen: Mapping[str, _Source]) -> Path:
        path = self._folder / f"inputs-{len(self._files)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, source in chosen.items():
                entry = zipfile.ZipInfo(f"{name}.{'pb' if source.array is None else 'npy'}", _EPOCH)
                with archive.open(entry, "w", force_zip64=True) as target:
                    source.copy_to(target)
        return path


def _label(path: Path) -> str:
    """Return the name of a file of values in messages."""
    named = argument("inputs")
    return named if path.name == FROM_MEMORY else f"{named} {path}"


def _sources(path: Path) -> list[_Source]:
    try:
        if path.is_dir():
            files = [p for p in path.glob("*.pb") if not p.name.startswith("output_")]
            if not files:
                raise UsageError(f"{_label(path)} has no values of inputs: give a folder of *.pb")
            return [_file(each) for each in sorted(files, key=_order)]
        if not zipfile.is_zipfile(path) and path.suffix == ".pb":
            return [_file(path)]
        return _members(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        with path.open("rb") as file:
            instead = stands_in(str(path), file.read(HEAD_BYTES))
        raise UsageError(
            f"{_label(path)} is {instead}"
            if instead
            else f"{_label(path)} is neither an .npz of arrays nor a .pb of an ONNX value: {_NPZ}"
        ) from error


def _file(path: Path) -> _Source:
    with path.open("rb"):
        pass  # fails early if the file cannot be read
    numbered = _NUMBERED.fullmatch(path.stem)
    return _Source(path, position=int(numbered[1]) if numbered else None)


def _order(path: Path) -> tuple[int, str]:
    numbered = _NUMBERED.fullmatch(path.stem)
    return (int(numbered[1]) if numbered else -1, path.name)


def _members(path: Path) -> list[_Source]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".pb"):
                found.append(_Source(path, member, member.removesuffix(".pb")))
                continue
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                array = _header(path, name, file)
            found.append(_Source(path, member, name, array=array))
    if not found:
        raise UsageError(f"{_label(path)} has no arrays: {_NPZ}")
    return found


def _header(path: Path, name: str, file: Any) -> Array:
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    dims, _, dtype = readers[npy.read_magic(file)](file)
    if dtype.hasobject:
        raise UsageError(
            f"{_label(path)}: '{name}' holds pickled objects: save numbers or text, "
            "np.savez(path, name=array)"
        )
    kind = "string" if dtype.kind in "SU" else dtype.newbyteorder("=").name
    return Array(kind, tuple(dims))


def _meant(
    source: _Source, inputs: Sequence[GraphInput], everywhere: Iterable[GraphInput]
) -> str | None:
    """Return the input of a model that a value belongs to; None if the model has no such input.

    The value's own name decides, if some model has such an input; then its position, then its
    file's name.
    """
    name, names = source.name, [known.name for known in inputs]
    if name is None:
        name = next((k.name for k in everywhere if source.calls_itself(k)), None)
    if name is None and source.position is not None:
        name = dict(enumerate(names)).get(source.position)
    elif name is None:
        name = source.path.stem
    return name if name in names else None


def _of_no_input(source: _Source, names: Sequence[str]) -> UsageError:
    if source.name is not None:
        return UsageError(f"{argument('inputs')}: {unknown_input(source.name, names)}")
    return UsageError(
        f"{source} matches no input ({', '.join(names) or 'there are none'}): name it input_0.pb "
        "by the input's position, or INPUT.pb"
    )


def _head(data: bytes, proto: str) -> _Head | None:
    value: Any = _PROTOS[proto]()
    try:
        value.ParseFromString(data)
    except DecodeError:
        return None
    name = value.name
    tensors = [value] if isinstance(value, pb.Tensor) else []
    if isinstance(value, pb.Optional):
        tensors = [value.tensor_value] if value.HasField("tensor_value") else []
        value = value.sequence_value
    if isinstance(value, pb.Sequence):
        tensors += value.tensor_values
    return _Head(name, tuple((each.data_type, tuple(each.dims)) for each in tensors))


def _proto(kind: str | None) -> str:
    """Return the kind of proto that holds a value of this type."""
    outer = (kind or "").partition("(")[0]
    return {"optional": "optional", "seq": "sequence"}.get(outer, "tensor")


def _checked(source: _Source, path: str, known: GraphInput) -> Array | None:
    """Return the type and dimensions of a value; None if it has no or several dimensions.

    Raises:
        UsageError: the input has another type.
    """
    if source.array is None:
        return _checked_proto(source, path, known)
    wanted, array = known.type, source.array
    if wanted not in (array.type, f"optional({array.type})"):
        cure = "convert it" if wanted in _OF_NUMPY else "give it as an ONNX value in a .pb"
        raise UsageError(
            f"{argument('inputs')}: {path}: '{known.name}' is "
            f"{wanted or 'of a type that is not fed'} and the array is {array.type}: {cure}, or "
            "leave it out to have it drawn"
        )
    return array


_OF_NUMPY = {element.name for element in BY_NUMBER.values() if element.in_numpy}


def _checked_proto(source: _Source, path: str, known: GraphInput) -> Array | None:
    head = source.head(_proto(known.type))
    if head is None:
        raise UsageError(
            f"{source} is not an ONNX value of type {known.type}, the type of '{known.name}' of "
            f"{path}: save it by onnx.save_tensor, or give an .npz"
        )
    element = (known.type or "").rstrip(")").rpartition("(")[2]
    for number, _ in head.tensors:
        given = BY_NUMBER.get(number)
        if given is None or given.name != element:
            raise UsageError(
                f"{source}: {path}: '{known.name}' is {known.type or 'of a type that is not fed'} "
                f"and the tensor is {given.name if given else f'of type {number}'}: "
                "convert it, or leave it out to have it drawn"
            )
    dims = {dims for _, dims in head.tensors}
    return Array(known.type or "", dims.pop()) if len(dims) == 1 else None
