"""Counters for monitoring; by default the agent reports to :class:`Metrics`, which ignores them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esm_protos.addresses import join
from esm_protos.messages import FailureKind
from esm_protos.text import install


class MetricsError(Exception):
    """Error that prevents serving the counters."""


@dataclass(frozen=True)
class Readings:
    """State of the agent at a moment.

    Attributes:
        queue_length: Number of valid leases: the one that holds the device, and those that wait.
        worker_restarts: Number of restarts of the measuring process after a crash or a kill.
        worker_pid: Process id of the measuring process; None while there is none.
    """

    queue_length: int
    worker_restarts: int
    worker_pid: int | None


class Metrics:
    """Receiver of the agent's events that ignores them."""

    def block_ended(self, outcome: str, models: Mapping[str, int], busy_s: float) -> None:
        """Count a block.

        Args:
            outcome: "measured", or why it was not measured.
            models: Number of its models by outcome.
            busy_s: Time spent on it, seconds.
        """

    def lease_expired(self) -> None:
        """Count a lease that expired."""

    def refused(self, code: str) -> None:
        """Count a refused call, by its gRPC status code."""

    def watch(self, read: Callable[[], Readings]) -> None:
        """Set the function that returns the current state of the agent."""

    def stop(self) -> None:
        """Stop serving the counters."""


class PrometheusMetrics(Metrics):
    """Counters served over HTTP in the format of Prometheus.

    Raises:
        MetricsError: prometheus_client is not installed, or the address cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise MetricsError(
                f"--metrics-port needs prometheus_client: {install('metrics')}"
            ) from error
        self._read: Callable[[], Readings] | None = None
        registry = prometheus.CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"esm_agent_{name}", text, labels, registry=registry)

        self._blocks = counter("blocks", "Blocks received, by outcome", "outcome")
        self._models = counter("models", "Models of measured blocks, by outcome", "outcome")
        self._busy = counter("busy_seconds", "Time spent on measured blocks")
        self._expired = counter("leases_expired", "Leases that expired")
        self._refused = counter("refusals", "Calls refused, by gRPC status code", "code")
        self._blocks.labels("measured")  # a rate needs a zero as its start
        for outcome in ("ok", *(kind.value for kind in FailureKind)):
            self._models.labels(outcome)
        registry.register(self)
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise MetricsError(
                f"cannot serve metrics on {join(host, port)}: choose another --metrics-port"
            ) from error
        self.port: int = self._server.server_port

    def block_ended(self, outcome: str, models: Mapping[str, int], busy_s: float) -> None:
        self._blocks.labels(outcome).inc()
        for name, count in models.items():
            self._models.labels(name).inc(count)
        self._busy.inc(busy_s)

    def lease_expired(self) -> None:
        self._expired.inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def watch(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Any]:
        """Yield the values that are read at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        memory = GaugeMetricFamily(
            "esm_agent_resident_memory_bytes", "Memory of each process", labels=["process"]
        )
        pids = {"agent": os.getpid()}
        if self._read is not None:
            now = self._read()
            yield GaugeMetricFamily(
                "esm_agent_queue_length",
                "Leases: the one that holds the device, and those that wait",
                now.queue_length,
            )
            yield CounterMetricFamily(
                "esm_agent_worker_restarts",
                "Restarts of the measuring process after a crash or a kill",
                now.worker_restarts,
            )
            if now.worker_pid is not None:
                pids["worker"] = now.worker_pid
        for name, pid in pids.items():
            rss = resident_bytes(pid)
            if rss is not None:
                memory.add_metric([name], rss)
        yield memory


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; None without /proc, or if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
