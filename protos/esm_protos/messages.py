"""Messages between host and agent, as frozen dataclasses; :mod:`esm_protos.convert` encodes them.

Messages carry raw samples; statistics are derived from them. Measured times are integer
nanoseconds, displayed times float milliseconds. ESM is the paper that README.md cites (DAC 2025).

Terms (docs/measuring.md):

* Block: models that are measured together.
* Round: one visit of each model of a block.
* Visit: a few runs of one model in a row, uncounted ones first.
* Session: model loaded into the runtime.
* Lease: a client's right to have blocks measured, kept by renewals.
* Pace: speed of the device, which varies over time.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_protos import older_peers
from esm_protos.metrics import PEAK_MEMORY, Metric
from esm_protos.nearest import unknown
from esm_protos.providers import ProviderInfo
from esm_protos.session_settings import SessionSettings
from esm_protos.statistics import trimmed_mean

PROTOCOL_VERSION = 5
"""Protocol version, incremented when an older peer would misread new messages."""

CHUNK_BYTES = 1 << 20
"""Size of the chunks of an upload, well below gRPC's message limit of 4 MB."""

DEFAULT_PORT = 7343

ANNOUNCED_AS = "_esm-agent._tcp.local."
"""Service type of agents in mDNS."""

MAX_THREADS = 1024

SLOW_LOAD_NS = 500_000_000
"""Duration of a model's load and first run above which a block has one session of it."""

_TIMEOUTS = ("model_timeout_s", "load_timeout_s")

_MOST_OPTIONS = 1000


class RunOrder(enum.Enum):
    """Order of the runs of a block."""

    SEQUENTIAL = "sequential"
    """All runs of a model in a row (ESM, II-C)."""
    INTERLEAVED = "interleaved"
    """Models in memory together, visited in random order, a few runs per visit."""


class State(enum.Enum):
    """Current state of a block."""

    UPLOADING = "uploading"
    """The host is uploading files to the device's cache; the agent never reports this state."""
    QUEUED = "queued"
    PREPARING = "preparing"
    MEASURING = "measuring"


class FailureKind(enum.Enum):
    """Reason why a model has no latency."""

    INVALID_MODEL = "invalid_model"
    UNSUPPORTED_OP = "unsupported_op"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    TIMEOUT = "timeout"
    INVALID_INPUT = "invalid_input"
    """The model does not accept the given inputs or shapes."""


@dataclass(frozen=True)
class MeasureSpec:
    """Settings of a measurement. Latencies measured with different specs are not comparable.

    The defaults are ESM's 150 runs and 20 % trimmed at each end (ESM, II-C). Each visit has one
    counted run after two uncounted ones (docs/measuring.md).

    Attributes:
        run_order: Order of the runs; ``protocol`` in JSON and on the wire.
        runs: Number of counted runs per model; with a precision, the maximum.
        runs_per_visit: Number of counted runs in a row, the maximum with ``short_visits``;
            ``interleaved`` only.
        warmup: Maximum number of uncounted runs at the start of each visit. ``sequential``: exact
            number before all runs.
        trim: Share of the counted runs dropped at each end, below 0.5.
        threads: Number of threads of the runtime.
        seed: Random seed of the visiting order, the inputs and the weights of weightless graphs.
        provider: Execution provider, by its name in :attr:`DeviceInfo.providers`.
        provider_options: Values of the provider's options, by name; others have their default
            (:class:`esm_protos.providers.ProviderOption`).
        model_timeout_s: Time limit for one inference, seconds.
        load_timeout_s: Time limit for loading a model, seconds; providers that compile take long.
        precision: Target half-width of the 95 % interval, as a share of the latency; 0 sets no
            target. ``interleaved`` only.
        max_block_s: Time after which no new round begins, seconds; 0 sets no limit.
        min_block_s: Minimum time of rounds before a model is done, seconds. Shorter blocks miss
            the device's slow variation and give intervals that are too narrow.
        min_rounds: Minimum number of rounds, even after ``max_block_s``.
        short_visits: Whether visits of slow models have fewer runs, down to one. Several runs in a
            row only offset cold caches, which do not slow down these models.
        references: Whether to time the agent's built-in reference models, which give the device's
            current and usual pace; ``interleaved`` only.
        sessions: Number of sessions per model, one after the other. With a precision, it is the
            minimum, except that 1 never opens another. ``interleaved`` only. A model whose load
            and first run take more than ``SLOW_LOAD_NS`` has one.
        long_visits: Every this many rounds, visits continue uncounted until models are warm; 0:
            never. ``interleaved`` only.
        allow_fallback: Whether to measure models with nodes on another provider.
        session: Settings of the runtime's sessions; in JSON, each is a value of the spec.

    Raises:
        ValueError: a value is out of range.
    """

    run_order: RunOrder = RunOrder.INTERLEAVED
    runs: int = 150
    runs_per_visit: int = 1
    warmup: int = 2
    trim: float = 0.2
    threads: int = 1
    seed: int = 0
    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)
    model_timeout_s: float = 60.0
    load_timeout_s: float = 600.0
    precision: float = 0.0
    max_block_s: float = 0.0
    min_block_s: float = 0.0
    min_rounds: int = 0
    short_visits: bool = False
    references: bool = False
    sessions: int = 1
    long_visits: int = 0
    allow_fallback: bool = False
    session: SessionSettings = field(default_factory=SessionSettings)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("runs", 1, 1_000_000),
            ("runs_per_visit", 1, 1_000_000),
            ("warmup", 0, 100_000),
            ("min_rounds", 0, 1_000_000),
            ("threads", 1, MAX_THREADS),
            ("sessions", 1, 100),
            ("long_visits", 0, 1_000_000),
            ("seed", 0, 2**63 - 1),
        ):
            value: Any = getattr(self, name)
            if not isinstance(value, Integral):
                raise ValueError(f"{name} {value!r}: give a whole number")
            if not low <= int(value) <= high:
                raise ValueError(f"{name} {value} is outside {low} to {high}")
        numbers = ("trim", *_TIMEOUTS, "precision", "max_block_s", "min_block_s")
        for name in numbers:
            if not isinstance(value := getattr(self, name), Real):
                raise ValueError(f"{name} {value!r}: give a number")
        if not isinstance(self.provider, str):
            raise ValueError(f"provider {self.provider!r}: give the name of an execution provider")
        if not isinstance(self.session, SessionSettings):
            raise ValueError(f"session {self.session!r}: give SessionSettings")
        if not isinstance(self.provider_options, Mapping):
            raise ValueError(
                f"provider_options {self.provider_options!r}: give a dictionary of texts"
            )
        if not isinstance(self.run_order, RunOrder):
            known = " or ".join(f"RunOrder.{order.name}" for order in RunOrder)
            raise ValueError(f"run_order {self.run_order!r}: give {known}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim {self.trim:g} is outside 0 to below 0.5")
        for name in _TIMEOUTS:
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(f"{name} {getattr(self, name):g} is not above 0 and up to 86400")
        if not 0 <= self.precision < 1:
            raise ValueError(f"precision {self.precision:g} is outside 0 to below 1")
        if self.precision and self.run_order is RunOrder.SEQUENTIAL:
            raise ValueError("precision needs interleaved runs")
        if self.run_order is RunOrder.SEQUENTIAL and (self.references or self.sessions > 1):
            raise ValueError("references and sessions need interleaved runs")
        for name in ("max_block_s", "min_block_s"):
            if not 0 <= getattr(self, name) <= 86_400:
                raise ValueError(f"{name} {getattr(self, name):g} is outside 0 to 86400")
        own = dict(sorted(self.provider_options.items()))
        if len(own) > _MOST_OPTIONS:
            raise ValueError(f"{len(own)} provider_options: {_MOST_OPTIONS} at most")
        object.__setattr__(self, "provider_options", own)

    @property
    def execution(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Provider with its options, hashable."""
        return self.provider, tuple(self.provider_options.items())

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        fields = asdict(self)
        session = fields.pop("session")
        return {"protocol": fields.pop("run_order").value, **fields, **session}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasureSpec:
        """Return the spec that this or an older version wrote with :meth:`to_json`.

        Raises:
            TypeError: a field is unknown.
            ValueError: a value is out of range.
        """
        session, fields = SessionSettings.of(older_peers.spec_json(data))
        return cls(RunOrder(fields.pop("protocol", "interleaved")), **fields, session=session)


@dataclass(frozen=True)
class Limits:
    """Limits of an agent for one block.

    Attributes:
        max_block_bytes: Size of all models of a block.
        max_block_models: Number of models of a block.
        max_model_bytes: Size of one ONNX file.
        max_model_nodes: Number of nodes of one model.
        max_model_parameters: Number of elements in all initializers of one model.
        max_memory_bytes: Memory of the measuring process with all models of a block.
        max_block_s: Time after which a block is stopped, seconds.
        max_cache_bytes: Size of all files of a block; 0: the agent accepts none.
    """

    max_block_bytes: int
    max_block_models: int
    max_model_bytes: int = 2**31 - 1  # protobuf's own limit
    max_model_nodes: int = 100_000
    max_model_parameters: int = 10**10
    max_memory_bytes: int = 2**50
    max_block_s: float = 86_400.0
    max_cache_bytes: int = 0


@dataclass(frozen=True)
class Holder:
    """Holder of the device.

    Attributes:
        owner: User and host as stated by the host, ``"ada@workstation"``.
        purpose: Purpose as stated by the host, ``"profile resnet"``.
        client: Name of the client's token.
        held_s: Time since the holder got the device, seconds.
    """

    owner: str
    purpose: str
    client: str
    held_s: float


@dataclass(frozen=True)
class Standing:
    """Position of a lease in the queue.

    Attributes:
        ahead: Number of leases before it; 0: it holds the device.
        holder: Holder of the device; None if it is free.
        wait_s: Estimated waiting time, seconds.
        expires_s: Time until the lease expires unless it is renewed, seconds.
    """

    ahead: int
    holder: Holder | None
    wait_s: float
    expires_s: float


@dataclass(frozen=True)
class Occupancy:
    """Holder of the device and number of waiting leases; ``draining``: no new blocks accepted."""

    holder: Holder | None = None
    waiting: int = 0
    draining: bool = False


PI_THROTTLED_BITS = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Meanings of bits 0 to 3 of ``DeviceState.pi_throttled``, the current state. Bits 16 to 19 say
whether each has occurred since boot."""


@dataclass(frozen=True)
class GpuState:
    """State of one GPU at one moment; None or empty: unknown."""

    name: str
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceState:
    """State of a device at one moment; None or empty: unknown.

    Counters start with the device; the difference of two states covers the time between them.

    Attributes:
        at_ns: Time since the block's first run, negative before it.
        clock_mhz: Clock of each core.
        governors: Frequency governor of each core.
        temperature_c: Temperature.
        pi_throttled: Bits of a Raspberry Pi's ``vcgencmd get_throttled``.
        throttle_events: Counter of thermal throttling, x86.
        load_1min: Load average of one minute.
        busy_s: Counter of the processor time of all processes.
        own_s: Counter of the processor time of the measuring process.
        stolen_s: Counter of the processor time that the hypervisor gave to other machines.
        memory_available_bytes: Available memory.
        swap_used_bytes: Used swap space.
        swapped_pages: Counter of pages swapped in and out.
        cpu_periods: Counter of the control group's periods in which it ran.
        cpu_throttled_periods: Counter of periods in which the CPU quota stopped it.
        cpu_throttled_s: Counter of the time for which the CPU quota stopped it.
        gpus: State of each GPU.
    """

    at_ns: int
    clock_mhz: tuple[float, ...] = ()
    governors: tuple[str, ...] = ()
    temperature_c: float | None = None
    pi_throttled: int | None = None
    throttle_events: int | None = None
    load_1min: float | None = None
    busy_s: float | None = None
    own_s: float | None = None
    stolen_s: float | None = None
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    swapped_pages: int | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_s: float | None = None
    gpus: tuple[GpuState, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values, without unknown ones."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceState:
        """Return the state that :meth:`to_json` wrote."""
        gpus = tuple(
            GpuState(**{**gpu, "throttle_reasons": tuple(gpu["throttle_reasons"])})
            for gpu in data.get("gpus", ())
        )
        lists = {name: tuple(data.get(name, ())) for name in ("clock_mhz", "governors")}
        return cls(**{**data, **lists, "gpus": gpus})


@dataclass(frozen=True)
class EnergySensor:
    """Sensor of energy that an agent looked for.

    Attributes:
        name: Name, such as ``"RAPL package-0"``.
        covers: What it measures: ``"package"``, ``"board"``, ``"gpu"``, ``"battery"``, or the text
            of a user's class.
        resolution_j: Smallest step of its value, joules; 0: unknown.
        tick_s: Time between two new values, seconds; 0: unknown.
        problem: Reason why it does not work; empty if it does.
        fix: Remedy; empty if there is none.
    """

    name: str
    covers: str
    resolution_j: float = 0.0
    tick_s: float = 0.0
    problem: str = ""
    fix: str = ""

    @property
    def line(self) -> str:
        """Description on one line."""
        if self.problem:
            return f"{self.name}: {self.problem}" + (f": {self.fix}" if self.fix else "")
        about = [f"{self.name}: covers the {self.covers}"]
        about += [f"steps of {self.resolution_j:.3g} J"] if self.resolution_j else []
        about += [f"a value every {self.tick_s:.3g} s"] if self.tick_s else []
        return ", ".join(about)


NOT_FOUND = "not found"
"""Problem of a sensor that a device does not have."""


@dataclass(frozen=True)
class DeviceInfo:
    """Description of a device by its agent.

    Attributes:
        cpu_count: Number of processors that the agent may use.
        memory_bytes: Physical memory, or the limit of the agent's control group if it is lower.
        runtime: Name and version of the runtime.
        providers: Names of the execution providers that work.
        isolation: Names of the mechanisms that confine the measuring process.
        cpu_quota: CPU quota of the agent's control group, in processors; None: no limit.
        time_unix_s: Time of the device's clock; None: unknown.
        instance: Random name of the agent's process; empty: unknown.
        metrics: Metrics that the agent's sources measure.
        provider_table: Descriptions of the providers, in the same order.
        unusable_providers: Providers that were found and do not work, with the problem.
        session_settings: Whether the agent knows ``MeasureSpec.session``; older ones ignore it.
        energy_sensors: All sensors of energy that the agent looked for; empty: it cannot measure
            energy.
    """

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
    state: DeviceState
    occupancy: Occupancy = Occupancy()
    isolation: tuple[str, ...] = ()
    cpu_quota: float | None = None
    time_unix_s: float | None = None
    instance: str = ""
    metrics: tuple[Metric, ...] = ()
    provider_table: tuple[ProviderInfo, ...] = ()
    unusable_providers: tuple[ProviderInfo, ...] = ()
    session_settings: bool = False
    energy_sensors: tuple[EnergySensor, ...] = ()

    @property
    def processors(self) -> float:
        """Number of processors that models can use; a quota of 1.5 is 1.5 processors."""
        return min(self.cpu_count, self.cpu_quota or math.inf)

    def provider(self, name: str) -> ProviderInfo:
        """Return the description of a provider; only its name if unknown."""
        found = (each for each in self.provider_table if each.name == name)
        return next(found, ProviderInfo(name))

    def why_not(self, provider: str, where: str = "on the device") -> str:
        """Return why models cannot run on a provider, with the remedy; empty if they can."""
        if provider in self.providers:
            return ""
        for unusable in self.unusable_providers:
            if unusable.name == provider:
                return f"{unusable.line}: choose {', '.join(self.providers)}"
        choices = (
            f"choose {', '.join(self.providers)}; esm-agent providers {where} tells why others do "
            "not work"
        )
        return unknown("execution provider", provider, self.providers, where=where, choices=choices)

    def identity(self, provider: str = "cpu") -> dict[str, str | int]:
        """Return the facts that identify a device and provider.

        Latencies are comparable if these facts are equal.
        """
        names = ("hostname", "machine", "cpu_model", "cpu_count", "runtime")
        return {**{name: getattr(self, name) for name in names}, **self.provider(provider).identity}


@dataclass(frozen=True)
class File:
    """File of the agent's cache, named by its SHA-256; ``path`` is its place on the host."""

    sha256: bytes
    size_bytes: int
    path: Path | None = field(default=None, compare=False)

    def read_bytes(self) -> bytes:
        """Return the contents of the file on the host."""
        assert self.path is not None, "only files of the host have a path"
        return self.path.read_bytes()


@dataclass(frozen=True)
class Case:
    """Shapes, inputs and threads of one model of a block.

    Attributes:
        shapes: Dimensions of inputs, by name; free dimensions of other inputs become 1.
        inputs: Zip file of input values: ``NAME.npy`` as in an ``.npz``, or ``NAME.pb`` with an
            ONNX value. Missing inputs are random.
        threads: Number of threads of the runtime; 0: that of the block's spec.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    inputs: File | None = None
    threads: int = 0


@dataclass(frozen=True)
class Model:
    """Model to measure.

    Attributes:
        model_id: Name given by the client, unique in its block.
        data: ONNX bytes, sent with the block, or a file of the cache.
        case: Shapes, inputs and threads.
        external: Files with the model's external data, each with its location in the model.
    """

    model_id: str
    data: bytes | File
    case: Case = Case()
    external: tuple[tuple[str, File], ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """Files that must be in the cache before the model is measured."""
        own = (self.data, self.case.inputs, *(file for _, file in self.external))
        return tuple(file for file in own if isinstance(file, File))

    @property
    def size_bytes(self) -> int:
        """Size of the ONNX file, without external data."""
        return self.data.size_bytes if isinstance(self.data, File) else len(self.data)

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the ONNX file, without external data."""
        own = self.data
        return own.sha256 if isinstance(own, File) else hashlib.sha256(own).digest()


@dataclass(frozen=True)
class Block:
    """Models that are measured together.

    Attributes:
        block_id: Globally unique name given by the client.
        spec: Settings of the measurement.
        models: Models of the block.
        peak_memory: Whether to measure the memory of every model; they are then loaded one by one.
        profile_runs: Number of profiled runs per model, after all timing; 0 for none.
        energy_s: Time for measuring the energy of each model, after all timing, seconds; 0 for
            none.
        raw: Whether the precision of ``spec`` is that of latencies in the block, and not at the
            device's usual pace.
    """

    block_id: str
    spec: MeasureSpec
    models: tuple[Model, ...]
    peak_memory: bool = False
    profile_runs: int = 0
    energy_s: float = 0.0
    raw: bool = False


@dataclass(frozen=True)
class Progress:
    """Progress of a block.

    Attributes:
        state: Current state.
        fraction: Share of the state's work that is done, 0 to 1.
        standing: Position of the lease while the block is queued; else None.
        total_bytes: Size of an upload without files already in the cache; set by the host only.
    """

    state: State
    fraction: float
    standing: Standing | None = None
    total_bytes: int | None = None


@dataclass(frozen=True)
class Failure:
    """Failure of a model."""

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Input:
    """Type and shape of a model's input.

    Attributes:
        name: Name of the input.
        type: Name in numpy or, in lower case, in ONNX: ``"float32"``, ``"string"``,
            ``"bfloat16"``, ``"seq(float32)"``, ``"optional(int64)"``.
        dims: Dimensions; of a sequence, those of its tensors. Empty if they differ, and for an
            absent value.
    """

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class OperatorTime:
    """Time of all nodes of an operator per inference; ``calls`` counts them per inference."""

    op_type: str
    provider: str
    calls: int
    ns: float


@dataclass(frozen=True)
class NodeTime:
    """Time of one node per inference."""

    name: str
    op_type: str
    provider: str
    ns: float


@dataclass(frozen=True)
class Profile:
    """Times of operators and nodes, from the runtime's profiler.

    Attributes:
        runs: Number of profiled runs.
        operators: Times of all operators, slowest first.
        nodes: Times of nodes, slowest first; for a large model only the slowest nodes.
    """

    runs: int
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]


@dataclass(frozen=True)
class Energy:
    """Source and windows of a model's energy; its figures are in ``Measurement.metrics``.

    Attributes:
        source: Name of the sensor; empty if none works.
        covers: What the sensor measures.
        gross_mj: Energy per inference of each window of back-to-back inferences, millijoules.
        idle_mj: Energy of the idle device in the time of such an inference, millijoules.
        problem: Reason why the energy is unresolved or unknown; empty if it is stable.
        needs_s: ``Block.energy_s`` that would resolve it; 0: unknown.
    """

    source: str
    covers: str
    gross_mj: tuple[float, ...] = ()
    idle_mj: tuple[float, ...] = ()
    problem: str = ""
    needs_s: float = 0.0

    @property
    def verdict(self) -> str:
        """``"stable"`` or ``"unresolved"``."""
        return "unresolved" if self.problem else "stable"


MOST_ENERGY_S = 86_400.0
"""Largest valid ``Block.energy_s``."""

Nanoseconds = NDArray[np.int64]


def _none() -> Nanoseconds:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Samples of one model, or its failure.

    Attributes:
        model_id: Name of the model in its block.
        latency_ns: Latencies of the counted runs, in order of time, shape ``(runs,)``.
        start_ns: Start of each run since the block's first run, shape ``(runs,)``.
        load_ns: Duration of session creation.
        first_run_ns: Duration of the first inference.
        failure: Failure; None if the model was timed.
        copy_in_ns: Durations of separate copies of the inputs to the device's memory, which
            ``latency_ns`` does not include; empty if inputs need no copy.
        copy_out_ns: Durations of separate copies of the outputs to main memory.
        ran_on: Number of nodes on each provider; empty if not determined.
        fallback: Names of nodes on another provider than the requested one.
        inputs: Types and shapes of the inputs.
        metrics: Values of further metrics by key: those of the agent's sources, and peak memory
            if requested and known.
        profile: Profile; None if not requested.
        runs_per_visit: Number of counted runs of each visit; 0: that of the block's spec.
        weight_bytes: Size of the initializers; 0 if unknown.
        session_runs: Number of counted runs of each session, in order of time; empty for one.
        warming_ns: Trimmed means of a visit's uncounted runs, by position in the visit.
        warm_ns: Latency at the end of each long visit.
        threads_used: Processor time of the measuring process per time of the model's visits,
            spinning threads included; 0 if unknown.
        compiled: ``"cached"`` if ``load_ns`` is that of a model from the agent's cache of compiled
            models, ``"fresh"`` if it includes compiling for the cache; empty otherwise.
        energy: Source and windows of the energy; None if not requested.
    """

    model_id: str
    latency_ns: Nanoseconds
    start_ns: Nanoseconds
    load_ns: int = 0
    first_run_ns: int = 0
    failure: Failure | None = None
    copy_in_ns: Nanoseconds = field(default_factory=_none)
    copy_out_ns: Nanoseconds = field(default_factory=_none)
    ran_on: tuple[tuple[str, int], ...] = ()
    fallback: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    profile: Profile | None = None
    runs_per_visit: int = 0
    weight_bytes: int = 0
    session_runs: tuple[int, ...] = ()
    warming_ns: tuple[float, ...] = ()
    warm_ns: Nanoseconds = field(default_factory=_none)
    threads_used: float = 0.0
    compiled: str = ""
    energy: Energy | None = None

    @classmethod
    def failed(cls, model_id: str, kind: FailureKind, message: str) -> Measurement:
        """Return the measurement of a failed model."""
        return cls(model_id, _none(), _none(), failure=Failure(kind, message))

    @property
    def peak_rss_bytes(self) -> int | None:
        """Peak memory of a process with only this model, during loading and the first run.

        None if not requested or unknown.
        """
        value = self.metrics.get(PEAK_MEMORY.key)
        return None if value is None else round(value)

    def values(self) -> dict[str, float]:
        """Return all metrics besides latency, by key; none for a failed model."""
        if self.failure is not None:
            return {}
        copies = {"copy_in_ms": self.copy_in_ns, "copy_out_ms": self.copy_out_ns}
        return {
            "first_run_ms": self.first_run_ns / 1e6,
            "load_ms": self.load_ns / 1e6,
            **{key: float(np.median(taken)) / 1e6 for key, taken in copies.items() if taken.size},
            **({"weight_bytes": self.weight_bytes} if self.weight_bytes else {}),
            **({"threads_used": self.threads_used} if self.threads_used else {}),
            **self.metrics,
        }

    def visit_runs(self, spec: MeasureSpec) -> int:
        """Return the number of counted runs of each visit."""
        return self.runs_per_visit or spec.runs_per_visit

    def trimmed_mean_ms(self, trim: float) -> float:
        """Return the mean latency, ms, without the fastest and slowest ``trim`` share of samples.

        Raises:
            ValueError: there are no samples because the model failed.
        """
        return trimmed_mean(self.latency_ns, trim) / 1e6


SHORTEST_NS, LONGEST_NS = 1.0, 1e12
"""Smallest and largest valid latency of a reference model, ns."""
MOST_SPREAD = 1.0
"""Largest valid standard deviation of a log latency, a factor of 2.7.

No device varies more between moments; a larger value comes from a broken file or peer.
"""


@dataclass(frozen=True, eq=False)
class UsualLatencies:
    """Usual latencies of a device's reference models under the conditions of a block.

    They are averages over moments, which are windows of five minutes. The conditions are
    runtime, provider, threads and clock settings.

    Attributes:
        references: Names of the ``r`` models.
        latency_ns: Geometric mean over the middle half of the moments, shape ``(r,)``.
        spread: Standard deviation between moments, shape ``(r, r)``: of a log latency on the
            diagonal, of the difference of two log latencies elsewhere. At most
            :data:`MOST_SPREAD`.
        moments: Number of moments.
        span_s: Time from the first moment to the last, seconds.
        block_spread: As ``spread``, between single blocks and the usual latencies; None if
            unknown.
    """

    references: tuple[str, ...]
    latency_ns: NDArray[np.float64]
    spread: NDArray[np.float64]
    moments: int
    span_s: float
    block_spread: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for name in ("spread", "block_spread"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.minimum(given, MOST_SPREAD))

    def to_json(self) -> dict[str, Any]:
        """Return the usual latencies as JSON values."""
        return {
            "references": list(self.references),
            "latency_ms": (self.latency_ns / 1e6).tolist(),
            "spread": self.spread.tolist(),
            "moments": self.moments,
            "span_s": self.span_s,
            "block_spread": None if self.block_spread is None else self.block_spread.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UsualLatencies:
        """Return what this or an older version wrote with :meth:`to_json`."""
        of_blocks = data.get("block_spread")
        return cls(
            tuple(data["references"]),
            1e6 * np.array(data["latency_ms"], dtype=np.float64),
            np.array(data["spread"], dtype=np.float64),
            data["moments"],
            data["span_s"],
            None if of_blocks is None else np.array(of_blocks, dtype=np.float64),
        )


@dataclass(frozen=True)
class BlockResult:
    """Result of a block.

    Attributes:
        block_id: Name of the block.
        measurements: Measurement of each model, in the block's order.
        busy_ns: Time from the first load to the last run, those of profiles and energy included.
        running_ns: Time inside inferences, counted or not.
        states: States of the device before, during (about one per second) and after the block.
        references: Measurements of the agent's reference models; empty if not requested.
        usual: Usual latencies of the reference models; None without history.
        references_problem: Reason why there are no reference models; empty if there are, or if it
            is unknown.
        history_problem: Reason why the agent cannot store their latencies; empty if it can.
    """

    block_id: str
    measurements: tuple[Measurement, ...]
    busy_ns: int
    running_ns: int
    states: tuple[DeviceState, ...] = ()
    references: tuple[Measurement, ...] = ()
    usual: UsualLatencies | None = None
    references_problem: str = ""
    history_problem: str = ""


class Severity(enum.Enum):
    """Severity of a finding."""

    OK = "ok"
    UNKNOWN = "unknown"
    """The device gives no information."""
    ADVICE = "advice"
    UNFIT = "unfit"
    """Latencies measured now are unreliable."""


@dataclass(frozen=True)
class Finding:
    """Result of one check; ``fix`` is empty if nothing needs to be done."""

    check: str
    severity: Severity
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Result of the doctor."""

    findings: tuple[Finding, ...]

    @property
    def fit(self) -> bool:
        """Whether the device is currently fit to measure."""
        return all(finding.severity is not Severity.UNFIT for finding in self.findings)
