"""A user's ONNX file: what of it is read here, and the files that hold its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError

from esm_host.errors import UsageError
from esm_protos.graphs import bodies, external_location, mapped, tensors
from esm_protos.messages import File
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.weights import WEIGHTLESS_LOCATION

INLINE_BYTES = 1 << 20
"""What is larger goes to the device's cache, so that it is sent once."""

_EXPORT = "export it: torch.onnx.export(model, args, 'model.onnx', dynamo=True)"
_TF2ONNX = "python -m tf2onnx.convert"
_ENGINE = "a built engine has no ONNX in it: give the ONNX file that it was built from"
_CURES = {
    **dict.fromkeys((".pt", ".pth", ".torch", ".pt2", ".ckpt", ".safetensors"), _EXPORT),
    ".tflite": f"convert it: {_TF2ONNX} --tflite {{path}} --output model.onnx",
    ".pb": f"convert its folder: {_TF2ONNX} --saved-model {{folder}} --output model.onnx",
    **dict.fromkeys(
        (".h5", ".keras"),
        f"save it, model.export('saved'), and convert: {_TF2ONNX} --saved-model saved "
        "--output model.onnx",
    ),
    **dict.fromkeys((".engine", ".plan", ".trt", ".ort"), _ENGINE),
}


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file that was looked at.

    Attributes:
        path: as given, as text.
        data: its bytes where they are few.
        external: files that it keeps data in, by the location that it names.
        outline: all but the weights; None if it is not ONNX, which the device says.
    """

    path: str
    data: bytes | File
    external: tuple[tuple[str, File], ...]
    outline: view.Model | None


def read_model_file(path: Path, name: str | None = None) -> ModelFile:
    """Reads a file, those above 1 MiB by streaming.

    Args:
        name: of a model from memory, which has no files beside it.

    Raises:
        UsageError: it cannot be read, is of another format, or lacks files that it names.
    """
    # A name that is no text has no place in a message or in JSON.
    in_memory = name is not None
    name = (name or str(path)).encode(errors="backslashreplace").decode()
    try:
        small = path.stat().st_size <= INLINE_BYTES
        data: bytes | File = path.read_bytes() if small else hashed(path)
        outline = _outline(path, data)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    # What was named otherwise is ONNX all the same where it has a graph.
    if path.suffix.lower() != ".onnx" and (outline is None or not outline.graph.node):
        cure = _CURES.get(path.suffix.lower(), "give an ONNX file, MODEL.onnx")
        raise UsageError(f"{name} is no ONNX file: {cure.format(path=name, folder=path.parent)}")
    if in_memory and outline is not None and (locations := external_locations(outline)):
        raise UsageError(
            f"{name} keeps weights in '{locations[0]}', which bytes have no folder for: give the "
            "path of its file, or load its weights with it, onnx.load(path)"
        )
    external = () if outline is None else tuple(_external(path, name, outline))
    return ModelFile(name, data, external, outline)


def hashed(path: Path) -> File:
    """A file for the device's cache; raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return File(digest, file.tell(), path)


def external_locations(model: view.Model) -> list[str]:
    """Files, besides the model's own, that hold data of it, each once, in order."""
    found = (external_location(tensor) for body in bodies(model) for tensor in tensors(body))
    return list(dict.fromkeys(f for f in found if f is not None and f != WEIGHTLESS_LOCATION))


def _outline(path: Path, data: bytes | File) -> view.Model | None:
    model = view.Model()
    try:
        if isinstance(data, bytes):
            model.MergeFromString(data)
        else:
            with mapped(path) as window:
                model.MergeFromString(window)
        # The weights are among what the view does not know.
        model.DiscardUnknownFields()
        outline = view.Model()
        outline.MergeFromString(model.SerializeToString())
    except DecodeError:
        return None
    return outline


def _external(path: Path, name: str, outline: view.Model) -> Iterator[tuple[str, File]]:
    folder = path.resolve().parent
    for location in external_locations(outline):
        parts = PurePosixPath(location)
        target = path.parent / location
        if (
            not location
            or parts.is_absolute()
            or ".." in parts.parts
            or not target.resolve().is_relative_to(folder)
        ):
            raise UsageError(
                f"{name} keeps weights in '{location}', which is not in its folder: save it "
                "again, onnx.save(onnx.load(path), path, save_as_external_data=True)"
            )
        try:
            yield location, hashed(target)
        except OSError as error:
            raise UsageError(
                f"{name} keeps weights in {target}, which cannot be read ({error.strerror}): "
                "put that file beside the model"
            ) from error
