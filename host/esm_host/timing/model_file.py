"""Reader of a user's ONNX file and of the files that hold its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError

from esm_host.errors import UsageError
from esm_host.timing.other_formats import HEAD_BYTES, folder_hint, stands_in, what_it_is
from esm_protos.graphs import bodies, external_location, mapped, tensors
from esm_protos.messages import File
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.weights import WEIGHTLESS_LOCATION

INLINE_BYTES = 1 << 20
"""Largest file sent with the request. Larger files are cached on the device, and sent once."""

MAX_PROTOBUF_BYTES = 2**31


@dataclass(frozen=True)
class ModelFile:
    """ONNX file.

    Attributes:
        path: Path as given.
        data: Content of a small file; digest and size of a large one.
        external: Files of external data, with the locations in the model.
        outline: Model without weights; None if the file is too large to be read.
    """

    path: str
    data: bytes | File
    external: tuple[tuple[str, File], ...]
    outline: view.Model | None


def read_model_file(path: Path, name: str | None = None) -> ModelFile:
    """Read an ONNX file; files above 1 MiB are streamed.

    Args:
        path: Path of the file.
        name: Name of a model from memory, which has no external data; None for a user's file.

    Raises:
        UsageError: the file cannot be read, has another format or is cut short, or external data
            is missing.
    """
    # JSON and messages cannot hold undecodable bytes of a path.
    in_memory = name is not None
    name = (name or str(path)).encode(errors="backslashreplace").decode()
    try:
        if path.is_dir():
            raise UsageError(f"{name} is a folder: {folder_hint(path)}")
        small = path.stat().st_size <= INLINE_BYTES
        data: bytes | File = path.read_bytes() if small else hashed(path)
        outline = _outline(path, data)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    size_bytes = data.size_bytes if isinstance(data, File) else len(data)
    # Files above protobuf's limit cannot be read here; the device refuses them.
    if size_bytes < MAX_PROTOBUF_BYTES and (outline is None or not outline.HasField("graph")):
        raise UsageError(f"{name} {what_it_is(path, name, size_bytes, head)}")
    if in_memory and outline is not None and (locations := external_locations(outline)):
        raise UsageError(
            f"{name} keeps weights in '{locations[0]}', but a model in memory has no folder: "
            "give the path of its file, or load it with its weights, onnx.load(path)"
        )
    external = () if outline is None else tuple(_external(path, name, outline))
    return ModelFile(name, data, external, outline)


def hashed(path: Path) -> File:
    """Return the digest and the size of a file, for the device's cache.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return File(digest, file.tell(), path)


def external_locations(model: view.Model) -> list[str]:
    """Return the locations of external data, each once, in order."""
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
        # Weights are unknown fields of the view.
        model.DiscardUnknownFields()
        outline = view.Model()
        outline.MergeFromString(model.SerializeToString())
    except DecodeError:
        return None
    return outline


def _external(path: Path, name: str, outline: view.Model) -> Iterator[tuple[str, File]]:
    folder = path.resolve().parent
    needed = _needed_bytes(outline)
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
                "again with onnx.save(onnx.load(path), path, save_as_external_data=True)"
            )
        try:
            file = hashed(target)
            with target.open("rb") as opened:
                head = opened.read(HEAD_BYTES)
        except OSError as error:
            raise UsageError(
                f"{name} keeps weights in {target}, which cannot be read ({error.strerror}): "
                "put that file beside the model"
            ) from error
        if file.size_bytes < (least := needed.get(location, 0)):
            instead = stands_in(str(target), head)
            raise UsageError(
                f"{name} keeps weights in {target}, which is {instead}"
                if instead
                else f"{name} keeps weights in {target}, which is cut short ({file.size_bytes:,} "
                f"of {least:,} bytes): copy or download it again"
            )
        yield location, file


def _needed_bytes(outline: view.Model) -> dict[str, int]:
    """Return the least size of each external file, bytes, from the offsets in the model."""
    found: dict[str, int] = {}
    for body in bodies(outline):
        for tensor in tensors(body):
            if (location := external_location(tensor)) is not None:
                told = {str(entry.key): str(entry.value) for entry in tensor.external_data}
                numbers = [told.get(key, "0") for key in ("offset", "length")]
                if all(map(str.isdecimal, numbers)):
                    found[location] = max(found.get(location, 0), sum(map(int, numbers)))
    return found
