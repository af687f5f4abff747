"""Safe reader of pickles and torch files that hold only numbers and text.

Unpickling calls any function that a file names. This reader allows only those in
:data:`_STAND_INS`. Even numpy's own functions are excluded: from forged bytes they would make
arrays of objects, which are pointers into memory.
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
"""Magic number of files that torch wrote before version 1.6."""


class PlainPickleError(ValueError):
    """File that is damaged, or holds more than numbers and text."""


def load_pickle(path: Path) -> Any:
    """Return the content of a pickle: numbers, text, lists, dictionaries and numeric arrays.

    Raises:
        FileNotFoundError: the file does not exist.
        PlainPickleError: the file is damaged, or holds something else.
    """
    with path.open("rb") as file:
        return _load(file)


def load_torch(path: Path) -> Any:
    """Return the content of a file of ``torch.save``, of any version, without tensors.

    Raises:
        FileNotFoundError: the file does not exist.
        PlainPickleError: the file is damaged, or holds something else.
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
                raise PlainPickleError("it is not a file of torch")
            with archive.open(inside[0]) as file:
                return _load(file)
    except (
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:  # encrypted, of unknown compression, or damaged
        raise PlainPickleError(str(error)) from error


def _load(file: IO[bytes]) -> Any:
    try:
        return _Unpickler(file).load()
    except Exception as error:  # a damaged pickle may raise any type
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PlainPickleError(text) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch"):
            raise pickle.UnpicklingError("it holds tensors: save lists of numbers")
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it needs {module}.{name}")
        return _STAND_INS[module, name]


class _DType:
    """Numeric data type."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>=|]?([iuf][1248]|b1)", code):
            raise ValueError(f"it holds arrays of '{code}'")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """Array that is built from a pickle's state; never returned, because it can hold objects."""

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
        raise ValueError("the size of an array differs from that of its data")
    return np.frombuffer(data, dtype.numpy).reshape(sides, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _array(data, dtype, ())[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it needs the encoding {encoding!r}")
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
