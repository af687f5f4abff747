"""Requests that are no messages, or say what no host can mean, end in INVALID_ARGUMENT.

Each is one line in the log. gRPC's own way with them is INTERNAL, a traceback, and some 16 KB of
memory lost for each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from esm_agent.operation.logs import event
from esm_protos.received import check

log = logging.getLogger(__name__)


class _Refused(NamedTuple):
    """Stands for a request that is not let in."""

    reason: str


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
                message = handler.request_deserializer(data)
                check(message)
            except DecodeError:
                return _Refused("the request is no message of this method")
            except ValueError as error:
                return _Refused(f"the request makes no sense: {error}")
            return message

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
    if isinstance(request, _Refused):
        event(log, logging.WARNING, "refused", reason=request.reason, peer=context.peer())
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.reason)
    return request
