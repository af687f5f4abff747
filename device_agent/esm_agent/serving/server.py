"""The agent as a gRPC server on one port."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc

from esm_agent.device.facts import device_info, memory_bytes
from esm_agent.device.telemetry import Telemetry
from esm_agent.door.auth import Door, OpenDoor
from esm_agent.measure.history import HistoryFile
from esm_agent.measure.process import BackendFactory, Hello, TelemetryFactory
from esm_agent.measure.sandbox import Confinement
from esm_agent.measure.worker import Worker, WorkerUnavailableError
from esm_agent.operation.metrics import Metrics
from esm_agent.providers import FAMILY, FIRST, make_provider
from esm_agent.serving.cache import Cache
from esm_agent.serving.calls import Calls
from esm_agent.serving.connections import connection_options
from esm_agent.serving.health import Health
from esm_agent.serving.lease import EXPIRY_S
from esm_agent.serving.machine_lock import MachineLock
from esm_agent.serving.scratch import Scratch
from esm_agent.serving.servicer import ProfilerServicer
from esm_agent.serving.slot import Slot
from esm_protos.addresses import join
from esm_protos.messages import Limits
from esm_protos.plugins import absolute
from esm_protos.v1 import profiler_pb2, profiler_pb2_grpc

log = logging.getLogger(__name__)

DEFAULT_MAX_BLOCK_S = 3600.0
_MAX_BLOCK_MODELS = 256
_MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit
_OPTIONS = (
    # A second agent on a taken port is an error, not a silent sharer of its clients.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# The agent as a whole, and its one service: what monitors may ask for.
_HEALTH_OF = ("", profiler_pb2.DESCRIPTOR.services_by_name["Profiler"].full_name)


class PortTakenError(Exception):
    """The address cannot be bound."""


class AgentServer:
    """A running agent.

    Args:
        host: address to bind; IPv6 with or without brackets.
        port: 0 picks a free one.
        lease_expiry_s: a host that is silent for so long has lost its place in the queue.
        door: who comes in; None is plain text and everybody.
        metrics: counts what happens.
        confinement: what the measuring process may use; its folder is made here.
        max_block_s: a block that takes longer is broken off.
        gpu: number of the GPU of providers that run on one; one of them must then work. Without
            it the first GPU, if they do.
        providers: execution providers of the user's own, ``path/to/file.py:Class``, which must
            work.
        cache_folder: of files that hosts send once; None takes none.
        cache_bytes: of all of them; None chooses by what the disk has.
        history: file in which the reference models' latencies are remembered; None remembers
            nothing.
        machine: held while a block is measured; None lets other agents measure at the same time.

    Raises:
        PortTakenError: the address cannot be bound.
        WorkerUnavailableError: the measuring process does not start, or not with ``gpu`` or
            ``providers``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        make_backend: BackendFactory = make_provider,
        make_telemetry: TelemetryFactory | None = None,
        lease_expiry_s: float = EXPIRY_S,
        door: Door | None = None,
        metrics: Metrics | None = None,
        confinement: Confinement | None = None,
        max_block_s: float = DEFAULT_MAX_BLOCK_S,
        gpu: int | None = None,
        cache_folder: Path | None = None,
        cache_bytes: int | None = None,
        history: Path | None = None,
        machine: MachineLock | None = None,
        providers: Sequence[str] = (),
    ) -> None:
        door = door or OpenDoor()
        if metrics is not None:
            door.metrics = metrics
        telemetry = make_telemetry or partial(Telemetry, gpu=gpu or 0)
        self._scratch = Scratch()
        confinement = replace(confinement or Confinement(), folder=self._scratch.path / "worker")
        self._cache = self._make_cache(cache_folder, cache_bytes)
        cache_limit = self._cache.max_bytes if self._cache else 0
        limits = _limits(confinement, max_block_s, cache_limit)
        own = [absolute(name) for name in providers]
        others = [*(name for name in FAMILY.names() if name != FIRST), *own]
        make_others = [partial(make_provider, name, gpu or 0) for name in others]
        remembered = None if history is None else HistoryFile(history)
        worker = Worker(make_backend, telemetry, confinement, limits, make_others, remembered)
        self._slot = Slot(
            worker, lease_expiry_s, metrics, is_welcome=door.is_welcome, machine=machine
        )
        try:
            hello = self._slot.start()
            if reason := _lacks(hello, gpu, dict(enumerate(others)), own):
                self._slot.stop()
                raise WorkerUnavailableError(reason)
        except WorkerUnavailableError:
            self._clean()
            raise
        info = device_info(
            hello.runtime, hello.providers, limits, confinement.cpus, hello.isolation
        )
        self._calls = Calls(door.caller_of, metrics)
        self._server = grpc.server(
            self._calls.short,
            interceptors=(door, self._calls),
            options=(*_OPTIONS, *connection_options()),
        )
        servicer = ProfilerServicer(
            info,
            self._slot,
            self._scratch,
            door.client_of,
            door.owner_of,
            telemetry(),
            metrics=metrics,
            cpus=confinement.cpus,
            cache=self._cache,
            findings=hello.findings,
        )
        profiler_pb2_grpc.add_ProfilerServicer_to_server(servicer, self._server)
        self._health = Health(_HEALTH_OF)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            address = join(host, port)
            self.port: int = (
                self._server.add_insecure_port(address)
                if door.credentials is None
                else self._server.add_secure_port(address, door.credentials)
            )
        except RuntimeError as error:
            self._slot.stop()
            self._calls.stop()
            self._clean()
            raise PortTakenError(
                f"cannot listen on {address}: {_why_not(host.strip('[]'), port)}"
            ) from error
        self._server.start()
        if metrics is not None:
            metrics.watch(self._slot.readings)
        log.info("%s, providers %s; %s", hello.runtime, ", ".join(info.providers), door.means)
        for reason in hello.missing.values():
            log.info("%s", reason)
        log.info("models are confined by: %s", ", ".join(hello.isolation) or "nothing")

    def drain(self, patience_s: float) -> bool:
        """Takes nothing new, and gives the running block so long to be measured and sent.

        Returns:
            Whether it was; else :meth:`stop` hands it back to its host, to send it again.
        """
        self._health.stop_serving()
        return self._slot.drain(patience_s)

    def stop(self) -> None:
        """Refuses new calls, cancels the running block and ends the measuring process."""
        stopped = self._server.stop(grace=1)
        self._slot.stop()
        stopped.wait()
        self._calls.stop()
        self._clean()

    def _make_cache(self, folder: Path | None, max_bytes: int | None) -> Cache | None:
        if folder is None or max_bytes == 0:
            return None
        try:
            return Cache(folder, max_bytes, lambda lease_id: self._slot.lease_lives(lease_id))
        except OSError as error:
            log.warning("no cache in %s: %s", folder, error.strerror)
            return None

    def _clean(self) -> None:
        self._scratch.close()
        if self._cache is not None:
            self._cache.close()


def _lacks(hello: Hello, gpu: int | None, others: Mapping[int, str], own: Collection[str]) -> str:
    """Return why an agent cannot have the providers that it must have; empty if it can.

    Args:
        others: names of the providers that were tried, by their place.
        own: those of them that must work.
    """
    if gpu is not None and not hello.gpu:
        return f"--gpu {gpu}: {'; '.join(hello.missing.values())}"
    reasons = [
        f"--provider {name}: {hello.missing[place]}"
        for place, name in others.items()
        if name in own and place in hello.missing
    ]
    return "; ".join(reasons)


def _why_not(host: str, port: int) -> str:
    """Say why an address cannot be bound: gRPC does not."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except socket.gaierror:
        return "this device does not know the name: choose --host"
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return "this device has no such address: choose --host"
        if error.errno == errno.EACCES:
            return "only root may listen on ports below 1024: choose --port"
    return "another program may use it: choose --port"


def _limits(confinement: Confinement, max_block_s: float, cache_bytes: int) -> Limits:
    # Uploads lie in the temporary folder, which may be in memory.
    block_bytes = memory_bytes() // 4
    return Limits(
        max_block_bytes=block_bytes,
        max_block_models=_MAX_BLOCK_MODELS,
        max_model_bytes=min(block_bytes, _MAX_MODEL_BYTES),
        max_memory_bytes=confinement.memory_bytes,
        max_block_s=max_block_s,
        max_cache_bytes=cache_bytes,
    )
