from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROTOCOL_UNSPECIFIED: _ClassVar[Protocol]
    PROTOCOL_SEQUENTIAL: _ClassVar[Protocol]
    PROTOCOL_INTERLEAVED: _ClassVar[Protocol]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_PLAIN: _ClassVar[Encoding]
    ENCODING_ZLIB: _ClassVar[Encoding]
    ENCODING_CACHED: _ClassVar[Encoding]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_QUEUED: _ClassVar[State]
    STATE_PREPARING: _ClassVar[State]
    STATE_MEASURING: _ClassVar[State]
    STATE_UPLOADING: _ClassVar[State]

class FailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_KIND_UNSPECIFIED: _ClassVar[FailureKind]
    FAILURE_KIND_INVALID_MODEL: _ClassVar[FailureKind]
    FAILURE_KIND_UNSUPPORTED_OP: _ClassVar[FailureKind]
    FAILURE_KIND_OUT_OF_MEMORY: _ClassVar[FailureKind]
    FAILURE_KIND_CRASH: _ClassVar[FailureKind]
    FAILURE_KIND_TIMEOUT: _ClassVar[FailureKind]
    FAILURE_KIND_INVALID_INPUT: _ClassVar[FailureKind]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_OK: _ClassVar[Severity]
    SEVERITY_UNKNOWN: _ClassVar[Severity]
    SEVERITY_ADVICE: _ClassVar[Severity]
    SEVERITY_UNFIT: _ClassVar[Severity]
PROTOCOL_UNSPECIFIED: Protocol
PROTOCOL_SEQUENTIAL: Protocol
PROTOCOL_INTERLEAVED: Protocol
ENCODING_UNSPECIFIED: Encoding
ENCODING_PLAIN: Encoding
ENCODING_ZLIB: Encoding
ENCODING_CACHED: Encoding
STATE_UNSPECIFIED: State
STATE_QUEUED: State
STATE_PREPARING: State
STATE_MEASURING: State
STATE_UPLOADING: State
FAILURE_KIND_UNSPECIFIED: FailureKind
FAILURE_KIND_INVALID_MODEL: FailureKind
FAILURE_KIND_UNSUPPORTED_OP: FailureKind
FAILURE_KIND_OUT_OF_MEMORY: FailureKind
FAILURE_KIND_CRASH: FailureKind
FAILURE_KIND_TIMEOUT: FailureKind
FAILURE_KIND_INVALID_INPUT: FailureKind
SEVERITY_UNSPECIFIED: Severity
SEVERITY_OK: Severity
SEVERITY_UNKNOWN: Severity
SEVERITY_ADVICE: Severity
SEVERITY_UNFIT: Severity

class GetDeviceInfoRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("protocol_version", "agent_version", "hostname", "machine", "cpu_model", "cpu_count", "memory_bytes", "os", "python_version", "runtime", "providers", "limits", "state", "occupancy", "isolation", "cpu_quota", "time_unix_s", "instance", "metrics", "provider_table", "unusable_providers", "session_settings", "energy_sensors")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    CPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OCCUPANCY_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    CPU_QUOTA_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_TABLE_FIELD_NUMBER: _ClassVar[int]
    UNUSABLE_PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    SESSION_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_SENSORS_FIELD_NUMBER: _ClassVar[int]
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
    providers: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    state: DeviceState
    occupancy: Occupancy
    isolation: _containers.RepeatedScalarFieldContainer[str]
    cpu_quota: float
    time_unix_s: float
    instance: str
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    provider_table: _containers.RepeatedCompositeFieldContainer[Provider]
    unusable_providers: _containers.RepeatedCompositeFieldContainer[Provider]
    session_settings: bool
    energy_sensors: _containers.RepeatedCompositeFieldContainer[EnergySensor]
    def __init__(self, protocol_version: _Optional[int] = ..., agent_version: _Optional[str] = ..., hostname: _Optional[str] = ..., machine: _Optional[str] = ..., cpu_model: _Optional[str] = ..., cpu_count: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., os: _Optional[str] = ..., python_version: _Optional[str] = ..., runtime: _Optional[str] = ..., providers: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., state: _Optional[_Union[DeviceState, _Mapping]] = ..., occupancy: _Optional[_Union[Occupancy, _Mapping]] = ..., isolation: _Optional[_Iterable[str]] = ..., cpu_quota: _Optional[float] = ..., time_unix_s: _Optional[float] = ..., instance: _Optional[str] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., provider_table: _Optional[_Iterable[_Union[Provider, _Mapping]]] = ..., unusable_providers: _Optional[_Iterable[_Union[Provider, _Mapping]]] = ..., session_settings: bool = ..., energy_sensors: _Optional[_Iterable[_Union[EnergySensor, _Mapping]]] = ...) -> None: ...

class EnergySensor(_message.Message):
    __slots__ = ("name", "covers", "resolution_j", "tick_s", "problem", "fix")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COVERS_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_J_FIELD_NUMBER: _ClassVar[int]
    TICK_S_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    name: str
    covers: str
    resolution_j: float
    tick_s: float
    problem: str
    fix: str
    def __init__(self, name: _Optional[str] = ..., covers: _Optional[str] = ..., resolution_j: _Optional[float] = ..., tick_s: _Optional[float] = ..., problem: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

class Provider(_message.Message):
    __slots__ = ("name", "runtime_name", "options", "identity", "may_fall_back", "version", "vendor", "kind", "problem", "open_options", "threads_option", "chooses_threads")
    class IdentityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    MAY_FALL_BACK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    OPEN_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    THREADS_OPTION_FIELD_NUMBER: _ClassVar[int]
    CHOOSES_THREADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    runtime_name: str
    options: _containers.RepeatedCompositeFieldContainer[ProviderOption]
    identity: _containers.ScalarMap[str, str]
    may_fall_back: bool
    version: str
    vendor: str
    kind: str
    problem: str
    open_options: bool
    threads_option: str
    chooses_threads: bool
    def __init__(self, name: _Optional[str] = ..., runtime_name: _Optional[str] = ..., options: _Optional[_Iterable[_Union[ProviderOption, _Mapping]]] = ..., identity: _Optional[_Mapping[str, str]] = ..., may_fall_back: bool = ..., version: _Optional[str] = ..., vendor: _Optional[str] = ..., kind: _Optional[str] = ..., problem: _Optional[str] = ..., open_options: bool = ..., threads_option: _Optional[str] = ..., chooses_threads: bool = ...) -> None: ...

class ProviderOption(_message.Message):
    __slots__ = ("name", "type", "default", "help", "choices")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    default: str
    help: str
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., default: _Optional[str] = ..., help: _Optional[str] = ..., choices: _Optional[_Iterable[str]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("key", "unit", "about", "kind", "aggregate", "format", "better", "heading", "title", "shown")
    KEY_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    BETTER_FIELD_NUMBER: _ClassVar[int]
    HEADING_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    key: str
    unit: str
    about: str
    kind: str
    aggregate: str
    format: str
    better: str
    heading: str
    title: str
    shown: str
    def __init__(self, key: _Optional[str] = ..., unit: _Optional[str] = ..., about: _Optional[str] = ..., kind: _Optional[str] = ..., aggregate: _Optional[str] = ..., format: _Optional[str] = ..., better: _Optional[str] = ..., heading: _Optional[str] = ..., title: _Optional[str] = ..., shown: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_block_bytes", "max_block_models", "max_model_bytes", "max_model_nodes", "max_model_parameters", "max_memory_bytes", "max_block_s", "max_cache_bytes")
    MAX_BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCK_MODELS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_NODES_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCK_S_FIELD_NUMBER: _ClassVar[int]
    MAX_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_block_bytes: int
    max_block_models: int
    max_model_bytes: int
    max_model_nodes: int
    max_model_parameters: int
    max_memory_bytes: int
    max_block_s: float
    max_cache_bytes: int
    def __init__(self, max_block_bytes: _Optional[int] = ..., max_block_models: _Optional[int] = ..., max_model_bytes: _Optional[int] = ..., max_model_nodes: _Optional[int] = ..., max_model_parameters: _Optional[int] = ..., max_memory_bytes: _Optional[int] = ..., max_block_s: _Optional[float] = ..., max_cache_bytes: _Optional[int] = ...) -> None: ...

class Occupancy(_message.Message):
    __slots__ = ("holder", "waiting", "draining")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    holder: Holder
    waiting: int
    draining: bool
    def __init__(self, holder: _Optional[_Union[Holder, _Mapping]] = ..., waiting: _Optional[int] = ..., draining: bool = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("owner", "purpose", "client", "held_s")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    owner: str
    purpose: str
    client: str
    held_s: float
    def __init__(self, owner: _Optional[str] = ..., purpose: _Optional[str] = ..., client: _Optional[str] = ..., held_s: _Optional[float] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("protocol_version", "lease_id", "owner", "purpose", "no_wait")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    NO_WAIT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    lease_id: str
    owner: str
    purpose: str
    no_wait: bool
    def __init__(self, protocol_version: _Optional[int] = ..., lease_id: _Optional[str] = ..., owner: _Optional[str] = ..., purpose: _Optional[str] = ..., no_wait: bool = ...) -> None: ...

class LeaseReply(_message.Message):
    __slots__ = ("standing",)
    STANDING_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("ahead", "holder", "wait_s", "expires_s")
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    ahead: int
    holder: Holder
    wait_s: float
    expires_s: float
    def __init__(self, ahead: _Optional[int] = ..., holder: _Optional[_Union[Holder, _Mapping]] = ..., wait_s: _Optional[float] = ..., expires_s: _Optional[float] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("protocol_version", "lease_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    lease_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., lease_id: _Optional[str] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceState(_message.Message):
    __slots__ = ("at_ns", "clock_mhz", "governors", "temperature_c", "pi_throttled", "throttle_events", "load_1min", "busy_s", "own_s", "stolen_s", "memory_available_bytes", "swap_used_bytes", "swapped_pages", "gpus", "cpu_periods", "cpu_throttled_periods", "cpu_throttled_s")
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    GOVERNORS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    PI_THROTTLED_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_1MIN_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    OWN_S_FIELD_NUMBER: _ClassVar[int]
    STOLEN_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAP_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_PAGES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CPU_PERIODS_FIELD_NUMBER: _ClassVar[int]
    CPU_THROTTLED_PERIODS_FIELD_NUMBER: _ClassVar[int]
    CPU_THROTTLED_S_FIELD_NUMBER: _ClassVar[int]
    at_ns: int
    clock_mhz: _containers.RepeatedScalarFieldContainer[float]
    governors: _containers.RepeatedScalarFieldContainer[str]
    temperature_c: float
    pi_throttled: int
    throttle_events: int
    load_1min: float
    busy_s: float
    own_s: float
    stolen_s: float
    memory_available_bytes: int
    swap_used_bytes: int
    swapped_pages: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuState]
    cpu_periods: int
    cpu_throttled_periods: int
    cpu_throttled_s: float
    def __init__(self, at_ns: _Optional[int] = ..., clock_mhz: _Optional[_Iterable[float]] = ..., governors: _Optional[_Iterable[str]] = ..., temperature_c: _Optional[float] = ..., pi_throttled: _Optional[int] = ..., throttle_events: _Optional[int] = ..., load_1min: _Optional[float] = ..., busy_s: _Optional[float] = ..., own_s: _Optional[float] = ..., stolen_s: _Optional[float] = ..., memory_available_bytes: _Optional[int] = ..., swap_used_bytes: _Optional[int] = ..., swapped_pages: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuState, _Mapping]]] = ..., cpu_periods: _Optional[int] = ..., cpu_throttled_periods: _Optional[int] = ..., cpu_throttled_s: _Optional[float] = ...) -> None: ...

class GpuState(_message.Message):
    __slots__ = ("name", "clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "throttle_reasons")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_REASONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    clock_mhz: float
    memory_clock_mhz: float
    temperature_c: float
    power_w: float
    throttle_reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., clock_mhz: _Optional[float] = ..., memory_clock_mhz: _Optional[float] = ..., temperature_c: _Optional[float] = ..., power_w: _Optional[float] = ..., throttle_reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("sha256", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size_bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("protocol_version", "lease_id", "files")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    lease_id: str
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, protocol_version: _Optional[int] = ..., lease_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class OfferReply(_message.Message):
    __slots__ = ("missing",)
    MISSING_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedCompositeFieldContainer[Missing]
    def __init__(self, missing: _Optional[_Iterable[_Union[Missing, _Mapping]]] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("file", "have_bytes", "nonce")
    FILE_FIELD_NUMBER: _ClassVar[int]
    HAVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    file: int
    have_bytes: int
    nonce: bytes
    def __init__(self, file: _Optional[int] = ..., have_bytes: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("protocol_version", "lease_id", "file", "offset", "proof")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    lease_id: str
    file: File
    offset: int
    proof: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., lease_id: _Optional[str] = ..., file: _Optional[_Union[File, _Mapping]] = ..., offset: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeasureSpec(_message.Message):
    __slots__ = ("protocol", "runs", "runs_per_visit", "warmup", "trim", "threads", "seed", "provider", "model_timeout_s", "precision", "max_block_s", "min_block_s", "tf32", "cuda_graph", "allow_fallback", "short_visits", "min_rounds", "references", "sessions", "long_visits", "provider_options", "session", "load_timeout_s")
    class ProviderOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    RUNS_PER_VISIT_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    TRIM_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCK_S_FIELD_NUMBER: _ClassVar[int]
    MIN_BLOCK_S_FIELD_NUMBER: _ClassVar[int]
    TF32_FIELD_NUMBER: _ClassVar[int]
    CUDA_GRAPH_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    SHORT_VISITS_FIELD_NUMBER: _ClassVar[int]
    MIN_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LONG_VISITS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    protocol: Protocol
    runs: int
    runs_per_visit: int
    warmup: int
    trim: float
    threads: int
    seed: int
    provider: str
    model_timeout_s: float
    precision: float
    max_block_s: float
    min_block_s: float
    tf32: bool
    cuda_graph: bool
    allow_fallback: bool
    short_visits: bool
    min_rounds: int
    references: bool
    sessions: int
    long_visits: int
    provider_options: _containers.ScalarMap[str, str]
    session: SessionSettings
    load_timeout_s: float
    def __init__(self, protocol: _Optional[_Union[Protocol, str]] = ..., runs: _Optional[int] = ..., runs_per_visit: _Optional[int] = ..., warmup: _Optional[int] = ..., trim: _Optional[float] = ..., threads: _Optional[int] = ..., seed: _Optional[int] = ..., provider: _Optional[str] = ..., model_timeout_s: _Optional[float] = ..., precision: _Optional[float] = ..., max_block_s: _Optional[float] = ..., min_block_s: _Optional[float] = ..., tf32: bool = ..., cuda_graph: bool = ..., allow_fallback: bool = ..., short_visits: bool = ..., min_rounds: _Optional[int] = ..., references: bool = ..., sessions: _Optional[int] = ..., long_visits: _Optional[int] = ..., provider_options: _Optional[_Mapping[str, str]] = ..., session: _Optional[_Union[SessionSettings, _Mapping]] = ..., load_timeout_s: _Optional[float] = ...) -> None: ...

class SessionSettings(_message.Message):
    __slots__ = ("opt_level", "execution_mode", "inter_op", "session_options", "free_dims")
    class SessionOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FreeDimsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OPT_LEVEL_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_MODE_FIELD_NUMBER: _ClassVar[int]
    INTER_OP_FIELD_NUMBER: _ClassVar[int]
    SESSION_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FREE_DIMS_FIELD_NUMBER: _ClassVar[int]
    opt_level: str
    execution_mode: str
    inter_op: int
    session_options: _containers.ScalarMap[str, str]
    free_dims: _containers.ScalarMap[str, int]
    def __init__(self, opt_level: _Optional[str] = ..., execution_mode: _Optional[str] = ..., inter_op: _Optional[int] = ..., session_options: _Optional[_Mapping[str, str]] = ..., free_dims: _Optional[_Mapping[str, int]] = ...) -> None: ...

class BlockHeader(_message.Message):
    __slots__ = ("protocol_version", "block_id", "spec", "models", "lease_id", "peak_memory", "profile_runs", "energy_s", "raw")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_RUNS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_S_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    block_id: str
    spec: MeasureSpec
    models: _containers.RepeatedCompositeFieldContainer[ModelHeader]
    lease_id: str
    peak_memory: bool
    profile_runs: int
    energy_s: float
    raw: bool
    def __init__(self, protocol_version: _Optional[int] = ..., block_id: _Optional[str] = ..., spec: _Optional[_Union[MeasureSpec, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelHeader, _Mapping]]] = ..., lease_id: _Optional[str] = ..., peak_memory: bool = ..., profile_runs: _Optional[int] = ..., energy_s: _Optional[float] = ..., raw: bool = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("model_id", "size_bytes", "sha256", "sent_bytes", "encoding", "external", "shapes", "inputs", "threads")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    size_bytes: int
    sha256: bytes
    sent_bytes: int
    encoding: Encoding
    external: _containers.RepeatedCompositeFieldContainer[ExternalFile]
    shapes: _containers.RepeatedCompositeFieldContainer[InputShape]
    inputs: File
    threads: int
    def __init__(self, model_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., sent_bytes: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., external: _Optional[_Iterable[_Union[ExternalFile, _Mapping]]] = ..., shapes: _Optional[_Iterable[_Union[InputShape, _Mapping]]] = ..., inputs: _Optional[_Union[File, _Mapping]] = ..., threads: _Optional[int] = ...) -> None: ...

class ExternalFile(_message.Message):
    __slots__ = ("location", "file")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    location: str
    file: File
    def __init__(self, location: _Optional[str] = ..., file: _Optional[_Union[File, _Mapping]] = ...) -> None: ...

class InputShape(_message.Message):
    __slots__ = ("input", "dims")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    input: str
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, input: _Optional[str] = ..., dims: _Optional[_Iterable[int]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("model", "offset", "data")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    model: int
    offset: int
    data: bytes
    def __init__(self, model: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class MeasureBlockRequest(_message.Message):
    __slots__ = ("header", "chunk", "header_part")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEADER_PART_FIELD_NUMBER: _ClassVar[int]
    header: BlockHeader
    chunk: Chunk
    header_part: BlockHeader
    def __init__(self, header: _Optional[_Union[BlockHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., header_part: _Optional[_Union[BlockHeader, _Mapping]] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("protocol_version", "lease_id", "block_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    lease_id: str
    block_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., lease_id: _Optional[str] = ..., block_id: _Optional[str] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Progress(_message.Message):
    __slots__ = ("state", "fraction", "standing")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    state: State
    fraction: float
    standing: Standing
    def __init__(self, state: _Optional[_Union[State, str]] = ..., fraction: _Optional[float] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: FailureKind
    message: str
    def __init__(self, kind: _Optional[_Union[FailureKind, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ModelResult(_message.Message):
    __slots__ = ("model_id", "failure", "latency_ns", "start_ns", "trimmed_mean_ns", "load_ns", "first_run_ns", "copy_in_ns", "copy_out_ns", "ran_on", "fallback", "inputs", "peak_rss_bytes", "profile", "runs_per_visit", "weight_bytes", "session_runs", "warming_ns", "warm_ns", "metrics", "threads_used", "compiled", "energy")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_MEAN_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_RUN_NS_FIELD_NUMBER: _ClassVar[int]
    COPY_IN_NS_FIELD_NUMBER: _ClassVar[int]
    COPY_OUT_NS_FIELD_NUMBER: _ClassVar[int]
    RAN_ON_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    RUNS_PER_VISIT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSION_RUNS_FIELD_NUMBER: _ClassVar[int]
    WARMING_NS_FIELD_NUMBER: _ClassVar[int]
    WARM_NS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    THREADS_USED_FIELD_NUMBER: _ClassVar[int]
    COMPILED_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    failure: Failure
    latency_ns: _containers.RepeatedScalarFieldContainer[int]
    start_ns: _containers.RepeatedScalarFieldContainer[int]
    trimmed_mean_ns: float
    load_ns: int
    first_run_ns: int
    copy_in_ns: _containers.RepeatedScalarFieldContainer[int]
    copy_out_ns: _containers.RepeatedScalarFieldContainer[int]
    ran_on: _containers.RepeatedCompositeFieldContainer[ProviderNodes]
    fallback: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    peak_rss_bytes: int
    profile: Profile
    runs_per_visit: int
    weight_bytes: int
    session_runs: _containers.RepeatedScalarFieldContainer[int]
    warming_ns: _containers.RepeatedScalarFieldContainer[float]
    warm_ns: _containers.RepeatedScalarFieldContainer[int]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricValue]
    threads_used: float
    compiled: str
    energy: Energy
    def __init__(self, model_id: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., latency_ns: _Optional[_Iterable[int]] = ..., start_ns: _Optional[_Iterable[int]] = ..., trimmed_mean_ns: _Optional[float] = ..., load_ns: _Optional[int] = ..., first_run_ns: _Optional[int] = ..., copy_in_ns: _Optional[_Iterable[int]] = ..., copy_out_ns: _Optional[_Iterable[int]] = ..., ran_on: _Optional[_Iterable[_Union[ProviderNodes, _Mapping]]] = ..., fallback: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., peak_rss_bytes: _Optional[int] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., runs_per_visit: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., session_runs: _Optional[_Iterable[int]] = ..., warming_ns: _Optional[_Iterable[float]] = ..., warm_ns: _Optional[_Iterable[int]] = ..., metrics: _Optional[_Iterable[_Union[MetricValue, _Mapping]]] = ..., threads_used: _Optional[float] = ..., compiled: _Optional[str] = ..., energy: _Optional[_Union[Energy, _Mapping]] = ...) -> None: ...

class Energy(_message.Message):
    __slots__ = ("source", "covers", "gross_mj", "idle_mj", "problem", "needs_s")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COVERS_FIELD_NUMBER: _ClassVar[int]
    GROSS_MJ_FIELD_NUMBER: _ClassVar[int]
    IDLE_MJ_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    NEEDS_S_FIELD_NUMBER: _ClassVar[int]
    source: str
    covers: str
    gross_mj: _containers.RepeatedScalarFieldContainer[float]
    idle_mj: _containers.RepeatedScalarFieldContainer[float]
    problem: str
    needs_s: float
    def __init__(self, source: _Optional[str] = ..., covers: _Optional[str] = ..., gross_mj: _Optional[_Iterable[float]] = ..., idle_mj: _Optional[_Iterable[float]] = ..., problem: _Optional[str] = ..., needs_s: _Optional[float] = ...) -> None: ...

class MetricValue(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: float
    def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "type", "dims")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., dims: _Optional[_Iterable[int]] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("runs", "operators", "nodes")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    runs: int
    operators: _containers.RepeatedCompositeFieldContainer[OperatorTime]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeTime]
    def __init__(self, runs: _Optional[int] = ..., operators: _Optional[_Iterable[_Union[OperatorTime, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeTime, _Mapping]]] = ...) -> None: ...

class OperatorTime(_message.Message):
    __slots__ = ("op_type", "provider", "calls", "ns")
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    NS_FIELD_NUMBER: _ClassVar[int]
    op_type: str
    provider: str
    calls: int
    ns: float
    def __init__(self, op_type: _Optional[str] = ..., provider: _Optional[str] = ..., calls: _Optional[int] = ..., ns: _Optional[float] = ...) -> None: ...

class NodeTime(_message.Message):
    __slots__ = ("name", "op_type", "provider", "ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    op_type: str
    provider: str
    ns: float
    def __init__(self, name: _Optional[str] = ..., op_type: _Optional[str] = ..., provider: _Optional[str] = ..., ns: _Optional[float] = ...) -> None: ...

class ProviderNodes(_message.Message):
    __slots__ = ("provider", "nodes")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    provider: str
    nodes: int
    def __init__(self, provider: _Optional[str] = ..., nodes: _Optional[int] = ...) -> None: ...

class BlockDone(_message.Message):
    __slots__ = ("block_id", "busy_ns", "running_ns", "states", "references", "usual", "no_references", "no_history")
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_NS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    USUAL_FIELD_NUMBER: _ClassVar[int]
    NO_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    NO_HISTORY_FIELD_NUMBER: _ClassVar[int]
    block_id: str
    busy_ns: int
    running_ns: int
    states: _containers.RepeatedCompositeFieldContainer[DeviceState]
    references: _containers.RepeatedCompositeFieldContainer[ModelResult]
    usual: UsualLatencies
    no_references: str
    no_history: str
    def __init__(self, block_id: _Optional[str] = ..., busy_ns: _Optional[int] = ..., running_ns: _Optional[int] = ..., states: _Optional[_Iterable[_Union[DeviceState, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[ModelResult, _Mapping]]] = ..., usual: _Optional[_Union[UsualLatencies, _Mapping]] = ..., no_references: _Optional[str] = ..., no_history: _Optional[str] = ...) -> None: ...

class UsualLatencies(_message.Message):
    __slots__ = ("references", "latency_ns", "spread", "moments", "span_s", "block_spread")
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    SPAN_S_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SPREAD_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedScalarFieldContainer[str]
    latency_ns: _containers.RepeatedScalarFieldContainer[float]
    spread: _containers.RepeatedScalarFieldContainer[float]
    moments: int
    span_s: float
    block_spread: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, references: _Optional[_Iterable[str]] = ..., latency_ns: _Optional[_Iterable[float]] = ..., spread: _Optional[_Iterable[float]] = ..., moments: _Optional[int] = ..., span_s: _Optional[float] = ..., block_spread: _Optional[_Iterable[float]] = ...) -> None: ...

class MeasureBlockEvent(_message.Message):
    __slots__ = ("progress", "result", "done", "result_part", "done_part")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    RESULT_PART_FIELD_NUMBER: _ClassVar[int]
    DONE_PART_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: ModelResult
    done: BlockDone
    result_part: ModelResult
    done_part: BlockDone
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[ModelResult, _Mapping]] = ..., done: _Optional[_Union[BlockDone, _Mapping]] = ..., result_part: _Optional[_Union[ModelResult, _Mapping]] = ..., done_part: _Optional[_Union[BlockDone, _Mapping]] = ...) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ("protocol_version", "probe_s", "lease_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBE_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    probe_s: float
    lease_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., probe_s: _Optional[float] = ..., lease_id: _Optional[str] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("check", "severity", "text", "fix")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    check: str
    severity: Severity
    text: str
    fix: str
    def __init__(self, check: _Optional[str] = ..., severity: _Optional[_Union[Severity, str]] = ..., text: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

class Diagnosis(_message.Message):
    __slots__ = ("findings",)
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...
