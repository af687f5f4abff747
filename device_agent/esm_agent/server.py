"""The agent as a gRPC server on one port."""

from __future__ import annotations

import logging
import shutil
from concurrent import futures
from functools import partial

import grpc

from esm_agent.device import device_info, memory_bytes
from esm_agent.lease import EXPIRY_S
from esm_agent.measuring import BackendFactory, TelemetryFactory, cpu_backend, cuda_backend
from esm_agent.scratch import make_scratch
from esm_agent.servicer import ProfilerServicer
from esm_agent.slot import Slot
from esm_agent.telemetry import Telemetry
from esm_agent.worker import Worker, WorkerUnavailableError
from esm_protos.messages import Limits
from esm_protos.v1 import profiler_pb2_grpc

log = logging.getLogger(__name__)

# Waiting clients hold a thread each; asking for device facts must still find one.
_MAX_CLIENTS = 64
_OPTIONS = (
    # A second agent on a taken port is an error, not a silent sharer of its clients.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class PortTakenError(Exception):
    """The address cannot be bound."""


class AgentServer:
    """A running agent.

    Args:
        host: address to bind.
        port: 0 picks a free one.
        lease_expiry_s: a host that is silent for so long has lost its place in the queue.
        gpu: the GPU of the provider ``cuda``, which must then work; without it the first one,
            if it does.

    Raises:
        PortTakenError: the address cannot be bound.
        WorkerUnavailableError: the measuring process does not start, or not with ``gpu``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        make_backend: BackendFactory = cpu_backend,
        make_telemetry: TelemetryFactory | None = None,
        lease_expiry_s: float = EXPIRY_S,
        gpu: int | None = None,
    ) -> None:
        telemetry = make_telemetry or partial(Telemetry, gpu=gpu or 0)
        cuda = partial(cuda_backend, gpu or 0)
        self._slot = Slot(Worker(make_backend, telemetry, make_others=(cuda,)), lease_expiry_s)
        hello = self._slot.start()
        for reason in hello.missing:
            log.info("%s", reason)
        if gpu is not None and "cuda" not in hello.providers:
            self._slot.stop()
            raise WorkerUnavailableError(f"--gpu {gpu}: {'; '.join(hello.missing)}")
        self._scratch = make_scratch()
        # Uploads lie in the temporary folder, which may be in memory.
        limits = Limits(max_block_bytes=memory_bytes() // 4, max_block_models=256)
        info = device_info(hello.runtime, hello.providers, limits)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=_MAX_CLIENTS, thread_name_prefix="esm-rpc"),
            options=_OPTIONS,
        )
        servicer = ProfilerServicer(
            info, self._slot, self._scratch, lambda context: "anyone", telemetry()
        )
        profiler_pb2_grpc.add_ProfilerServicer_to_server(servicer, self._server)
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            self._slot.stop()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise PortTakenError(
                f"cannot listen on {host}:{port}: another program may use it: choose --port"
            ) from error
        self._server.start()
        log.info("%s, providers %s", hello.runtime, ", ".join(hello.providers))

    def stop(self) -> None:
        """Refuses new calls, cancels the running block and ends the measuring process."""
        stopped = self._server.stop(grace=1)
        self._slot.stop()
        stopped.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
