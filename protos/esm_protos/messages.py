"""What host and agent say to each other, as frozen values; :mod:`esm_protos.convert` sends them.

Raw samples are kept, statistics are derived from them. Times are integer nanoseconds where they
were measured and float milliseconds where people read them.
"""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOL_VERSION = 1
"""Raised when an old peer would misread what a new one says."""

CHUNK_BYTES = 1 << 20
"""Models travel in pieces of this size, well below gRPC's 4 MB message limit."""

DEFAULT_PORT = 7343


class Protocol(enum.Enum):
    """How the runs of a block are ordered."""

    SEQUENTIAL = "sequential"
    """All runs of a model in a row (ESM, II-C)."""
    INTERLEAVED = "interleaved"
    """Models in memory together, visited in random order, a few runs per visit."""


class State(enum.Enum):
    """What the agent is doing with a block."""

    QUEUED = "queued"
    PREPARING = "preparing"
    MEASURING = "measuring"


class FailureKind(enum.Enum):
    """Why a model has no latency."""

    INVALID_MODEL = "invalid_model"
    UNSUPPORTED_OP = "unsupported_op"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class MeasureSpec:
    """How a block is measured. Numbers taken with different specs are not comparable.

    The defaults are ESM's 150 runs and 20 % trimmed at each end (ESM, II-C), taken in visits of
    three runs after two uncounted ones, which is where visits agree with runs in a row.

    Attributes:
        runs: counted runs per model.
        runs_per_visit: counted runs in a row; ``interleaved`` only.
        warmup: uncounted runs before each visit (before all runs when ``sequential``).
        trim: share of the counted runs dropped at each end, below 0.5.
        threads: threads of the runtime.
        seed: of the visiting order, the inputs and the weights of weightless graphs.
        provider: ``"cpu"``.
        model_timeout_s: longest time that loading or one visit of a model may take, seconds.

    Raises:
        ValueError: a value is out of range.
    """

    protocol: Protocol = Protocol.INTERLEAVED
    runs: int = 150
    runs_per_visit: int = 3
    warmup: int = 2
    trim: float = 0.2
    threads: int = 1
    seed: int = 0
    provider: str = "cpu"
    model_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("runs", 1, 1_000_000),
            ("runs_per_visit", 1, 1_000_000),
            ("warmup", 0, 100_000),
            ("threads", 1, 1024),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)} is outside {low} to {high}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim {self.trim:g} is outside 0 to below 0.5")
        if not 0 < self.model_timeout_s <= 86_400:
            raise ValueError(f"model_timeout_s {self.model_timeout_s:g} is outside 0 to 86400")

    def to_json(self) -> dict[str, Any]:
        """As plain values, the protocol by name."""
        return {**asdict(self), "protocol": self.protocol.value}


@dataclass(frozen=True)
class Limits:
    """What an agent accepts in one block."""

    max_block_bytes: int
    max_block_models: int


@dataclass(frozen=True)
class DeviceInfo:
    """The device as its agent sees it."""

    protocol_version: int
    agent_version: str
    hostname: str
    machine: str
    cpu_model: str
    cpu_count: int
    memory_bytes: int
    os: str
    python_version: str
    runtime: str
    providers: tuple[str, ...]
    limits: Limits

    def identity(self) -> dict[str, str | int]:
        """What must be equal for two measurements to be of the same device."""
        return {
            name: getattr(self, name)
            for name in ("hostname", "machine", "cpu_model", "cpu_count", "runtime")
        }


@dataclass(frozen=True)
class Model:
    """A model to measure: the client's name for it, unique in its block, and ONNX bytes."""

    model_id: str
    data: bytes


@dataclass(frozen=True)
class Block:
    """Models that are measured together. The id is the client's, and unique for all time."""

    block_id: str
    spec: MeasureSpec
    models: tuple[Model, ...]


@dataclass(frozen=True)
class Progress:
    """``fraction`` (0 to 1) of the work that ``state`` names."""

    state: State
    fraction: float


@dataclass(frozen=True)
class Failure:
    kind: FailureKind
    message: str


Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What measuring one model gave: samples, or a failure.

    Attributes:
        latency_ns: counted runs in the order in which they were taken, ``(runs,)``.
        start_ns: when each started, since the block's first run, ``(runs,)``.
        load_ns: duration of session creation.
        first_run_ns: duration of the very first inference.
    """

    model_id: str
    latency_ns: Nanoseconds
    start_ns: Nanoseconds
    load_ns: int = 0
    first_run_ns: int = 0
    failure: Failure | None = None

    @classmethod
    def failed(cls, model_id: str, kind: FailureKind, message: str) -> Measurement:
        empty = np.zeros(0, dtype=np.int64)
        return cls(model_id, empty, empty, failure=Failure(kind, message))

    def trimmed_mean_ms(self, trim: float) -> float:
        """Mean of the samples after dropping the fastest and slowest ``trim`` share of them.

        Raises:
            ValueError: there are no samples, because the model failed.
        """
        return trimmed_mean(self.latency_ns, trim) / 1e6


def trimmed_mean(samples: NDArray[np.int64], trim: float) -> float:
    """Mean without the ``floor(trim * n)`` smallest and largest of ``n`` samples (ESM, II-C).

    Raises:
        ValueError: there are no samples, or ``trim`` is not in [0, 0.5).
    """
    if samples.size == 0 or not 0 <= trim < 0.5:
        raise ValueError("a trimmed mean needs samples and a trim from 0 to below 0.5")
    # The tolerance keeps 0.2 * 150 at 30 whatever its binary expansion.
    drop = math.floor(trim * samples.size + 1e-9)
    return float(np.sort(samples)[drop : samples.size - drop].mean())


@dataclass(frozen=True)
class BlockResult:
    """What measuring a block gave, one measurement per model in the block's order.

    Attributes:
        busy_ns: from the first load to the last run.
        running_ns: of which inside inferences, counted or not.
    """

    block_id: str
    measurements: tuple[Measurement, ...]
    busy_ns: int
    running_ns: int
