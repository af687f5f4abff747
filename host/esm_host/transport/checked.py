"""gRPC channel that validates every answer.

gRPC itself prints a traceback to stderr for an answer that it cannot parse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from esm_protos.received import received

_Read = Callable[[bytes], Message]


class CheckedChannel:
    """Channel that passes every answer through :func:`esm_protos.received.received`.

    Calls raise NonsenseError for an invalid answer, besides gRPC's own errors.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def unary_unary(self, path: str, **options: Any) -> _Single:
        read = _reader(options)
        return _Single(self._channel.unary_unary(path, **options), read)

    def stream_unary(self, path: str, **options: Any) -> _Single:
        read = _reader(options)
        return _Single(self._channel.stream_unary(path, **options), read)

    def stream_stream(self, path: str, **options: Any) -> Callable[..., _Stream]:
        read = _reader(options)
        call = self._channel.stream_stream(path, **options)
        return lambda requests, **more: _Stream(call(requests, **more), read)


def _reader(options: dict[str, Any]) -> _Read:
    """Remove the stub's deserializer from the options and return a validating one."""
    kind = options.pop("response_deserializer").__self__
    return lambda data: received(kind, data)


class _Single:
    """Method with one answer."""

    def __init__(self, call: Any, read: _Read) -> None:
        self._call = call
        self._read = read

    def __call__(self, request: Any, **options: Any) -> Message:
        return self._read(self._call(request, **options))

    def future(self, request: Any, **options: Any) -> Any:
        """Return gRPC's own future; its result is the answer's bytes."""
        return self._call.future(request, **options)


class _Stream:
    """Answers of a streaming call."""

    def __init__(self, call: Any, read: _Read) -> None:
        self._call = call
        self._read = read

    def __iter__(self) -> Iterator[Message]:
        return map(self._read, self._call)

    def cancel(self) -> None:
        self._call.cancel()
