"""gRPC's health service, which shows whether the agent accepts blocks."""

from __future__ import annotations

from collections.abc import Collection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_STATUS = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Health service that implements Check only.

    Each watcher would hold memory without a limit, so Watch is UNIMPLEMENTED. Clients of the
    service must expect that.

    Args:
        services: Names of the services that can be checked.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)
        self._status = _STATUS.SERVING

    def stop_serving(self) -> None:
        """Answer NOT_SERVING from now on."""
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
