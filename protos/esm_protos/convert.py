"""Conversion between messages and protobuf. No other module uses fields of generated classes.

``_sent`` and ``_received`` copy the fields with equal names; the functions convert the others.
Functions named ``*_from_pb`` take messages already checked by :mod:`esm_protos.received`. They
raise NonsenseError for inconsistent values.
"""

from __future__ import annotations

import enum
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from esm_protos import older_peers
from esm_protos.messages import (
    CHUNK_BYTES,
    LONGEST_NS,
    MAX_THREADS,
    PROTOCOL_VERSION,
    SHORTEST_NS,
    Block,
    BlockResult,
    Case,
    DeviceInfo,
    DeviceState,
    Diagnosis,
    Energy,
    EnergySensor,
    Failure,
    FailureKind,
    File,
    Finding,
    GpuState,
    Holder,
    Input,
    Limits,
    Measurement,
    MeasureSpec,
    NodeTime,
    Occupancy,
    OperatorTime,
    Profile,
    Progress,
    RunOrder,
    Severity,
    Standing,
    State,
    UsualLatencies,
)
from esm_protos.metrics import PEAK_MEMORY, Metric
from esm_protos.pieces import PIECE_BYTES, pieces
from esm_protos.providers import OPTION_TYPES, ProviderInfo, ProviderOption
from esm_protos.received import NonsenseError, check_lengths, nonsense
from esm_protos.session_settings import SessionSettings
from esm_protos.statistics import trimmed_mean
from esm_protos.text import foreign
from esm_protos.v1 import profiler_pb2 as pb

Member = TypeVar("Member", bound=enum.Enum)
Part = TypeVar("Part", pb.ModelResult, pb.BlockDone)
_YEAR_10000_S = 253_402_300_800  # datetime ends before the year 10000


def _numbers(kind: type[Member], wire: Any, prefix: str) -> dict[Member, Any]:
    """Return the protobuf number of each member of an enumeration, by its prefixed name."""
    return {member: wire.Value(f"{prefix}_{member.name}") for member in kind}


_PROTOCOLS = _numbers(RunOrder, pb.Protocol, "PROTOCOL")
_STATES = _numbers(State, pb.State, "STATE")
_FAILURES = _numbers(FailureKind, pb.FailureKind, "FAILURE_KIND")
_SEVERITIES = _numbers(Severity, pb.Severity, "SEVERITY")
_LONGEST_LEASE_S = 86_400.0
_OFFERED_AT_ONCE = 10_000
_MOST_HEADER_BYTES = 64 << 20
_SCALARS = (bool, int, float, str, bytes)
_SAMPLES = ("latency_ns", "start_ns", "copy_in_ns", "copy_out_ns", "warm_ns")


def _member(numbers: Mapping[Member, Any], number: int, what: str) -> Member:
    """Return the member with a number.

    Raises:
        NonsenseError: the number is unknown.
    """
    for member, own in numbers.items():
        if own == number:
            return member
    raise NonsenseError(f"unknown {what} number {number}")


def _sent(value: Any, *omitted: str) -> dict[str, Any]:
    """Return the fields of a message for protobuf.

    Args:
        value: Message.
        omitted: Fields to leave out because protobuf has them in another form.
    """
    found = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in omitted}
    return {
        name: each.tolist() if isinstance(each, np.ndarray) else each
        for name, each in found.items()
    }


def _received(message: Any, kind: type, *omitted: str) -> dict[str, Any]:
    """Return the fields of a message from protobuf: lists as tuples, absent values as None.

    Args:
        message: Protobuf message.
        kind: Class of the message.
        omitted: Fields to leave out because protobuf has them in another form.
    """
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(kind) if field.name not in omitted):
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        value = getattr(message, name)
        if descriptor.has_presence:
            found[name] = value if message.HasField(name) else None
        else:
            found[name] = value if isinstance(value, _SCALARS) else tuple(value)
    return found


def spec_to_pb(spec: MeasureSpec) -> pb.MeasureSpec:
    """Return a spec as a protobuf message."""
    fields = _sent(spec, "run_order", "session")
    if spec.session != SessionSettings():
        fields["session"] = pb.SessionSettings(**_sent(spec.session))
    fields |= {name: spec.provider_options.get(name) == "1" for name in older_peers.OPTION_FIELDS}
    return pb.MeasureSpec(protocol=_PROTOCOLS[spec.run_order], **fields)


_SPEC_OMITTED = ("run_order", "sessions", "load_timeout_s", "provider_options", "session")


def spec_from_pb(message: pb.MeasureSpec) -> MeasureSpec:
    """Return a spec from its protobuf message."""
    return MeasureSpec(
        run_order=_member(_PROTOCOLS, message.protocol, "protocol"),
        sessions=message.sessions or 1,
        load_timeout_s=message.load_timeout_s or message.model_timeout_s,
        provider_options={
            **{name: "1" for name in older_peers.OPTION_FIELDS if getattr(message, name)},
            **message.provider_options,
        },
        session=_session_from_pb(message.session),
        **_received(message, MeasureSpec, *_SPEC_OMITTED),
    )


def _session_from_pb(message: pb.SessionSettings) -> SessionSettings:
    default = SessionSettings()
    return SessionSettings(
        message.opt_level or default.opt_level,
        message.execution_mode or default.execution_mode,
        message.inter_op,
        dict(message.session_options),
        dict(message.free_dims),
    )


_TABLES = ("provider_table", "unusable_providers")
_INFO_OMITTED = (
    *("limits", "state", "occupancy", "time_unix_s", "metrics", "energy_sensors"),
    *_TABLES,
)


def device_info_to_pb(info: DeviceInfo) -> pb.DeviceInfo:
    """Return the description of a device as a protobuf message."""
    return pb.DeviceInfo(
        limits=pb.Limits(**_sent(info.limits)),
        state=state_to_pb(info.state),
        occupancy=pb.Occupancy(
            holder=_holder_to_pb(info.occupancy.holder), **_sent(info.occupancy, "holder")
        ),
        time_unix_s=info.time_unix_s or 0.0,
        metrics=[
            pb.Metric(**{f.name: str(getattr(metric, f.name)) for f in pb.Metric.DESCRIPTOR.fields})
            for metric in info.metrics
        ],
        provider_table=map(provider_to_pb, info.provider_table),
        unusable_providers=map(provider_to_pb, info.unusable_providers),
        energy_sensors=[
            pb.EnergySensor(**{name: _printable(value) for name, value in _sent(sensor).items()})
            for sensor in info.energy_sensors
        ],
        **_sent(info, *_INFO_OMITTED),
    )


def device_info_from_pb(message: pb.DeviceInfo) -> DeviceInfo:
    """Return the description of a device from its protobuf message."""
    gpus = [gpu.name for gpu in message.state.gpus]
    table = tuple(map(provider_from_pb, message.provider_table))
    return DeviceInfo(
        limits=Limits(**_received(message.limits, Limits)),
        state=state_from_pb(message.state),
        occupancy=Occupancy(
            holder=_holder_from_pb(message.occupancy),
            **_received(message.occupancy, Occupancy, "holder"),
        ),
        time_unix_s=message.time_unix_s if 0 < message.time_unix_s < _YEAR_10000_S else None,
        metrics=tuple(map(_metric_from_pb, message.metrics)),
        provider_table=table or older_peers.provider_table(message.providers, gpus),
        unusable_providers=tuple(map(provider_from_pb, message.unusable_providers)),
        energy_sensors=tuple(
            EnergySensor(**_received(each, EnergySensor)) for each in message.energy_sensors
        ),
        **_received(message, DeviceInfo, *_INFO_OMITTED),
    )


def _metric_from_pb(message: pb.Metric) -> Metric:
    try:
        return Metric.from_json({f.name: value for f, value in message.ListFields()})
    except (KeyError, ValueError) as error:
        raise NonsenseError(foreign(f"a metric with no key, or with another: {error}")) from error


def provider_to_pb(provider: ProviderInfo) -> pb.Provider:
    """Return the description of a provider as a protobuf message."""
    options = [pb.ProviderOption(**_sent(option)) for option in provider.options]
    return pb.Provider(options=options, **_sent(provider, "options"))


def provider_from_pb(message: pb.Provider) -> ProviderInfo:
    """Return the description of a provider from its protobuf message."""
    return ProviderInfo(
        options=tuple(map(_option_from_pb, message.options)),
        identity=dict(message.identity),
        **_received(message, ProviderInfo, "options", "identity"),
    )


def _option_from_pb(message: pb.ProviderOption) -> ProviderOption:
    # A type that a later version adds is text for this one.
    kind = message.type if message.type in OPTION_TYPES else "text"
    return ProviderOption(type=kind, **_received(message, ProviderOption, "type"))


def standing_to_pb(standing: Standing) -> pb.Standing:
    """Return the position of a lease as a protobuf message."""
    return pb.Standing(holder=_holder_to_pb(standing.holder), **_sent(standing, "holder"))


def standing_from_pb(message: pb.Standing) -> Standing:
    """Return the position of a lease from its protobuf message."""
    if message.expires_s > _LONGEST_LEASE_S:
        raise nonsense("expires_s", message.expires_s)
    return Standing(holder=_holder_from_pb(message), **_received(message, Standing, "holder"))


def _holder_to_pb(holder: Holder | None) -> pb.Holder | None:
    return None if holder is None else pb.Holder(**_sent(holder))


def _holder_from_pb(message: pb.Occupancy | pb.Standing) -> Holder | None:
    return Holder(**_received(message.holder, Holder)) if message.HasField("holder") else None


def state_to_pb(state: DeviceState) -> pb.DeviceState:
    """Return the state of a device as a protobuf message."""
    gpus = [pb.GpuState(**_sent(gpu)) for gpu in state.gpus]
    return pb.DeviceState(gpus=gpus, **_sent(state, "gpus"))


def state_from_pb(message: pb.DeviceState) -> DeviceState:
    """Return the state of a device from its protobuf message."""
    gpus = tuple(GpuState(**_received(gpu, GpuState)) for gpu in message.gpus)
    return DeviceState(gpus=gpus, **_received(message, DeviceState, "gpus"))


def file_to_pb(file: File) -> pb.File:
    """Return a file as a protobuf message."""
    return pb.File(**_sent(file, "path"))


def file_from_pb(message: pb.File) -> File:
    """Return a file from its protobuf message."""
    if len(message.sha256) != hashlib.sha256().digest_size:
        raise NonsenseError("the name of a file is not a SHA-256 of 32 bytes")
    return File(message.sha256, message.size_bytes)


def case_from_pb(message: pb.ModelHeader) -> Case:
    """Return the case of a model from its header."""
    if message.threads > MAX_THREADS:
        raise NonsenseError(f"threads {message.threads} is above {MAX_THREADS}")
    shapes = tuple((shape.input, tuple(shape.dims)) for shape in message.shapes)
    if len({name for name, _ in shapes}) < len(shapes):
        raise NonsenseError(f"model {message.model_id} has two shapes for one input")
    inputs = file_from_pb(message.inputs) if message.HasField("inputs") else None
    return Case(shapes, inputs, message.threads)


def offer_requests(
    files: Sequence[File], lease_id: str
) -> Iterator[tuple[Sequence[File], pb.OfferRequest]]:
    """Yield requests that offer the files of a block, each with its files."""
    for start in range(0, len(files), _OFFERED_AT_ONCE):
        offered = files[start : start + _OFFERED_AT_ONCE]
        yield (
            offered,
            pb.OfferRequest(
                protocol_version=PROTOCOL_VERSION,
                lease_id=lease_id,
                files=[file_to_pb(file) for file in offered],
            ),
        )


def missing_from_pb(
    message: pb.OfferReply, offered: Sequence[File]
) -> tuple[list[tuple[File, int]], list[tuple[File, bytes]]]:
    """Return the offered files that the agent lacks, and those that need a proof of possession.

    Missing files come with the number of bytes already uploaded, the others with the proof's nonce.
    """
    lacks, unproved = [], []
    for each in message.missing:
        if each.file >= len(offered):
            raise NonsenseError(f"file {each.file} of {len(offered)} is missing")
        file = offered[each.file]
        if each.have_bytes > file.size_bytes:
            raise NonsenseError(
                f"the agent reports {each.have_bytes} bytes of a file of {file.size_bytes}"
            )
        if each.nonce:
            unproved.append((file, each.nonce))
        else:
            lacks.append((file, each.have_bytes))
    return lacks, unproved


def block_to_requests(block: Block, lease_id: str) -> Iterator[pb.MeasureBlockRequest]:
    """Yield the requests of a block: its header, then the models outside the cache in chunks."""
    headers = []
    encoded = []
    for model in block.models:
        data = b"" if isinstance(model.data, File) else model.data
        encoding = pb.ENCODING_CACHED if isinstance(model.data, File) else pb.ENCODING_PLAIN
        # A model of one chunk is mostly graph, or small; weights do not compress.
        if data and len(data) <= CHUNK_BYTES:
            data, encoding = zlib.compress(data), pb.ENCODING_ZLIB
        encoded.append(data)
        case = model.case
        headers.append(
            pb.ModelHeader(
                model_id=model.model_id,
                size_bytes=model.size_bytes,
                sha256=model.sha256,
                sent_bytes=len(data),
                encoding=encoding,
                external=[
                    pb.ExternalFile(location=location, file=file_to_pb(file))
                    for location, file in model.external
                ],
                shapes=[pb.InputShape(input=name, dims=dims) for name, dims in case.shapes],
                inputs=None if case.inputs is None else file_to_pb(case.inputs),
                threads=case.threads,
            )
        )
    header = pb.BlockHeader(
        protocol_version=PROTOCOL_VERSION,
        block_id=block.block_id,
        spec=spec_to_pb(block.spec),
        lease_id=lease_id,
        peak_memory=block.peak_memory,
        profile_runs=block.profile_runs,
        energy_s=block.energy_s,
        raw=block.raw,
    )
    *first_parts, last_part = _header_parts(header, headers)
    for header_part in first_parts:
        yield pb.MeasureBlockRequest(header_part=header_part)
    yield pb.MeasureBlockRequest(header=last_part)
    for index, data in enumerate(encoded):
        for offset in range(0, len(data), CHUNK_BYTES):
            part = data[offset : offset + CHUNK_BYTES]
            yield pb.MeasureBlockRequest(chunk=pb.Chunk(model=index, offset=offset, data=part))


def _header_parts(
    header: pb.BlockHeader, models: Sequence[pb.ModelHeader]
) -> Iterator[pb.BlockHeader]:
    """Yield a block's header with its models in parts; the first has the other fields."""
    part, size = header, header.ByteSize()
    for model in models:
        for piece in pieces(model):
            piece.model_id = model.model_id
            if size + piece.ByteSize() > PIECE_BYTES and part.models:
                yield part
                part, size = pb.BlockHeader(), 0
            if part.models and part.models[-1].model_id == piece.model_id:
                part.models[-1].MergeFrom(piece)
            else:
                part.models.append(piece)
            size += piece.ByteSize()
    yield part


def join_header(header: pb.BlockHeader, part: pb.BlockHeader) -> None:
    """Add the next part of a block's header to the previous parts.

    Raises:
        NonsenseError: the header becomes too large.
    """
    before = len(header.models)
    header.MergeFrom(part)
    if 0 < before < len(header.models):
        last, new = header.models[before - 1 : before + 1]
        if last.model_id == new.model_id:
            last.MergeFrom(new)
            check_lengths(last)
            del header.models[before]
    if header.ByteSize() > _MOST_HEADER_BYTES:
        raise NonsenseError(f"a header of {header.ByteSize()} bytes: {_MOST_HEADER_BYTES} at most")


def progress_to_pb(progress: Progress) -> pb.Progress:
    """Return the progress of a block as a protobuf message."""
    standing = None if progress.standing is None else standing_to_pb(progress.standing)
    return pb.Progress(state=_STATES[progress.state], fraction=progress.fraction, standing=standing)


def progress_from_pb(message: pb.Progress) -> Progress:
    """Return the progress of a block from its protobuf message."""
    state = _member(_STATES, message.state, "state")
    if message.fraction > 1:
        raise nonsense("fraction", message.fraction)
    standing = standing_from_pb(message.standing) if message.HasField("standing") else None
    return Progress(state, message.fraction, standing)


_RESULT_OMITTED = ("failure", "ran_on", "fallback", "inputs", "metrics", "profile", "energy")


def measurement_to_pb(measurement: Measurement, trim: float) -> pb.ModelResult:
    """Return a measurement as a protobuf message."""
    message = pb.ModelResult(
        ran_on=[pb.ProviderNodes(provider=p, nodes=n) for p, n in measurement.ran_on],
        fallback=[foreign(name) for name in measurement.fallback],
        inputs=[
            pb.Input(name=foreign(each.name), **_sent(each, "name")) for each in measurement.inputs
        ],
        peak_rss_bytes=measurement.peak_rss_bytes or 0,
        metrics=[
            pb.MetricValue(key=key, value=value)
            for key, value in measurement.metrics.items()
            if key != PEAK_MEMORY.key
        ],
        profile=_profile_to_pb(measurement.profile),
        energy=None if measurement.energy is None else _energy_to_pb(measurement.energy),
        **_sent(measurement, *_RESULT_OMITTED),
    )
    if measurement.failure is None:
        message.trimmed_mean_ns = trimmed_mean(measurement.latency_ns, trim)
    else:
        message.failure.kind = _FAILURES[measurement.failure.kind]
        message.failure.message = foreign(measurement.failure.message)
    return message


def measurement_from_pb(message: pb.ModelResult) -> Measurement:
    """Return a measurement; its trimmed mean is derived from the samples, not read."""
    failure = None
    if message.HasField("failure"):
        kind = _member(_FAILURES, message.failure.kind, "failure kind")
        failure = Failure(kind, message.failure.message)
    elif not message.latency_ns:
        raise NonsenseError("a model with neither samples nor a failure")
    if len(message.latency_ns) != len(message.start_ns):
        raise NonsenseError(
            f"{len(message.latency_ns)} latencies with {len(message.start_ns)} starts"
        )
    if message.session_runs and sum(message.session_runs) != len(message.latency_ns):
        raise NonsenseError(
            f"{sum(message.session_runs)} runs of sessions with {len(message.latency_ns)} latencies"
        )
    for name in ("latency_ns", "warming_ns", "warm_ns"):
        if (shortest := min(getattr(message, name), default=1)) < 1:
            raise nonsense(name, shortest)
    samples: dict[str, Any] = {
        name: np.array(getattr(message, name), dtype=np.int64) for name in _SAMPLES
    }
    return Measurement(
        failure=failure,
        ran_on=tuple((each.provider, each.nodes) for each in message.ran_on),
        fallback=tuple(message.fallback),
        inputs=tuple(Input(**_received(each, Input)) for each in message.inputs),
        metrics=_values_from_pb(message),
        profile=_profile_from_pb(message.profile) if message.HasField("profile") else None,
        energy=_energy_from_pb(message.energy) if message.HasField("energy") else None,
        **samples,
        **_received(message, Measurement, *_RESULT_OMITTED, *_SAMPLES),
    )


def _values_from_pb(message: pb.ModelResult) -> dict[str, float]:
    """Return values of metrics by key; peak memory has an older field of its own."""
    peak = {PEAK_MEMORY.key: message.peak_rss_bytes} if message.peak_rss_bytes else {}
    values = {each.key: each.value for each in message.metrics}
    for key in values:
        _metric_from_pb(pb.Metric(key=key))
    return values | peak


def _energy_to_pb(energy: Energy) -> pb.Energy:
    return pb.Energy(**{name: _printable(value) for name, value in _sent(energy).items()})


def _printable(value: Any) -> Any:
    """Return a text of a user's class so that it can be sent; other values as they are."""
    return foreign(value) if isinstance(value, str) else value


def _energy_from_pb(message: pb.Energy) -> Energy:
    if len(message.gross_mj) != len(message.idle_mj):
        raise NonsenseError(
            f"{len(message.gross_mj)} windows of energy with {len(message.idle_mj)} of idle energy"
        )
    return Energy(**_received(message, Energy))


def _profile_to_pb(profile: Profile | None) -> pb.Profile | None:
    if profile is None:
        return None
    return pb.Profile(
        runs=profile.runs,
        operators=[pb.OperatorTime(**_sent(each)) for each in profile.operators],
        nodes=[
            pb.NodeTime(name=foreign(each.name), **_sent(each, "name")) for each in profile.nodes
        ],
    )


def _profile_from_pb(message: pb.Profile) -> Profile:
    return Profile(
        message.runs,
        tuple(OperatorTime(**_received(each, OperatorTime)) for each in message.operators),
        tuple(NodeTime(**_received(each, NodeTime)) for each in message.nodes),
    )


def result_events(measurement: Measurement, trim: float) -> Iterator[pb.MeasureBlockEvent]:
    """Yield the events of a model's result, in parts if it is large."""
    *parts, last = pieces(measurement_to_pb(measurement, trim))
    for part in parts:
        yield pb.MeasureBlockEvent(result_part=part)
    yield pb.MeasureBlockEvent(result=last)


def done_events(result: BlockResult, trim: float) -> Iterator[pb.MeasureBlockEvent]:
    """Yield the events of the end of a block, in parts if it is large."""
    *parts, last = pieces(done_to_pb(result, trim))
    for part in parts:
        yield pb.MeasureBlockEvent(done_part=part)
    yield pb.MeasureBlockEvent(done=last)


def join_part(whole: Part, part: Part) -> None:
    """Add the next part of a result or of the end of a block.

    Raises:
        NonsenseError: the whole becomes too large.
    """
    whole.MergeFrom(part)
    check_lengths(whole)


def done_to_pb(result: BlockResult, trim: float) -> pb.BlockDone:
    """Return the end of a block: its result without the measurements of its models."""
    return pb.BlockDone(
        block_id=result.block_id,
        busy_ns=result.busy_ns,
        running_ns=result.running_ns,
        states=[state_to_pb(state) for state in result.states],
        references=[measurement_to_pb(each, trim) for each in result.references],
        usual=None if result.usual is None else _usual_to_pb(result.usual),
        no_references=foreign(result.references_problem),
        no_history=foreign(result.history_problem),
    )


def _usual_to_pb(usual: UsualLatencies) -> pb.UsualLatencies:
    return pb.UsualLatencies(
        references=usual.references,
        latency_ns=usual.latency_ns.tolist(),
        spread=usual.spread.ravel().tolist(),
        moments=usual.moments,
        span_s=usual.span_s,
        block_spread=() if usual.block_spread is None else usual.block_spread.ravel().tolist(),
    )


def _usual_from_pb(message: pb.UsualLatencies) -> UsualLatencies:
    count = len(message.references)
    sizes = len(message.spread), len(message.block_spread) or count**2
    if len(message.latency_ns) != count or set(sizes) != {count**2}:
        raise NonsenseError(f"no latencies or spreads of {count} references")
    for latency_ns in message.latency_ns:
        if not SHORTEST_NS <= latency_ns <= LONGEST_NS:
            raise nonsense("latency_ns", latency_ns)
    return UsualLatencies(
        tuple(message.references),
        np.array(message.latency_ns, dtype=np.float64),
        np.array(message.spread, dtype=np.float64).reshape(count, count),
        message.moments,
        message.span_s,
        np.array(message.block_spread, dtype=np.float64).reshape(count, count)
        if message.block_spread
        else None,
    )


def result_from_pb(message: pb.BlockDone, measurements: tuple[Measurement, ...]) -> BlockResult:
    """Return the result of a block from its protobuf message."""
    return BlockResult(
        block_id=message.block_id,
        measurements=measurements,
        busy_ns=message.busy_ns,
        running_ns=message.running_ns,
        states=tuple(state_from_pb(state) for state in message.states),
        references=tuple(map(measurement_from_pb, message.references)),
        usual=_usual_from_pb(message.usual) if message.HasField("usual") else None,
        references_problem=message.no_references,
        history_problem=message.no_history,
    )


def diagnosis_to_pb(diagnosis: Diagnosis) -> pb.Diagnosis:
    """Return a diagnosis as a protobuf message."""
    return pb.Diagnosis(
        findings=[
            pb.Finding(severity=_SEVERITIES[each.severity], **_sent(each, "severity"))
            for each in diagnosis.findings
        ]
    )


def diagnosis_from_pb(message: pb.Diagnosis) -> Diagnosis:
    """Return a diagnosis from its protobuf message."""
    return Diagnosis(
        tuple(
            Finding(
                severity=_member(_SEVERITIES, each.severity, "severity"),
                **_received(each, Finding, "severity"),
            )
            for each in message.findings
        )
    )
