"""What host and agent say to each other, as frozen values; :mod:`esm_protos.convert` sends them.

Raw samples are kept, statistics are derived from them. Times are integer nanoseconds where they
were measured and float milliseconds where people read them.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_protos import older_peers
from esm_protos.metrics import PEAK_MEMORY, Metric
from esm_protos.providers import ProviderInfo
from esm_protos.statistics import trimmed_mean

PROTOCOL_VERSION = 5
"""Raised when an old peer would misread what a new one says."""

CHUNK_BYTES = 1 << 20
"""Models travel in pieces of this size, well below gRPC's 4 MB message limit."""

DEFAULT_PORT = 7343

ANNOUNCED_AS = "_esm-agent._tcp.local."
"""What agents are called in mDNS."""

MAX_THREADS = 1024

_MOST_OPTIONS = 1000


class RunOrder(enum.Enum):
    """How the runs of a block are ordered."""

    SEQUENTIAL = "sequential"
    """All runs of a model in a row (ESM, II-C)."""
    INTERLEAVED = "interleaved"
    """Models in memory together, visited in random order, a few runs per visit."""


class State(enum.Enum):
    """What becomes of a block at the moment."""

    UPLOADING = "uploading"
    """Its files are on their way to the device's cache; the host knows, the agent does not."""
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
    INVALID_INPUT = "invalid_input"
    """The model does not take the inputs or shapes that were given."""


@dataclass(frozen=True)
class MeasureSpec:
    """How a block is measured. Numbers taken with different specs are not comparable.

    The defaults are ESM's 150 runs and 20 % trimmed at each end (ESM, II-C), taken in visits of
    one run after two uncounted ones (docs/measuring.md says what more of them would change).

    Attributes:
        runs: counted runs per model; with a precision, the most.
        runs_per_visit: counted runs in a row; ``interleaved`` only. With ``short_visits``, the
            most.
        warmup: uncounted runs before each visit, at most: a slow model needs fewer to be warm
            (``sequential``: before all runs, exactly).
        trim: share of the counted runs dropped at each end, below 0.5.
        threads: threads of the runtime.
        seed: of the visiting order, the inputs and the weights of weightless graphs.
        provider: execution provider, by its name in :attr:`DeviceInfo.providers`.
        provider_options: values of the provider's own options, by name; others have their default
            (:class:`esm_protos.providers.ProviderOption`).
        model_timeout_s: longest time that loading a model or one inference may take, seconds.
        precision: a model is done when the half-width of its 95 % interval is below this share
            of its latency; 0 takes exactly ``runs``. ``interleaved`` only.
        max_block_s: no new round begins after so many seconds of rounds; 0 sets no limit.
        min_block_s: with a precision, no model is done before so many seconds of rounds; what is
            too short to meet the device's ups and downs looks tighter than it is.
        min_rounds: rounds that are made even after ``max_block_s``.
        references: time the agent's own reference models along, which tell how the device fares
            now and how it usually does; ``interleaved`` only.
        sessions: sessions of each model in turn, each opened anew; with a precision, more follow
            while the block goes on, unless it is 1. ``interleaved`` only.
        long_visits: in every so many rounds visits go on, uncounted, until models are warm; 0:
            never; ``interleaved`` only.
        short_visits: visits of slow models have fewer runs, down to one: several in a row only
            make up for cold caches, which cost a slow model nothing.
        allow_fallback: measure also a model of which some nodes run on another provider.

    Raises:
        ValueError: a value is out of range.
    """

    protocol: RunOrder = RunOrder.INTERLEAVED
    runs: int = 150
    runs_per_visit: int = 1
    warmup: int = 2
    trim: float = 0.2
    threads: int = 1
    seed: int = 0
    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)
    model_timeout_s: float = 60.0
    precision: float = 0.0
    max_block_s: float = 0.0
    min_block_s: float = 0.0
    min_rounds: int = 0
    short_visits: bool = False
    references: bool = False
    sessions: int = 1
    long_visits: int = 0
    allow_fallback: bool = False

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
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)} is outside {low} to {high}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim {self.trim:g} is outside 0 to below 0.5")
        if not 0 < self.model_timeout_s <= 86_400:
            raise ValueError(
                f"model_timeout_s {self.model_timeout_s:g} is not above 0 and up to 86400"
            )
        if not 0 <= self.precision < 1:
            raise ValueError(f"precision {self.precision:g} is outside 0 to below 1")
        if self.precision and self.protocol is RunOrder.SEQUENTIAL:
            raise ValueError("precision needs the interleaved protocol: its unit is the round")
        if self.protocol is RunOrder.SEQUENTIAL and (self.references or self.sessions > 1):
            raise ValueError("references and sessions need the interleaved protocol")
        for name in ("max_block_s", "min_block_s"):
            if not 0 <= getattr(self, name) <= 86_400:
                raise ValueError(f"{name} {getattr(self, name):g} is outside 0 to 86400")
        own = dict(sorted(self.provider_options.items()))
        if len(own) > _MOST_OPTIONS:
            raise ValueError(f"provider_options of {len(own)} names: {_MOST_OPTIONS} at most")
        object.__setattr__(self, "provider_options", own)

    @property
    def execution(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The provider with its options, hashable."""
        return self.provider, tuple(self.provider_options.items())

    def to_json(self) -> dict[str, Any]:
        """As plain values, the protocol by name."""
        return {**asdict(self), "protocol": self.protocol.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasureSpec:
        """Inverse of :meth:`to_json`, also of what older versions wrote.

        Raises:
            TypeError: a field is unknown.
            ValueError: a value is out of range.
        """
        fields = older_peers.spec_json(data)
        return cls(**{**fields, "protocol": RunOrder(fields.get("protocol", "interleaved"))})


@dataclass(frozen=True)
class Limits:
    """What an agent accepts in one block.

    Attributes:
        max_block_bytes: of all models of a block together.
        max_model_bytes: of one ONNX file.
        max_model_parameters: numbers in all initializers of one model.
        max_memory_bytes: of the measuring process with all models of a block.
        max_block_s: a block that takes longer is broken off.
        max_cache_bytes: all files of a block together; 0: the agent takes none.
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
    """Who holds the device.

    Attributes:
        owner: as its host says it, ``"ada@workstation"``.
        purpose: likewise, ``"profile resnet"``.
        client: whom the agent knows it as: its token's name.
    """

    owner: str
    purpose: str
    client: str
    held_s: float


@dataclass(frozen=True)
class Standing:
    """Where a lease stands in the queue.

    Attributes:
        ahead: leases before it; with 0 it holds the device.
        holder: who holds the device.
        wait_s: about how long until its turn.
        expires_s: when it is gone unless it is renewed.
    """

    ahead: int
    holder: Holder | None
    wait_s: float
    expires_s: float


@dataclass(frozen=True)
class Occupancy:
    """Who has the device and how many wait; ``draining`` agents take no more blocks."""

    holder: Holder | None = None
    waiting: int = 0
    draining: bool = False


PI_THROTTLED_BITS = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""What the low bits of ``DeviceState.pi_throttled`` say of now; 16 higher, of what has been."""


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; None and empty where it does not tell."""

    name: str
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceState:
    """What a device said of itself at one moment; None and empty where it does not tell.

    Counters count since the device started: two states give what happened between them.

    Attributes:
        at_ns: since the block's first run, negative before it.
        clock_mhz: of each core.
        governors: frequency governor of each core.
        pi_throttled: bits of a Raspberry Pi's ``vcgencmd get_throttled``.
        throttle_events: counter of thermal throttling, x86.
        busy_s: counter of processor time, everybody's.
        own_s: counter of processor time, the measuring process's.
        stolen_s: counter of processor time that the hypervisor gave to others.
        swapped_pages: counter, in and out.
        cpu_periods: counter of the control group's periods in which it ran.
        cpu_throttled_periods: counter of those in which its CPU quota stopped it.
        cpu_throttled_s: counter of the time for which its CPU quota stopped it.
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
        """Without what the device does not tell."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceState:
        """Inverse of :meth:`to_json`, also after a passage through JSON."""
        gpus = tuple(
            GpuState(**{**gpu, "throttle_reasons": tuple(gpu["throttle_reasons"])})
            for gpu in data.get("gpus", ())
        )
        lists = {name: tuple(data.get(name, ())) for name in ("clock_mhz", "governors")}
        return cls(**{**data, **lists, "gpus": gpus})


@dataclass(frozen=True)
class DeviceInfo:
    """The device as its agent sees it.

    Attributes:
        cpu_count: processors that the agent may use.
        memory_bytes: physical memory, or the limit of the agent's control group if it is lower.
        isolation: names of what confines the measuring process.
        cpu_quota: processors' worth of time that the agent's control group gets; None: no limit.
        time_unix_s: what its clock says; None: it does not tell.
        instance: random name of the agent's process; empty: it does not tell.
        metrics: what its sources measure of models.
        providers: names of the execution providers that work.
        provider_table: what they are, in the same order.
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

    @property
    def processors(self) -> float:
        """Processors that models can use at a time: a quota of 1.5 is 1.5 processors."""
        return min(self.cpu_count, self.cpu_quota or math.inf)

    def provider(self, name: str) -> ProviderInfo:
        """Return what the device tells of a provider: at least its name."""
        found = (each for each in self.provider_table if each.name == name)
        return next(found, ProviderInfo(name))

    def identity(self, provider: str = "cpu") -> dict[str, str | int]:
        """What must be equal for two measurements by a provider to be of the same device."""
        names = ("hostname", "machine", "cpu_model", "cpu_count", "runtime")
        return {**{name: getattr(self, name) for name in names}, **self.provider(provider).identity}


@dataclass(frozen=True)
class File:
    """A file as the agent's cache names it; ``path`` is where the host has it, if it does."""

    sha256: bytes
    size_bytes: int
    path: Path | None = field(default=None, compare=False)

    def read_bytes(self) -> bytes:
        """All of it, from where the host has it."""
        assert self.path is not None, "only the host has it by path"
        return self.path.read_bytes()


@dataclass(frozen=True)
class Case:
    """How one model is run, where that is not the same for all models of a block.

    Attributes:
        shapes: dimensions of inputs, by name; a free dimension of others is taken as 1.
        inputs: a zip of values by their input's name, ``NAME.npy`` as in an ``.npz`` or ``NAME.pb``
            of an ONNX value; inputs that it lacks are drawn.
        threads: of the runtime; 0 takes those of the block's spec.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    inputs: File | None = None
    threads: int = 0


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        model_id: the client's name for it, unique in its block.
        data: ONNX bytes, which travel with the block, or a file for the cache.
        external: files that the model keeps data in, by the location that it names.
    """

    model_id: str
    data: bytes | File
    case: Case = Case()
    external: tuple[tuple[str, File], ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """All that have to lie in the cache before it is measured."""
        own = (self.data, self.case.inputs, *(file for _, file in self.external))
        return tuple(file for file in own if isinstance(file, File))

    @property
    def size_bytes(self) -> int:
        """Of the ONNX file, without external data."""
        return self.data.size_bytes if isinstance(self.data, File) else len(self.data)

    @property
    def sha256(self) -> bytes:
        """Of the ONNX file, without external data."""
        own = self.data
        return own.sha256 if isinstance(own, File) else hashlib.sha256(own).digest()


@dataclass(frozen=True)
class Block:
    """Models that are measured together. The id is the client's, and unique for all time.

    Attributes:
        peak_memory: tell how much memory every model takes: they are loaded one by one.
        profile_runs: profile every model for so many runs, after all of them were timed.
    """

    block_id: str
    spec: MeasureSpec
    models: tuple[Model, ...]
    peak_memory: bool = False
    profile_runs: int = 0


@dataclass(frozen=True)
class Progress:
    """``fraction`` (0 to 1) of the work of ``state``; while it is queued, its lease's standing.

    ``total_bytes`` are those of an upload, without what the device has; only the host knows them.
    """

    state: State
    fraction: float
    standing: Standing | None = None
    total_bytes: int | None = None


@dataclass(frozen=True)
class Failure:
    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Input:
    """Input as it was fed.

    Attributes:
        type: numpy's name or ONNX's in lower case: ``"float32"``, ``"string"``, ``"bfloat16"``,
            ``"seq(float32)"``, ``"optional(int64)"``.
        dims: of a sequence, those of its tensors; empty if they differ, and for an absent value.
    """

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class OperatorTime:
    """What all nodes of an operator take of an inference; ``calls`` per inference."""

    op_type: str
    provider: str
    calls: int
    ns: float


@dataclass(frozen=True)
class NodeTime:
    """What one node takes of an inference."""

    name: str
    op_type: str
    provider: str
    ns: float


@dataclass(frozen=True)
class Profile:
    """Where an inference's time goes, as the runtime itself told it in ``runs`` runs of their own.

    Attributes:
        operators: all of them, slowest first.
        nodes: slowest first; of a large model only the slowest.
    """

    runs: int
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]


Nanoseconds = NDArray[np.int64]


def _none() -> Nanoseconds:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What measuring one model gave: samples, or a failure.

    Attributes:
        latency_ns: counted runs in the order in which they were taken, ``(runs,)``.
        start_ns: when each started, since the block's first run, ``(runs,)``.
        load_ns: duration of session creation.
        first_run_ns: duration of the very first inference.
        copy_in_ns: some crossings of the inputs to the device's memory, by themselves; empty
            where there is nothing to cross. ``latency_ns`` is without them.
        copy_out_ns: likewise of the outputs.
        ran_on: how many nodes the runtime assigned to each provider; empty where nobody asked.
        fallback: names of nodes that ran on another provider than the one asked for.
        inputs: as they were fed.
        metrics: further values by their metrics' keys: what sources of the agent measured, and
            peak memory where somebody asked and the device tells.
        profile: None where nobody asked.
        runs_per_visit: counted runs of each visit; 0: those of the block's spec.
        weight_bytes: of its initializers; 0 where the agent does not tell.
        session_runs: counted runs of each of its sessions, in the order of time; empty for one.
        warming_ns: trimmed means of a visit's uncounted runs, by their place in the visit.
        warm_ns: latency at the end of each long visit.
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

    @classmethod
    def failed(cls, model_id: str, kind: FailureKind, message: str) -> Measurement:
        return cls(model_id, _none(), _none(), failure=Failure(kind, message))

    @property
    def peak_rss_bytes(self) -> int | None:
        """Most that a process with this model alone had in memory while it was loaded and first
        run; None where nobody asked or the device does not tell."""
        value = self.metrics.get(PEAK_MEMORY.key)
        return None if value is None else round(value)

    def values(self) -> dict[str, float]:
        """Return what was measured beside latency, by the metrics' keys; nothing of a failure."""
        if self.failure is not None:
            return {}
        copies = {"copy_in_ms": self.copy_in_ns, "copy_out_ms": self.copy_out_ns}
        return {
            "first_run_ms": self.first_run_ns / 1e6,
            "load_ms": self.load_ns / 1e6,
            **{key: float(np.median(taken)) / 1e6 for key, taken in copies.items() if taken.size},
            **({"weight_bytes": self.weight_bytes} if self.weight_bytes else {}),
            **self.metrics,
        }

    def visit_runs(self, spec: MeasureSpec) -> int:
        """Return the number of counted runs of each visit."""
        return self.runs_per_visit or spec.runs_per_visit

    def trimmed_mean_ms(self, trim: float) -> float:
        """Mean of the samples after dropping the fastest and slowest ``trim`` share of them.

        Raises:
            ValueError: there are no samples, because the model failed.
        """
        return trimmed_mean(self.latency_ns, trim) / 1e6


SHORTEST_NS, LONGEST_NS = 1.0, 1e12
"""Latencies of a reference model that make sense, up to 1000 s."""
MOST_SPREAD = 1.0
"""Standard deviation of a logarithm, a factor of 2.7. No device varies by more between moments:
a file or a peer that says so is broken."""


@dataclass(frozen=True, eq=False)
class Usual:
    """What an agent remembers of its reference models under the conditions of a block: the same
    runtime, provider, threads and clock settings.

    Attributes:
        references: names of the models, ``(r,)``.
        latency_ns: mean of the middle half of the moments, of logarithms, ``(r,)``.
        spread: standard deviation between moments, ``(r, r)``: of the logarithm of a latency on
            the diagonal, of the difference of two logarithms elsewhere; :data:`MOST_SPREAD` at
            most.
        moments: number of moments of five minutes.
        span_s: from the first moment to the last.
        block_spread: as ``spread``, of single blocks against what is usual; None where that is not
            known.
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
        return {
            "references": list(self.references),
            "latency_ms": (self.latency_ns / 1e6).tolist(),
            "spread": self.spread.tolist(),
            "moments": self.moments,
            "span_s": self.span_s,
            "block_spread": None if self.block_spread is None else self.block_spread.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usual:
        """Inverse of :meth:`to_json`, of older versions too."""
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
    """What measuring a block gave, one measurement per model in the block's order.

    Attributes:
        busy_ns: from the first load to the last run.
        running_ns: of which inside inferences, counted or not.
        states: of the device before, during (about one a second) and after the block.
        references: the agent's reference models, timed along; empty where nobody asked.
        usual: what is usual for them; None where the agent remembers nothing.
        no_references: why none were timed that were asked for; empty where it does not tell.
        no_history: why the agent cannot remember them; empty where it can.
    """

    block_id: str
    measurements: tuple[Measurement, ...]
    busy_ns: int
    running_ns: int
    states: tuple[DeviceState, ...] = ()
    references: tuple[Measurement, ...] = ()
    usual: Usual | None = None
    no_references: str = ""
    no_history: str = ""


class Severity(enum.Enum):
    """How much a finding matters."""

    OK = "ok"
    UNKNOWN = "unknown"
    """The device does not tell."""
    ADVICE = "advice"
    UNFIT = "unfit"
    """Numbers taken now are not worth much."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``fix`` is empty where nothing is to be done."""

    check: str
    severity: Severity
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a device's doctor found."""

    findings: tuple[Finding, ...]

    @property
    def fit(self) -> bool:
        """Whether the device can measure as it is now."""
        return all(finding.severity is not Severity.UNFIT for finding in self.findings)
