"""gRPC server of the agent, on one port."""

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
from esm_agent.measure.worker import UnusableOptionError, Worker, WorkerUnavailableError
from esm_agent.operation.metrics import Metrics
from esm_agent.providers import ep_libraries as read_libraries
from esm_agent.providers import find_providers, make_provider, optional_names
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
_MAX_MODEL_BYTES = 2**31 - 1  # protobuf's limit
_OPTIONS = (
    # A second agent on the same port must fail instead of taking some of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# Names that a health check can use: the agent as a whole, and its service.
_HEALTH_OF = ("", profiler_pb2.DESCRIPTOR.services_by_name["Profiler"].full_name)


class PortTakenError(Exception):
    """Error for an address that cannot be bound."""


class AgentServer:
    """Running agent.

    Args:
        host: Address to bind, IPv6 with or without brackets.
        port: Port; 0 for any free one.
        make_backend: Factory of the runtime of the measuring process.
        make_telemetry: Factory of the reader of the device's state; None for the default.
        lease_expiry_s: Time without a renewal after which a lease expires, seconds.
        door: Authentication of calls; None for plain text without authentication.
        metrics: Receiver of the counters; None for none.
        confinement: Limits of the measuring process; its folder is set here.
        max_block_s: Maximum duration of a block, seconds.
        gpu: Number of the GPU for the providers that run on one, and one of them must work; None
            for the first GPU, if one of them works.
        cache_folder: Folder of the cache of files; None for no cache.
        cache_bytes: Size of the cache; None for a size that depends on the disk.
        history: File with the history of the reference models; None for no history.
        metric_sources: Names of sources of metrics (:mod:`esm_agent.measure.sources`).
        providers: Execution providers of the user, ``path/to/file.py:Class``, which must work.
        ep_libraries: Libraries with execution providers of ONNX Runtime, ``NAME=PATH``.
        meters: Names of the user's energy meters (:mod:`esm_agent.energy`), which must work.
        calibration: File with the calibration of a Raspberry Pi's PMIC; None for none.
        machine: Lock to hold while a block is measured; None if other agents may measure too.

    Raises:
        PortTakenError: the address cannot be bound.
        WorkerUnavailableError: the measuring process does not start.
        UnusableOptionError: ``gpu``, or one of ``providers``, ``ep_libraries``,
            ``metric_sources`` or ``meters``, does not work.
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
        metric_sources: Sequence[str] = (),
        providers: Sequence[str] = (),
        ep_libraries: Sequence[str] = (),
        meters: Sequence[str] = (),
        calibration: Path | None = None,
    ) -> None:
        try:
            libraries = read_libraries(ep_libraries)
        except ValueError as error:
            raise UnusableOptionError(str(error)) from error
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
        others = optional_names(own)
        make_others = [partial(make_provider, name, gpu or 0) for name in others]
        history_file = None if history is None else HistoryFile(history)
        worker = Worker(
            make_backend,
            telemetry,
            confinement,
            limits,
            make_others,
            history_file,
            metric_sources,
            partial(find_providers, libraries, gpu or 0),
            meters=meters,
            calibration=calibration,
        )
        self._slot = Slot(
            worker, lease_expiry_s, metrics, has_access=door.has_access, machine=machine
        )
        try:
            hello = self._slot.start()
            if reason := _lacks(hello, gpu, dict(enumerate(others)), own):
                self._slot.stop()
                raise UnusableOptionError(reason)
        except WorkerUnavailableError:
            self._clean()
            raise
        info = device_info(
            hello.runtime, hello.providers, limits, confinement.cpus, hello.isolation
        )
        info = replace(
            info,
            metrics=hello.metrics,
            unusable_providers=hello.unusable,
            energy_sensors=hello.energy_sensors,
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
            door,
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
        given = dict(libraries)
        for unusable in hello.unusable:
            if unusable.name in given:
                log.warning("--ep-library %s: %s", unusable.name, unusable.problem)
            else:
                log.info("%s", unusable.line)
        log.info("models are confined by: %s", ", ".join(hello.isolation) or "nothing")

    def drain(self, patience_s: float) -> bool:
        """Accept nothing new, and wait at most ``patience_s`` seconds for the running block.

        Returns:
            Whether its result was sent; else :meth:`stop` returns the block to its host.
        """
        self._health.stop_serving()
        return self._slot.drain(patience_s)

    def stop(self) -> None:
        """Refuse new calls, cancel the running block and end the measuring process."""
        stopped = self._server.stop(grace=1)
        self._slot.stop()
        stopped.wait()
        self._calls.stop()
        self._clean()

    def _make_cache(self, folder: Path | None, max_bytes: int | None) -> Cache | None:
        if folder is None or max_bytes == 0:
            return None
        try:
            return Cache(folder, max_bytes, lambda lease_id: self._slot.has_lease(lease_id))
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
    """Return why an address cannot be bound, which gRPC does not report."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except socket.gaierror:
        return "this device cannot resolve the name: choose another --host"
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return "this device has no such address: choose another --host"
        if error.errno == errno.EACCES:
            return "only root may listen on ports below 1024: choose another --port"
    return "another program may use it: choose another --port"


def _limits(confinement: Confinement, max_block_s: float, cache_bytes: int) -> Limits:
    # Uploads are in the temporary folder, which may be in memory.
    block_bytes = memory_bytes() // 4
    return Limits(
        max_block_bytes=block_bytes,
        max_block_models=_MAX_BLOCK_MODELS,
        max_model_bytes=min(block_bytes, _MAX_MODEL_BYTES),
        max_memory_bytes=confinement.memory_bytes,
        max_block_s=max_block_s,
        max_cache_bytes=cache_bytes,
    )
