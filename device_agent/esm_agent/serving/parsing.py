"""Requests that are no messages end in INVALID_ARGUMENT, with one line in the log.

gRPC's own way with them is INTERNAL, a traceback, and some 16 KB of memory lost for each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

log = logging.getLogger(__name__)

_MALFORMED = object()


class ParsingInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For methods of one answer, to one request or many, and of streams both ways."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not (
            handler.unary_unary or handler.stream_unary or handler.stream_stream
        ):
            return handler

        def parse(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return _MALFORMED

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            return handler.unary_unary(_checked(request, context), context)

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            method = handler.stream_stream or handler.stream_unary
            return method((_checked(request, context) for request in requests), context)

        return handler._replace(
            request_deserializer=parse,
            unary_unary=unary if handler.unary_unary else None,
            stream_unary=stream if handler.stream_unary else None,
            stream_stream=stream if handler.stream_stream else None,
        )


def _checked(request: Any, context: grpc.ServicerContext) -> Any:
    if request is _MALFORMED:
        log.warning("refused: a request that is no message")
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")
    return request
