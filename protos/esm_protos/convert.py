"""Between messages and their wire form. Nothing else touches the generated classes' fields.

Functions named ``*_from_pb`` take messages that :mod:`esm_protos.received` has let in. They raise
NonsenseError, in one line, on values that make no sense together.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
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
    Usual,
)
from esm_protos.pieces import PIECE_BYTES, pieces
from esm_protos.providers import OPTION_TYPES, ProviderInfo, ProviderOption
from esm_protos.received import NonsenseError, check_lengths, nonsense
from esm_protos.statistics import trimmed_mean
from esm_protos.text import foreign
from esm_protos.v1 import profiler_pb2 as pb

Part = TypeVar("Part", pb.ModelResult, pb.BlockDone)
_YEAR_10000_S = 253_402_300_800  # what people's calendars and datetime end before

_PROTOCOLS = {
    RunOrder.SEQUENTIAL: pb.PROTOCOL_SEQUENTIAL,
    RunOrder.INTERLEAVED: pb.PROTOCOL_INTERLEAVED,
}
_STATES = {
    State.QUEUED: pb.STATE_QUEUED,
    State.PREPARING: pb.STATE_PREPARING,
    State.MEASURING: pb.STATE_MEASURING,
    State.UPLOADING: pb.STATE_UPLOADING,
}
_FAILURES = {
    FailureKind.INVALID_MODEL: pb.FAILURE_KIND_INVALID_MODEL,
    FailureKind.UNSUPPORTED_OP: pb.FAILURE_KIND_UNSUPPORTED_OP,
    FailureKind.OUT_OF_MEMORY: pb.FAILURE_KIND_OUT_OF_MEMORY,
    FailureKind.CRASH: pb.FAILURE_KIND_CRASH,
    FailureKind.TIMEOUT: pb.FAILURE_KIND_TIMEOUT,
    FailureKind.INVALID_INPUT: pb.FAILURE_KIND_INVALID_INPUT,
}
_SEVERITIES = {
    Severity.OK: pb.SEVERITY_OK,
    Severity.UNKNOWN: pb.SEVERITY_UNKNOWN,
    Severity.ADVICE: pb.SEVERITY_ADVICE,
    Severity.UNFIT: pb.SEVERITY_UNFIT,
}
_LONGEST_LEASE_S = 86_400.0
_OFFERED_AT_ONCE = 10_000
_MOST_HEADER_BYTES = 64 << 20
_PROTOCOLS_BACK = {number: member for member, number in _PROTOCOLS.items()}
_STATES_BACK = {number: member for member, number in _STATES.items()}
_FAILURES_BACK = {number: member for member, number in _FAILURES.items()}
_SEVERITIES_BACK = {number: member for member, number in _SEVERITIES.items()}


def spec_to_pb(spec: MeasureSpec) -> pb.MeasureSpec:
    return pb.MeasureSpec(
        protocol=_PROTOCOLS[spec.protocol],
        runs=spec.runs,
        runs_per_visit=spec.runs_per_visit,
        warmup=spec.warmup,
        trim=spec.trim,
        threads=spec.threads,
        seed=spec.seed,
        provider=spec.provider,
        model_timeout_s=spec.model_timeout_s,
        precision=spec.precision,
        max_block_s=spec.max_block_s,
        min_block_s=spec.min_block_s,
        min_rounds=spec.min_rounds,
        short_visits=spec.short_visits,
        references=spec.references,
        sessions=spec.sessions,
        long_visits=spec.long_visits,
        allow_fallback=spec.allow_fallback,
        provider_options=spec.provider_options,
        **{name: spec.provider_options.get(name) == "1" for name in older_peers.OPTION_FIELDS},
    )


def spec_from_pb(message: pb.MeasureSpec) -> MeasureSpec:
    if message.protocol not in _PROTOCOLS_BACK:
        raise NonsenseError(f"unknown protocol number {message.protocol}")
    return MeasureSpec(
        protocol=_PROTOCOLS_BACK[message.protocol],
        runs=message.runs,
        runs_per_visit=message.runs_per_visit,
        warmup=message.warmup,
        trim=message.trim,
        threads=message.threads,
        seed=message.seed,
        provider=message.provider,
        model_timeout_s=message.model_timeout_s,
        precision=message.precision,
        max_block_s=message.max_block_s,
        min_block_s=message.min_block_s,
        min_rounds=message.min_rounds,
        short_visits=message.short_visits,
        references=message.references,
        sessions=message.sessions or 1,
        long_visits=message.long_visits,
        allow_fallback=message.allow_fallback,
        provider_options={
            **{name: "1" for name in older_peers.OPTION_FIELDS if getattr(message, name)},
            **message.provider_options,
        },
    )


def device_info_to_pb(info: DeviceInfo) -> pb.DeviceInfo:
    return pb.DeviceInfo(
        protocol_version=info.protocol_version,
        agent_version=info.agent_version,
        hostname=info.hostname,
        machine=info.machine,
        cpu_model=info.cpu_model,
        cpu_count=info.cpu_count,
        memory_bytes=info.memory_bytes,
        os=info.os,
        python_version=info.python_version,
        runtime=info.runtime,
        providers=info.providers,
        limits=pb.Limits(**asdict(info.limits)),
        state=state_to_pb(info.state),
        occupancy=pb.Occupancy(
            holder=_holder_to_pb(info.occupancy.holder),
            waiting=info.occupancy.waiting,
            draining=info.occupancy.draining,
        ),
        isolation=info.isolation,
        time_unix_s=info.time_unix_s or 0.0,
        instance=info.instance,
        cpu_quota=info.cpu_quota,
        provider_table=[provider_to_pb(provider) for provider in info.provider_table],
    )


def device_info_from_pb(message: pb.DeviceInfo) -> DeviceInfo:
    providers = tuple(message.providers)
    gpus = [gpu.name for gpu in message.state.gpus]
    table = tuple(provider_from_pb(provider) for provider in message.provider_table)
    return DeviceInfo(
        protocol_version=message.protocol_version,
        agent_version=message.agent_version,
        hostname=message.hostname,
        machine=message.machine,
        cpu_model=message.cpu_model,
        cpu_count=message.cpu_count,
        memory_bytes=message.memory_bytes,
        os=message.os,
        python_version=message.python_version,
        runtime=message.runtime,
        providers=providers,
        provider_table=table or older_peers.provider_table(providers, gpus),
        limits=Limits(**{f.name: getattr(message.limits, f.name) for f in fields(Limits)}),
        state=state_from_pb(message.state),
        occupancy=Occupancy(
            holder=_holder_from_pb(message.occupancy),
            waiting=message.occupancy.waiting,
            draining=message.occupancy.draining,
        ),
        isolation=tuple(message.isolation),
        time_unix_s=message.time_unix_s if 0 < message.time_unix_s < _YEAR_10000_S else None,
        cpu_quota=message.cpu_quota if message.HasField("cpu_quota") else None,
        instance=message.instance,
    )


def provider_to_pb(provider: ProviderInfo) -> pb.Provider:
    return pb.Provider(
        name=provider.name,
        runtime_name=provider.runtime_name,
        options=[pb.ProviderOption(**asdict(option)) for option in provider.options],
        identity=provider.identity,
        may_fall_back=provider.may_fall_back,
    )


def provider_from_pb(message: pb.Provider) -> ProviderInfo:
    return ProviderInfo(
        message.name,
        message.runtime_name,
        tuple(_option_from_pb(option) for option in message.options),
        dict(message.identity),
        message.may_fall_back,
    )


def _option_from_pb(message: pb.ProviderOption) -> ProviderOption:
    # What a later version may add is text to this one.
    kind = message.type if message.type in OPTION_TYPES else "text"
    return ProviderOption(message.name, kind, message.default, message.help, tuple(message.choices))


def standing_to_pb(standing: Standing) -> pb.Standing:
    return pb.Standing(
        ahead=standing.ahead,
        holder=_holder_to_pb(standing.holder),
        wait_s=standing.wait_s,
        expires_s=standing.expires_s,
    )


def standing_from_pb(message: pb.Standing) -> Standing:
    if message.expires_s > _LONGEST_LEASE_S:
        raise nonsense("expires_s", message.expires_s)
    return Standing(message.ahead, _holder_from_pb(message), message.wait_s, message.expires_s)


def _holder_to_pb(holder: Holder | None) -> pb.Holder | None:
    return None if holder is None else pb.Holder(**asdict(holder))


def _holder_from_pb(message: pb.Occupancy | pb.Standing) -> Holder | None:
    if not message.HasField("holder"):
        return None
    return Holder(**{f.name: getattr(message.holder, f.name) for f in fields(Holder)})


_OPTIONAL_STATE = (
    "temperature_c",
    "pi_throttled",
    "throttle_events",
    "load_1min",
    "busy_s",
    "own_s",
    "stolen_s",
    "memory_available_bytes",
    "swap_used_bytes",
    "swapped_pages",
    "cpu_periods",
    "cpu_throttled_periods",
    "cpu_throttled_s",
)
_OPTIONAL_GPU = ("clock_mhz", "memory_clock_mhz", "temperature_c", "power_w")


def state_to_pb(state: DeviceState) -> pb.DeviceState:
    return pb.DeviceState(
        at_ns=state.at_ns,
        clock_mhz=state.clock_mhz,
        governors=state.governors,
        **{name: getattr(state, name) for name in _OPTIONAL_STATE},
        gpus=[
            pb.GpuState(
                name=gpu.name,
                throttle_reasons=gpu.throttle_reasons,
                **{name: getattr(gpu, name) for name in _OPTIONAL_GPU},
            )
            for gpu in state.gpus
        ],
    )


def state_from_pb(message: pb.DeviceState) -> DeviceState:
    return DeviceState(
        at_ns=message.at_ns,
        clock_mhz=tuple(message.clock_mhz),
        governors=tuple(message.governors),
        **_told(message, _OPTIONAL_STATE),
        gpus=tuple(
            GpuState(
                name=gpu.name,
                throttle_reasons=tuple(gpu.throttle_reasons),
                **_told(gpu, _OPTIONAL_GPU),
            )
            for gpu in message.gpus
        ),
    )


def _told(message: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def file_to_pb(file: File) -> pb.File:
    return pb.File(sha256=file.sha256, size_bytes=file.size_bytes)


def file_from_pb(message: pb.File) -> File:
    if len(message.sha256) != hashlib.sha256().digest_size:
        raise NonsenseError("a file is named by its SHA-256, of 32 bytes")
    return File(message.sha256, message.size_bytes)


def case_from_pb(message: pb.ModelHeader) -> Case:
    """How a model is to be run, from its header."""
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
    """All files of a block, in as many requests as they need; each with the files that it names."""
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
    """Return the offered files that the agent lacks, and those that it wants a proof of.

    The first come with how many of their bytes are there, the second with the proof's nonce.
    """
    lacks, unproved = [], []
    for each in message.missing:
        if each.file >= len(offered):
            raise NonsenseError(f"file {each.file} of {len(offered)} is missing")
        file = offered[each.file]
        if each.have_bytes > file.size_bytes:
            raise NonsenseError(f"it has {each.have_bytes} bytes of a file of {file.size_bytes}")
        if each.nonce:
            unproved.append((file, each.nonce))
        else:
            lacks.append((file, each.have_bytes))
    return lacks, unproved


def block_to_requests(block: Block, lease_id: str) -> Iterator[pb.MeasureBlockRequest]:
    """The header, then every model in chunks that is not in the cache: what a client sends."""
    headers = []
    encoded = []
    for model in block.models:
        data = b"" if isinstance(model.data, File) else model.data
        encoding = pb.ENCODING_CACHED if isinstance(model.data, File) else pb.ENCODING_PLAIN
        # What fits into one chunk is a graph, or soon compressed; weights are noise to zlib.
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
    """A block's header with its models; what is not of models is in the first part."""
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
    """Add the next part of a block's header to what came before.

    Raises:
        NonsenseError: the header becomes larger than any block's.
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
    standing = None if progress.standing is None else standing_to_pb(progress.standing)
    return pb.Progress(state=_STATES[progress.state], fraction=progress.fraction, standing=standing)


def progress_from_pb(message: pb.Progress) -> Progress:
    if message.state not in _STATES_BACK:
        raise NonsenseError(f"unknown state number {message.state}")
    if message.fraction > 1:
        raise nonsense("fraction", message.fraction)
    standing = standing_from_pb(message.standing) if message.HasField("standing") else None
    return Progress(_STATES_BACK[message.state], message.fraction, standing)


def measurement_to_pb(measurement: Measurement, trim: float) -> pb.ModelResult:
    message = pb.ModelResult(
        model_id=measurement.model_id,
        latency_ns=measurement.latency_ns.tolist(),
        start_ns=measurement.start_ns.tolist(),
        load_ns=measurement.load_ns,
        first_run_ns=measurement.first_run_ns,
        copy_in_ns=measurement.copy_in_ns.tolist(),
        copy_out_ns=measurement.copy_out_ns.tolist(),
        ran_on=[pb.ProviderNodes(provider=p, nodes=n) for p, n in measurement.ran_on],
        fallback=[foreign(name) for name in measurement.fallback],
        inputs=[
            pb.Input(name=foreign(i.name), type=i.type, dims=i.dims) for i in measurement.inputs
        ],
        peak_rss_bytes=measurement.peak_rss_bytes or 0,
        profile=_profile_to_pb(measurement.profile),
        runs_per_visit=measurement.runs_per_visit,
        weight_bytes=measurement.weight_bytes,
        session_runs=measurement.session_runs,
        warming_ns=measurement.warming_ns,
        warm_ns=measurement.warm_ns.tolist(),
    )
    if measurement.failure is None:
        message.trimmed_mean_ns = trimmed_mean(measurement.latency_ns, trim)
    else:
        message.failure.kind = _FAILURES[measurement.failure.kind]
        message.failure.message = foreign(measurement.failure.message)
    return message


def measurement_from_pb(message: pb.ModelResult) -> Measurement:
    """The trimmed mean is left behind: this side derives it from the samples."""
    failure = None
    if message.HasField("failure"):
        if message.failure.kind not in _FAILURES_BACK:
            raise NonsenseError(f"unknown failure kind number {message.failure.kind}")
        failure = Failure(_FAILURES_BACK[message.failure.kind], message.failure.message)
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
    return Measurement(
        model_id=message.model_id,
        latency_ns=np.array(message.latency_ns, dtype=np.int64),
        start_ns=np.array(message.start_ns, dtype=np.int64),
        load_ns=message.load_ns,
        first_run_ns=message.first_run_ns,
        failure=failure,
        copy_in_ns=np.array(message.copy_in_ns, dtype=np.int64),
        copy_out_ns=np.array(message.copy_out_ns, dtype=np.int64),
        ran_on=tuple((each.provider, each.nodes) for each in message.ran_on),
        fallback=tuple(message.fallback),
        inputs=tuple(Input(i.name, i.type, tuple(i.dims)) for i in message.inputs),
        peak_rss_bytes=message.peak_rss_bytes or None,
        profile=_profile_from_pb(message.profile) if message.HasField("profile") else None,
        runs_per_visit=message.runs_per_visit,
        weight_bytes=message.weight_bytes,
        session_runs=tuple(message.session_runs),
        warming_ns=tuple(message.warming_ns),
        warm_ns=np.array(message.warm_ns, dtype=np.int64),
    )


def _profile_to_pb(profile: Profile | None) -> pb.Profile | None:
    if profile is None:
        return None
    return pb.Profile(
        runs=profile.runs,
        operators=[pb.OperatorTime(**asdict(each)) for each in profile.operators],
        nodes=[
            pb.NodeTime(**{**asdict(each), "name": foreign(each.name)}) for each in profile.nodes
        ],
    )


def _profile_from_pb(message: pb.Profile) -> Profile:
    return Profile(
        message.runs,
        tuple(OperatorTime(o.op_type, o.provider, o.calls, o.ns) for o in message.operators),
        tuple(NodeTime(n.name, n.op_type, n.provider, n.ns) for n in message.nodes),
    )


def result_events(measurement: Measurement, trim: float) -> Iterator[pb.MeasureBlockEvent]:
    """A model's result as an agent sends it: in parts where it is large."""
    *parts, last = pieces(measurement_to_pb(measurement, trim))
    for part in parts:
        yield pb.MeasureBlockEvent(result_part=part)
    yield pb.MeasureBlockEvent(result=last)


def done_events(result: BlockResult, trim: float) -> Iterator[pb.MeasureBlockEvent]:
    """The end of a block as an agent sends it: in parts where it is large."""
    *parts, last = pieces(done_to_pb(result, trim))
    for part in parts:
        yield pb.MeasureBlockEvent(done_part=part)
    yield pb.MeasureBlockEvent(done=last)


def join_part(whole: Part, part: Part) -> None:
    """Add the next part of a result or of a block's end; raises NonsenseError above all bounds."""
    whole.MergeFrom(part)
    check_lengths(whole)


def done_to_pb(result: BlockResult, trim: float) -> pb.BlockDone:
    """All of a result but the measurements of the block's own models."""
    return pb.BlockDone(
        block_id=result.block_id,
        busy_ns=result.busy_ns,
        running_ns=result.running_ns,
        states=[state_to_pb(state) for state in result.states],
        references=[measurement_to_pb(each, trim) for each in result.references],
        usual=None if result.usual is None else _usual_to_pb(result.usual),
        no_references=foreign(result.no_references),
        no_history=foreign(result.no_history),
    )


def _usual_to_pb(usual: Usual) -> pb.Usual:
    return pb.Usual(
        references=usual.references,
        latency_ns=usual.latency_ns.tolist(),
        spread=usual.spread.ravel().tolist(),
        moments=usual.moments,
        span_s=usual.span_s,
        block_spread=() if usual.block_spread is None else usual.block_spread.ravel().tolist(),
    )


def _usual_from_pb(message: pb.Usual) -> Usual:
    count = len(message.references)
    sizes = len(message.spread), len(message.block_spread) or count**2
    if len(message.latency_ns) != count or set(sizes) != {count**2}:
        raise NonsenseError(f"no latencies or spreads of {count} references")
    for latency_ns in message.latency_ns:
        if not SHORTEST_NS <= latency_ns <= LONGEST_NS:
            raise nonsense("latency_ns", latency_ns)
    return Usual(
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
    return BlockResult(
        block_id=message.block_id,
        measurements=measurements,
        busy_ns=message.busy_ns,
        running_ns=message.running_ns,
        states=tuple(state_from_pb(state) for state in message.states),
        references=tuple(map(measurement_from_pb, message.references)),
        usual=_usual_from_pb(message.usual) if message.HasField("usual") else None,
        no_references=message.no_references,
        no_history=message.no_history,
    )


def diagnosis_to_pb(diagnosis: Diagnosis) -> pb.Diagnosis:
    return pb.Diagnosis(
        findings=[
            pb.Finding(
                check=finding.check,
                severity=_SEVERITIES[finding.severity],
                text=finding.text,
                fix=finding.fix,
            )
            for finding in diagnosis.findings
        ]
    )


def diagnosis_from_pb(message: pb.Diagnosis) -> Diagnosis:
    findings = []
    for finding in message.findings:
        if finding.severity not in _SEVERITIES_BACK:
            raise NonsenseError(f"unknown severity number {finding.severity}")
        severity = _SEVERITIES_BACK[finding.severity]
        findings.append(Finding(finding.check, severity, finding.text, finding.fix))
    return Diagnosis(tuple(findings))
