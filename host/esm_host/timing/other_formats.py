"""Formats of files that are not ONNX, by their first bytes, and their conversion to ONNX."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

HEAD_BYTES = 4096

_EXPORT = "export it with torch.onnx.export(model, args, 'model.onnx', dynamo=True)"
_TF2ONNX = "python -m tf2onnx.convert"
_TFLITE = f"convert it with {_TF2ONNX} --tflite {{path}} --output model.onnx"
_KERAS = (
    f"save it with model.export('saved') and convert that with {_TF2ONNX} --saved-model saved "
    "--output model.onnx"
)
_BUILT = "give the ONNX file that it was built from"
_CURES = {
    **dict.fromkeys((".pt", ".pth", ".torch", ".pt2", ".ckpt", ".safetensors"), _EXPORT),
    ".tflite": _TFLITE,
    ".pb": f"convert its folder with {_TF2ONNX} --saved-model {{folder}} --output model.onnx",
    **dict.fromkeys((".h5", ".keras"), _KERAS),
    **dict.fromkeys((".engine", ".plan", ".trt", ".ort"), _BUILT),
}

_PAGE = "a web page: the download failed, get the file itself"
_PACKED = "compressed with {0}: unpack it with {1} {{path}}"


def _starts(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(beginnings)


def _is_page(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<?xml"))


def _is_torch_archive(head: bytes) -> bool:
    """Return whether the first member of a zip is NAME/data.pkl or NAME/.format_version."""
    return head.startswith(b"PK\x03\x04") and (b"/data.pkl" in head or b"/.format_version" in head)


def _is_keras(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and b"metadata.json" in head[:60]


def _is_json(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith((b"{", b"[")) and text[1:].lstrip().startswith(
        (b'"', b"{", b"[", b"}", b"]")
    )


_Formats: TypeAlias = tuple[tuple[Callable[[bytes], bool], str], ...]

_IN_PLACE_OF_FILES: _Formats = (
    (
        _starts(b"version https://git-lfs"),
        "a Git LFS pointer: fetch the file with git lfs pull --include {path}",
    ),
    (_is_page, _PAGE),
    (_starts(b"\x1f\x8b"), _PACKED.format("gzip", "gunzip -k")),
    (_starts(b"\x28\xb5\x2f\xfd"), _PACKED.format("zstd", "unzstd")),
    (_starts(b"\xfd7zXZ\x00"), _PACKED.format("xz", "unxz -k")),
    (_starts(b"BZh"), _PACKED.format("bzip2", "bunzip2 -k")),
)
"""Placeholders and compressed forms of any file."""

_MODELS_AND_ARCHIVES: _Formats = (
    (_is_torch_archive, f"a PyTorch file: {_EXPORT}"),
    (_is_keras, f"a Keras file: {_KERAS}"),
    (_starts(b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"a Python pickle: {_EXPORT}"),
    (_starts(b"7z\xbc\xaf\x27\x1c"), _PACKED.format("7z", "7z x")),
    (_starts(b"PK\x03\x04", b"PK\x05\x06"), "a zip archive: unpack it with unzip {path}"),
    (lambda head: head[257:262] == b"ustar", "a tar archive: unpack it with tar -xf {path}"),
    (_starts(b"\x89HDF\r\n\x1a\n"), f"an HDF5 file, as Keras saves it: {_KERAS}"),
    (lambda head: head[4:8] == b"TFL3", f"a TensorFlow Lite file: {_TFLITE}"),
    (lambda head: head[4:8] == b"ORTM", f"an ONNX Runtime ORT file: {_BUILT}"),
    (
        lambda head: head[8:10] == b'{"',
        f"a safetensors file, which has weights but no graph: {_EXPORT}",
    ),
    (_starts(b"ftrt", b"ptrt"), f"a TensorRT engine: {_BUILT}"),
    (_is_json, "a JSON file: give the ONNX file itself"),
)


def what_it_is(path: Path, name: str, size_bytes: int, head: bytes) -> str:
    """Return the rest of a message after the file's name: the file's format and a remedy.

    Args:
        path: File without an ONNX graph.
        name: Name of the file in messages.
        size_bytes: Size of the file.
        head: First :data:`HEAD_BYTES` of the file.
    """
    if not size_bytes:
        return "is empty: export or download it again"
    names = {"path": shlex.quote(name), "folder": shlex.quote(str(path.parent))}
    if (text := _text(_IN_PLACE_OF_FILES, head)) is not None:
        return f"is {text.format(**names)}"
    if (cure := _CURES.get(path.suffix.lower())) is not None:
        return f"is not an ONNX file: {cure.format(**names)}"
    if (text := _text(_MODELS_AND_ARCHIVES, head)) is not None:
        return f"is {text.format(**names)}"
    if path.suffix.lower() != ".onnx":
        return "is not an ONNX file: give an ONNX file, MODEL.onnx"
    if head[:1] in _FIRST_FIELDS:
        return (
            f"is cut short or damaged after {size_bytes:,} bytes: export or download it again, and "
            "compare the sizes"
        )
    return "is not an ONNX file: export or download it again"


def stands_in(name: str, head: bytes) -> str | None:
    """Return the placeholder in place of a file, such as a git-lfs pointer, and a remedy.

    None if the file is not a placeholder.
    """
    text = _text(_IN_PLACE_OF_FILES, head)
    return text and text.format(path=shlex.quote(name))


def _text(formats: _Formats, head: bytes) -> str | None:
    return next((text for fits, text in formats if fits(head)), None)


_FIRST_FIELDS = (b"\x08", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42", b"\x72")
"""First bytes of ONNX files: tags of fields, mostly of ``ir_version``."""


def folder_hint(path: Path) -> str:
    """Return the advice for a folder given as a model."""
    try:
        inside = sorted(path.glob("*.onnx"))
    except OSError:
        inside = []
    return f"give a file, such as {inside[0]}" if inside else "give an ONNX file"
