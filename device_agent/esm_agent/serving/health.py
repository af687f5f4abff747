"""gRPC's health service: whether the agent takes blocks."""

from __future__ import annotations

from collections.abc import Collection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_STATUS = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Answers Check. Watch is UNIMPLEMENTED, which clients of that service are prepared for: each
    watcher would hold memory for as long as it likes.

    Args:
        services: that may be asked for.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)
        self._status = _STATUS.SERVING

    def stop_serving(self) -> None:
        """From now on the answer is NOT_SERVING."""
        self._status = _STATUS.NOT_SERVING

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _STATUS(status=self._status)

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "this agent answers Check only")
