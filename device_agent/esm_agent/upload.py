"""Puts the chunks of a block together again, on disk, and checks every byte."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Limits, MeasureSpec
from esm_protos.v1 import profiler_pb2 as pb


class UploadError(Exception):
    """The client sent something that is not a block."""


class TooLargeError(UploadError):
    """The block exceeds this agent's limits."""


class NoRoomError(Exception):
    """The disk is full, or broken: the same block may be taken later."""


class VersionError(UploadError):
    """The client speaks another protocol version."""


@dataclass(frozen=True)
class UploadedBlock:
    """A block whose models lie in files; ``lease_id`` says whose turn it is measured in."""

    block_id: str
    spec: MeasureSpec
    models: tuple[tuple[str, Path], ...]
    lease_id: str = ""


def check_version(host_version: int) -> None:
    """Raises VersionError, saying which side to upgrade, unless both speak the same version."""
    if host_version != PROTOCOL_VERSION:
        older = "workstation" if host_version < PROTOCOL_VERSION else "device"
        raise VersionError(
            f"the host speaks protocol {host_version}, this agent {PROTOCOL_VERSION}: "
            f"upgrade esm-profiler on the {older}"
        )


def receive(
    requests: Iterable[pb.MeasureBlockRequest], folder: Path, limits: Limits
) -> UploadedBlock:
    """Reads a whole request stream into files under ``folder``.

    Raises:
        UploadError: sizes, order, hashes or settings are wrong.
        TooLargeError: the header announces more than ``limits`` allow.
        VersionError: the client speaks another protocol version.
        NoRoomError: the upload area cannot take it.
    """
    stream = iter(requests)
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "header":
        raise UploadError("a block starts with its header")
    header = first.header
    check_version(header.protocol_version)
    try:
        spec = convert.spec_from_pb(header.spec)
    except ValueError as error:
        raise UploadError(str(error)) from error
    _check_header(header, limits)
    models = []
    for index, model in enumerate(header.models):
        path = folder / f"{index}.onnx"
        try:
            _receive_model(stream, index, model, path)
        except OSError as error:
            raise NoRoomError(f"no room for the upload: {error.strerror}") from error
        models.append((model.model_id, path))
    if next(stream, None) is not None:
        raise UploadError("the client sent more than its header announced")
    return UploadedBlock(header.block_id, spec, tuple(models), header.lease_id)


def _check_header(header: pb.BlockHeader, limits: Limits) -> None:
    if not header.block_id or not header.models:
        raise UploadError("a block needs an id and at least one model")
    if len({model.model_id for model in header.models}) < len(header.models):
        raise UploadError("model ids must be unique within a block")
    if len(header.models) > limits.max_block_models:
        raise TooLargeError(
            f"{len(header.models)} models in one block; this agent takes "
            f"{limits.max_block_models}: use a smaller --block-size"
        )
    total = sum(model.size_bytes for model in header.models)
    if total > limits.max_block_bytes:
        raise TooLargeError(
            f"a block of {total / 1e6:.0f} MB; this agent takes "
            f"{limits.max_block_bytes / 1e6:.0f} MB: use a smaller --block-size"
        )


def _receive_model(
    stream: Iterator[pb.MeasureBlockRequest], index: int, model: pb.ModelHeader, path: Path
) -> None:
    if model.encoding not in (pb.ENCODING_PLAIN, pb.ENCODING_ZLIB):
        raise UploadError(f"model {model.model_id} has unknown encoding {model.encoding}")
    unpack = zlib.decompressobj() if model.encoding == pb.ENCODING_ZLIB else None
    digest = hashlib.sha256()
    received = written = 0
    with path.open("wb") as file:
        while received < model.sent_bytes:
            request = next(stream, None)
            chunk = request.chunk if request is not None else None
            if chunk is None or not chunk.data or (chunk.model, chunk.offset) != (index, received):
                raise UploadError(
                    f"model {model.model_id} broke off after {received} of {model.sent_bytes} bytes"
                )
            received += len(chunk.data)
            data = chunk.data
            if unpack is not None:
                try:
                    # One byte more than announced is enough to know that it lies.
                    data = unpack.decompress(data, model.size_bytes - written + 1)
                except zlib.error as error:
                    raise UploadError(f"model {model.model_id} is not zlib: {error}") from error
            written += len(data)
            if received > model.sent_bytes or written > model.size_bytes:
                raise UploadError(f"model {model.model_id} is longer than announced")
            digest.update(data)
            file.write(data)
    if digest.digest() != model.sha256:
        raise UploadError(f"model {model.model_id} arrived with another SHA-256 than announced")
