"""Receiver of a block, which writes its chunks to disk and checks every byte."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.serving.cache import LinkFolder
from esm_protos import convert
from esm_protos.graphs import is_memory_address
from esm_protos.messages import MOST_ENERGY_S, PROTOCOL_VERSION, File, Limits
from esm_protos.text import counted
from esm_protos.v1 import profiler_pb2 as pb

_LONGEST_ID = 4096
"""Maximum characters of an id; the host's ``time`` uses paths as ids of models."""
_PIECE_BYTES = 1 << 20
_MOST_PROFILE_RUNS = 1000
_BYTES_OF_A_RUN = 100  # memory of a run in the measuring process: two integers in lists
_MOST_EXTERNAL = 100_000
"""Maximum number of external files of a model; some exporters write one for every tensor."""


class UploadError(Exception):
    """Invalid block from a client."""


class TooLargeError(UploadError):
    """Block that exceeds this agent's limits."""


class VersionError(UploadError):
    """Client with another protocol version."""


def check_version(host_version: int) -> None:
    """Check that host and agent use the same protocol version.

    Raises:
        VersionError: they differ; the message says which side to upgrade.
    """
    if host_version != PROTOCOL_VERSION:
        older = "workstation" if host_version < PROTOCOL_VERSION else "device"
        raise VersionError(
            f"the host speaks protocol {host_version}, this agent {PROTOCOL_VERSION}: "
            f"upgrade esm-profiler on the {older}"
        )


def receive(
    requests: Iterable[pb.MeasureBlockRequest],
    folder: Path,
    limits: Limits,
    linked: LinkFolder | None = None,
    check_lease: Callable[[str], None] = lambda lease_id: None,
) -> UploadedBlock:
    """Receive a whole request stream, with its models as files in ``folder``.

    Args:
        requests: Messages of the stream.
        folder: Folder for the models sent with the block.
        limits: Limits of the agent.
        linked: Folder for models with files in the cache; None without a cache.
        check_lease: Function that raises an error for an invalid lease; it is called before any
            model is read.

    Raises:
        UploadError: sizes, order, hashes or settings are wrong.
        TooLargeError: the header exceeds ``limits``.
        VersionError: the client uses another protocol version.
        OSError: the files cannot be written.
        NotCachedError: a file is not in the cache.
    """
    stream = iter(requests)
    header = _received_header(stream, check_lease)
    try:
        spec = convert.spec_from_pb(header.spec)
    except ValueError as error:
        raise UploadError(str(error)) from error
    _check_header(header, limits)
    models = []
    for index, model in enumerate(header.models):
        models.append(_receive_any(stream, index, model, folder, linked))
    if next(stream, None) is not None:
        raise UploadError("the client sent more than its header announced")
    return UploadedBlock(
        header.block_id,
        spec,
        tuple(models),
        header.lease_id,
        header.peak_memory,
        header.profile_runs,
        header.energy_s,
        header.raw,
    )


def _received_header(
    stream: Iterator[pb.MeasureBlockRequest], check_lease: Callable[[str], None]
) -> pb.BlockHeader:
    """Return the header, merged from its parts; the first part names the lease."""
    header = pb.BlockHeader()
    for request in stream:
        kind = request.WhichOneof("part")
        if kind not in ("header", "header_part"):
            break
        try:
            convert.join_header(header, getattr(request, kind))
        except ValueError as error:
            raise UploadError(str(error)) from error
        check_version(header.protocol_version)
        check_lease(header.lease_id)
        if kind == "header":
            return header
    raise UploadError("a block starts with its header")


def _check_header(header: pb.BlockHeader, limits: Limits) -> None:
    if not header.block_id or not header.models:
        raise UploadError("a block needs an id and at least one model")
    if max(len(header.block_id), *(len(m.model_id) for m in header.models)) > _LONGEST_ID:
        raise UploadError(f"ids must have at most {_LONGEST_ID} characters")
    if len({model.model_id for model in header.models}) < len(header.models):
        raise UploadError("model ids must be unique within a block")
    if len(header.models) > limits.max_block_models:
        raise TooLargeError(
            f"{counted(len(header.models), 'model')} in a block; this agent accepts "
            f"{limits.max_block_models}: give fewer models per block"
        )
    samples = header.spec.runs * len(header.models) * _BYTES_OF_A_RUN
    if not header.spec.precision and samples > limits.max_memory_bytes:
        raise TooLargeError(
            f"{counted(header.spec.runs, 'run')} of {counted(len(header.models), 'model')} take "
            f"{samples / 1e6:.0f} MB; the measuring process may use "
            f"{limits.max_memory_bytes / 1e6:.0f} MB: give fewer runs, or fewer models per block"
        )
    if header.profile_runs > _MOST_PROFILE_RUNS:
        raise UploadError(f"{header.profile_runs} runs to profile: {_MOST_PROFILE_RUNS} at most")
    if header.energy_s > MOST_ENERGY_S:
        raise UploadError(f"{header.energy_s:g} s of energy: {MOST_ENERGY_S:g} at most")
    for model in header.models:
        if model.size_bytes > limits.max_model_bytes:
            raise TooLargeError(
                f"model {model.model_id} has {model.size_bytes / 1e6:.0f} MB; this agent accepts "
                f"{limits.max_model_bytes / 1e6:.0f} MB: give a smaller model"
            )
        data = model.size_bytes + sum(each.file.size_bytes for each in model.external)
        if data > limits.max_memory_bytes:
            raise TooLargeError(
                f"model {model.model_id} has {data / 1e6:.0f} MB of data; models may use "
                f"{limits.max_memory_bytes / 1e6:.0f} MB of memory here: start the agent "
                "with a larger --memory-limit, or give a smaller model"
            )
    total = sum(m.size_bytes for m in header.models if m.encoding != pb.ENCODING_CACHED)
    if total > limits.max_block_bytes:
        raise TooLargeError(
            f"a block of {total / 1e6:.0f} MB; this agent accepts "
            f"{limits.max_block_bytes / 1e6:.0f} MB: give fewer models per block"
        )


def _receive_any(
    stream: Iterator[pb.MeasureBlockRequest],
    index: int,
    model: pb.ModelHeader,
    folder: Path,
    linked: LinkFolder | None,
) -> UploadedModel:
    """Receive a model with its inputs and external files; link those that the cache has."""
    try:
        case = convert.case_from_pb(model)
        external = {each.location: convert.file_from_pb(each.file) for each in model.external}
        own = convert.file_from_pb(pb.File(sha256=model.sha256, size_bytes=model.size_bytes))
    except ValueError as error:
        raise UploadError(str(error)) from error
    cached = model.encoding == pb.ENCODING_CACHED
    path = folder / f"{index}.onnx"
    inputs = None
    if cached or external or case.inputs:
        if linked is None:
            raise UploadError("this agent has no cache: serve with a --cache-size above 0")
        home = linked.folder / str(index)
        home.mkdir()
        path = home / _MODEL_NAME
        if case.inputs is not None:
            inputs = linked.folder / f"{index}.npz"
            linked.link(case.inputs, inputs)
    if cached:
        assert linked is not None
        linked.link(own, path)
    else:
        _receive_model(stream, index, model, path)
    if external:  # after the model, so that no external file can take the model's path
        assert linked is not None
        _link_external(linked, path.parent, model, external)
    return UploadedModel(model.model_id, path, case, inputs, frozenset(external))


_MODEL_NAME = ".model.onnx"


def _link_external(
    linked: LinkFolder, home: Path, model: pb.ModelHeader, external: Mapping[str, File]
) -> None:
    if len(model.external) > _MOST_EXTERNAL or len(external) < len(model.external):
        raise UploadError(f"model {model.model_id} has too many files, or two at one location")
    for location, file in external.items():
        place = PurePosixPath(location)
        inside = not place.is_absolute() and ".." not in place.parts and place.parts
        if not inside or "\0" in location or len(location) > _LONGEST_ID:
            raise UploadError(
                f"model {model.model_id} names a file outside its folder: {location[:100]!r}"
            )
        if is_memory_address(location):
            raise UploadError(
                f"model {model.model_id} names a memory address, not a file: {location[:100]!r}"
            )
        target = home / place
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            linked.link(file, target)
        except (FileExistsError, NotADirectoryError) as error:
            raise UploadError(
                f"model {model.model_id} has two files at one location: {location[:100]!r}"
            ) from error


def upload_parts(
    requests: Iterable[pb.UploadRequest],
) -> tuple[pb.UploadHeader, Iterator[bytes]]:
    """Return the header of a file's upload, and an iterator of its bytes.

    Raises:
        UploadError: the stream has another order.
    """
    stream = iter(requests)
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "header":
        raise UploadError("an upload starts with its header")

    def data() -> Iterator[bytes]:
        for request in stream:
            if request.WhichOneof("part") != "data" or not request.data:
                raise UploadError("an upload has only data after its header")
            yield request.data

    return first.header, data()


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
            if received > model.sent_bytes:
                raise UploadError(f"model {model.model_id} is longer than announced")
            for piece in _unpacked(model, chunk.data, unpack):
                written += len(piece)
                if written > model.size_bytes:
                    raise UploadError(f"model {model.model_id} is longer than announced")
                digest.update(piece)
                file.write(piece)
    if written < model.size_bytes:
        raise UploadError(f"model {model.model_id} is shorter than announced")
    if digest.digest() != model.sha256:
        raise UploadError(f"model {model.model_id} arrived with another SHA-256 than announced")


def _unpacked(model: pb.ModelHeader, data: bytes, unpack: Any) -> Iterator[bytes]:
    """Yield unpacked data in small pieces; a chunk may unpack to a thousand times its size."""
    if unpack is None:
        yield data
        return
    try:
        piece = b"more"
        while data or piece:  # zlib may hold back output after all input is read
            piece = unpack.decompress(data, _PIECE_BYTES)
            data = unpack.unconsumed_tail
            yield piece
    except zlib.error as error:
        raise UploadError(f"model {model.model_id} is not zlib: {error}") from error
