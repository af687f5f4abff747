"""Pickles and files of torch's that hold numbers and text, read so that no code of theirs runs.

Unpickling calls whatever a file names. Here it names what is in :data:`_STAND_INS` or is refused.
Not even numpy's own functions are among them: numpy makes arrays of objects from any bytes, which
is memory that a file could forge.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES = 2**30
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""What files of torch's before version 1.6 begin with."""


class PlainPickleError(ValueError):
    """The file is damaged, or holds more than numbers and text."""


def load_pickle(path: Path) -> Any:
    """What a pickle holds: numbers, text, lists, dictionaries and arrays of numbers.

    Raises:
        FileNotFoundError: there is no such file.
        PlainPickleError: it is damaged, or holds something else.
    """
    with path.open("rb") as file:
        return _load(file)


def load_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, of any version: the same, and no tensors.

    Raises:
        FileNotFoundError: there is no such file.
        PlainPickleError: it is damaged, or holds something else.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            content = _load(file)
            if content == _TORCH_MAGIC:
                _load(file), _load(file)  # version and system
                content = _load(file)
            return content
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [each for each in archive.infolist() if each.filename.endswith("/data.pkl")]
            if len(inside) != 1 or inside[0].file_size > _MOST_BYTES:
                raise PlainPickleError("it is no file of torch's")
            with archive.open(inside[0]) as file:
                return _load(file)
    except (RuntimeError, zipfile.BadZipFile) as error:  # encrypted, oddly compressed, damaged
        raise PlainPickleError(str(error)) from error


def _load(file: IO[bytes]) -> Any:
    try:
        return _Unpickler(file).load()
    except Exception as error:  # a damaged pickle raises anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PlainPickleError(text) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch"):
            raise pickle.UnpicklingError("it holds tensors: save lists of numbers")
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


class _DType:
    """A type of numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>=|]?([iuf][1248]|b1)", code):
            raise ValueError(f"it holds arrays of '{code}'")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array whose numbers come after it. Never handed out itself: it makes arrays of objects."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        checked = _array(data, dtype, shape)
        given: Any = (1, checked.shape, checked.dtype, bool(fortran), bytes(data))
        super().__setstate__(given)


def _reconstruct(*_: Any) -> _Array:
    return _Array((0,))


def _array(data: Any, dtype: _DType, shape: Any, order: Any = "C") -> NDArray[Any]:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise ValueError("it holds an array of objects")
    sides = (shape,) if isinstance(shape, int) else tuple(shape)
    if math.prod(sides) * dtype.numpy.itemsize != len(data):
        raise ValueError("an array's size is not that of its data")
    return np.frombuffer(data, dtype.numpy).reshape(sides, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _array(data, dtype, ())[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_STAND_INS = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): None,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _array),
    )
}
