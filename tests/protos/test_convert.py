"""Whatever one side says, the other side hears."""

import hashlib
import json
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esm_protos import convert
from esm_protos.messages import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    Block,
    BlockResult,
    DeviceInfo,
    DeviceState,
    Diagnosis,
    Energy,
    EnergySensor,
    Failure,
    FailureKind,
    Finding,
    GpuState,
    Holder,
    Limits,
    Measurement,
    MeasureSpec,
    Model,
    Occupancy,
    Progress,
    RunOrder,
    Severity,
    Standing,
    State,
    UsualLatencies,
)
from esm_protos.providers import OPTION_TYPES, OptionError, ProviderInfo, ProviderOption
from esm_protos.received import NonsenseError, received
from esm_protos.session_settings import EXECUTION_MODES, OPT_LEVELS, SessionSettings
from esm_protos.v1 import profiler_pb2 as pb

OLD_SPEC = convert.spec_to_pb(MeasureSpec())
OLD_SPEC.ClearField("references")
OLD_SPEC.ClearField("sessions")

counts = st.integers(1, 10_000)
nanoseconds = st.lists(st.integers(1, 2**53), min_size=1, max_size=50)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]))
modes = st.sampled_from(EXECUTION_MODES).flatmap(
    lambda mode: st.tuples(st.just(mode), st.integers(0, 1024 if mode == "parallel" else 0))
)
sessions = st.builds(
    lambda mode, **others: SessionSettings(execution_mode=mode[0], inter_op=mode[1], **others),
    modes,
    opt_level=st.sampled_from(OPT_LEVELS),
    session_options=st.dictionaries(
        st.sampled_from(["session.intra_op.allow_spinning", "session.x"]),
        st.text("01x", min_size=1, max_size=9),
        max_size=2,
    ),
    free_dims=st.dictionaries(st.sampled_from(["N", "H"]), st.integers(1, 2**31 - 1)),
)
specs = st.builds(
    MeasureSpec,
    run_order=st.just(RunOrder.INTERLEAVED),
    precision=st.floats(0, 0.99),
    max_block_s=st.floats(0, 3600),
    min_block_s=st.floats(0, 3600),
    runs=counts,
    runs_per_visit=counts,
    warmup=st.integers(0, 100),
    trim=st.floats(0, 0.49),
    threads=st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
    provider=st.sampled_from(["cpu", "cuda"]),
    model_timeout_s=st.floats(0.001, 3600),
    load_timeout_s=st.floats(0.001, 3600),
    provider_options=st.dictionaries(
        st.sampled_from(["tf32", "cuda_graph", "own"]), st.sampled_from(["0", "1", "x"])
    ),
    allow_fallback=st.booleans(),
    min_rounds=st.integers(0, 1000),
    short_visits=st.booleans(),
    references=st.booleans(),
    sessions=st.integers(1, 100),
    session=sessions,
)
seconds = st.floats(0, 1e6)
holders = st.none() | st.builds(Holder, owner=texts, purpose=texts, client=texts, held_s=seconds)
standings = st.builds(
    Standing,
    ahead=st.integers(0, 1000),
    holder=holders,
    wait_s=seconds,
    expires_s=st.floats(0, 86_400),
)
amounts = st.none() | st.floats(0, 1e9)
counters = st.none() | st.integers(0, 2**60)
states = st.builds(
    DeviceState,
    at_ns=st.integers(-(2**53), 2**53),
    clock_mhz=st.lists(st.floats(0, 1e4)).map(tuple),
    governors=st.lists(texts).map(tuple),
    temperature_c=st.none() | st.floats(-60, 200),
    pi_throttled=st.none() | st.integers(0, 2**32 - 1),
    throttle_events=counters,
    load_1min=amounts,
    busy_s=amounts,
    own_s=amounts,
    stolen_s=amounts,
    memory_available_bytes=counters,
    swap_used_bytes=counters,
    swapped_pages=counters,
    cpu_periods=counters,
    cpu_throttled_periods=counters,
    cpu_throttled_s=amounts,
    gpus=st.lists(
        st.builds(
            GpuState,
            name=texts,
            clock_mhz=amounts,
            memory_clock_mhz=amounts,
            temperature_c=amounts,
            power_w=amounts,
            throttle_reasons=st.lists(texts).map(tuple),
        )
    ).map(tuple),
)
options = st.builds(
    ProviderOption,
    name=texts,
    type=st.sampled_from(OPTION_TYPES),
    default=texts,
    help=texts,
    choices=st.lists(texts, max_size=2).map(tuple),
)
providers = st.builds(
    ProviderInfo,
    name=texts,
    runtime_name=texts,
    options=st.lists(options, max_size=2).map(tuple),
    identity=st.dictionaries(texts, texts, max_size=2),
    may_fall_back=st.booleans(),
    version=texts,
    vendor=texts,
    kind=texts,
    problem=texts,
    open_options=st.booleans(),
    threads_option=texts,
    chooses_threads=st.booleans(),
)
devices = st.builds(
    DeviceInfo,
    state=states,
    protocol_version=st.integers(0, 100),
    agent_version=texts,
    hostname=texts,
    machine=texts,
    cpu_model=texts,
    cpu_count=st.integers(0, 1024),
    memory_bytes=st.integers(0, 2**50),
    os=texts,
    python_version=texts,
    runtime=texts,
    provider_table=st.lists(providers, max_size=2).map(tuple),
    unusable_providers=st.lists(providers, max_size=2).map(tuple),
    providers=st.just(()),
    session_settings=st.booleans(),
    limits=st.builds(
        Limits,
        max_block_bytes=st.integers(0, 2**50),
        max_block_models=st.integers(0, 10**6),
        max_model_bytes=st.integers(0, 2**50),
        max_model_nodes=st.integers(0, 10**6),
        max_model_parameters=st.integers(0, 2**50),
        max_memory_bytes=st.integers(0, 2**50),
        max_block_s=seconds,
    ),
    occupancy=st.builds(
        Occupancy, holder=holders, waiting=st.integers(0, 1000), draining=st.booleans()
    ),
    isolation=st.lists(texts).map(tuple),
    time_unix_s=st.none() | st.floats(1e-3, 1e11),
    cpu_quota=amounts,
    energy_sensors=st.lists(
        st.builds(EnergySensor, texts, texts, st.floats(0, 1e6), st.floats(0, 1e6), texts, texts)
    ).map(tuple),
)
energies = st.builds(
    lambda names, windows, problem, needs_s: Energy(
        *names, *(tuple(zip(*windows, strict=True)) or ((), ())), problem, needs_s
    ),
    st.tuples(texts, texts),
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9))),
    texts,
    st.floats(0, 1e6),
)


@given(specs)
def test_spec_round_trip(spec: MeasureSpec) -> None:
    wire = convert.spec_to_pb(spec).SerializeToString()
    assert convert.spec_from_pb(received(pb.MeasureSpec, wire)) == spec


@given(states)
def test_state_round_trip(state: DeviceState) -> None:
    """Over the wire and through JSON; what is missing stays missing."""
    wire = convert.state_to_pb(state).SerializeToString()
    assert convert.state_from_pb(received(pb.DeviceState, wire)) == state
    assert DeviceState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_what_a_device_does_not_tell_is_not_in_its_json() -> None:
    assert DeviceState(at_ns=5, swapped_pages=0).to_json() == {"at_ns": 5, "swapped_pages": 0}


@given(st.lists(st.builds(Finding, texts, st.sampled_from(Severity), texts, texts)))
def test_diagnosis_round_trip(findings: list[Finding]) -> None:
    diagnosis = Diagnosis(tuple(findings))
    wire = convert.diagnosis_to_pb(diagnosis).SerializeToString()
    assert convert.diagnosis_from_pb(received(pb.Diagnosis, wire)) == diagnosis
    assert diagnosis.fit == all(f.severity is not Severity.UNFIT for f in findings)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e12])
def test_a_clock_that_no_calendar_has_is_left_out(value: float) -> None:
    assert convert.device_info_from_pb(pb.DeviceInfo(time_unix_s=value)).time_unix_s is None


@given(devices)
def test_device_info_round_trip(info: DeviceInfo) -> None:
    wire = convert.device_info_to_pb(info).SerializeToString()
    assert convert.device_info_from_pb(received(pb.DeviceInfo, wire)) == info
    assert [ProviderInfo.from_json(asdict(each)) for each in info.provider_table] == [
        *info.provider_table
    ]


@given(st.none() | energies)
def test_energy_round_trip(energy: Energy | None) -> None:
    ones = np.array([1], dtype=np.int64)
    sent = convert.measurement_to_pb(Measurement("m", ones, ones, energy=energy), 0.2)
    wire = sent.SerializeToString()
    assert convert.measurement_from_pb(received(pb.ModelResult, wire)).energy == energy


def test_texts_of_a_meter_can_be_sent() -> None:
    ones = np.array([1], dtype=np.int64)
    energy = Energy("my\ud800plug", "plug\n", problem="a\x1bb")
    sent = convert.measurement_to_pb(Measurement("m", ones, ones, energy=energy), 0.2)
    assert sent.energy.SerializeToString()
    assert "\n" not in sent.energy.covers


def test_windows_of_energy_have_their_idle_energy() -> None:
    energy = pb.Energy(gross_mj=[1.0, 2.0], idle_mj=[1.0])
    message = pb.ModelResult(model_id="m", latency_ns=[1], start_ns=[0], energy=energy)
    with pytest.raises(NonsenseError, match="2 windows of energy with 1 of idle energy"):
        convert.measurement_from_pb(message)


def test_a_block_asks_for_energy() -> None:
    block = Block("b", MeasureSpec(), (Model("m", b"x"),), energy_s=30.0)
    header = next(iter(convert.block_to_requests(block, "lease"))).header
    assert header.energy_s == 30.0
    assert pb.BlockHeader().energy_s == 0, "older hosts do not ask"


def test_a_block_asks_for_the_precision_of_what_is_measured() -> None:
    block = Block("b", MeasureSpec(), (Model("m", b"x"),), raw=True)
    assert next(iter(convert.block_to_requests(block, "lease"))).header.raw
    assert not pb.BlockHeader().raw, "older hosts ask for that at the usual pace"


def test_an_agent_without_a_table_is_known_by_its_names_and_gpus() -> None:
    state = pb.DeviceState(gpus=[pb.GpuState(name="H100")])
    info = convert.device_info_from_pb(pb.DeviceInfo(providers=["cpu", "cuda"], state=state))
    assert [each.name for each in info.provider_table] == ["cpu", "cuda"]
    assert info.identity("cuda")["gpu"] == "H100"
    assert "gpu" not in info.identity("cpu")
    assert info.provider("cuda").complete({"tf32": "1"}) == {"tf32": "1", "cuda_graph": "0"}
    with pytest.raises(
        OptionError,
        match=r"own=1: unknown option 'own' of the provider cuda: choose tf32",
    ):
        info.provider("cuda").complete({"own": "1"})


def test_a_spec_without_session_settings_is_as_older_peers_write_it() -> None:
    assert not convert.spec_to_pb(MeasureSpec()).HasField("session"), "an older agent reads all"
    assert convert.spec_from_pb(OLD_SPEC).session == SessionSettings()
    data = MeasureSpec().to_json()
    for name in ("opt_level", "execution_mode", "inter_op", "session_options", "free_dims"):
        del data[name]
    assert MeasureSpec.from_json(data) == MeasureSpec()
    assert not convert.device_info_from_pb(pb.DeviceInfo()).session_settings


def test_session_settings_of_a_peer_are_checked() -> None:
    sent = convert.spec_to_pb(MeasureSpec())
    sent.session.opt_level = "later"
    with pytest.raises(ValueError, match="opt_level: unknown value 'later'"):
        convert.spec_from_pb(sent)
    large = pb.SessionSettings(free_dims={"N": 2**64 - 1}).SerializeToString()
    with pytest.raises(NonsenseError, match=r"^free dims of 18446744073709551615$"):
        received(pb.SessionSettings, large)


def test_a_provider_with_open_options_takes_any_and_keeps_its_own_checked() -> None:
    info = ProviderInfo("x", options=(ProviderOption("a", "bool", "0"),), open_options=True)
    assert info.complete({"b.c": "any", "a": "1"}) == {"a": "1", "b.c": "any"}
    for name, value in (("a", "2"), ("b c", "1"), ("b", "")):
        with pytest.raises(OptionError, match=f"{name}={value}: "):
            info.complete({name: value})


def test_the_number_of_threads_is_no_option() -> None:
    info = ProviderInfo("x", open_options=True, threads_option="num_of_threads")
    with pytest.raises(OptionError, match="num_of_threads=4: the number of threads sets it"):
        info.complete({"num_of_threads": "4"})
    config = '{"CPU": {"INFERENCE_NUM_THREADS": "2"}}'
    with pytest.raises(OptionError, match="the number of threads sets INFERENCE_NUM_THREADS"):
        info.complete({"load_config": config})


def test_json_of_a_later_version_is_read() -> None:
    data = {**asdict(ProviderInfo("x", version="1")), "later": {}}
    assert ProviderInfo.from_json(data) == ProviderInfo("x", version="1")
    older = {"name": "x", "runtime_name": "", "options": [], "identity": {}, "may_fall_back": True}
    assert ProviderInfo.from_json(older).line == "x"


@pytest.mark.parametrize("on", [False, True])
def test_options_reach_and_come_from_peers_with_a_field_for_each(on: bool) -> None:
    sent = convert.spec_to_pb(MeasureSpec(provider_options={"tf32": str(int(on)), "own": "x"}))
    assert (sent.tf32, sent.cuda_graph) == (on, False), "what an older agent reads"
    old = pb.MeasureSpec()
    old.CopyFrom(OLD_SPEC)
    old.cuda_graph = on
    read = convert.spec_from_pb(old)
    assert read.provider_options == ({"cuda_graph": "1"} if on else {})
    data = {**MeasureSpec().to_json(), "tf32": on, "cuda_graph": False}
    del data["provider_options"]
    assert MeasureSpec.from_json(data).provider_options == ({"tf32": "1"} if on else {})


@pytest.mark.parametrize("order", RunOrder)
def test_the_order_of_runs_is_protocol_in_json_and_on_the_wire(order: RunOrder) -> None:
    spec = MeasureSpec(order)
    assert spec.to_json()["protocol"] == order.value
    assert "run_order" not in spec.to_json()
    assert MeasureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    wire = convert.spec_to_pb(spec)
    assert pb.Protocol.Name(wire.protocol) == f"PROTOCOL_{order.name}"
    assert convert.spec_from_pb(wire) == spec


def test_an_older_hosts_time_out_is_that_of_loading_too() -> None:
    wire = convert.spec_to_pb(MeasureSpec(model_timeout_s=7))
    wire.ClearField("load_timeout_s")
    assert convert.spec_from_pb(wire).load_timeout_s == 7


@given(st.sampled_from(State), st.floats(0, 1), st.none() | standings)
def test_progress_round_trip(state: State, fraction: float, standing: Standing | None) -> None:
    progress = Progress(state, fraction, standing)
    assert convert.progress_from_pb(convert.progress_to_pb(progress)) == progress


@given(texts, nanoseconds, st.integers(0, 2**53), st.integers(0, 2**53))
def test_measurement_round_trip(
    model_id: str, latencies: list[int], load_ns: int, first_ns: int
) -> None:
    sent = Measurement(
        model_id,
        np.array(latencies),
        np.arange(len(latencies)),
        load_ns,
        first_ns,
        copy_in_ns=np.array(latencies[:3]),
        copy_out_ns=np.array(latencies[:2]),
        ran_on=(("CUDAExecutionProvider", 7), ("CPUExecutionProvider", 1)),
        fallback=("Resize_3",),
        weight_bytes=first_ns,
        session_runs=(1, len(latencies) - 1),
        threads_used=1.5,
    )
    wire = convert.measurement_to_pb(sent, 0.2)
    got = convert.measurement_from_pb(received(pb.ModelResult, wire.SerializeToString()))
    assert wire.trimmed_mean_ns == pytest.approx(sent.trimmed_mean_ms(0.2) * 1e6)
    assert (got.model_id, got.load_ns, got.first_run_ns, got.failure) == (
        model_id,
        load_ns,
        first_ns,
        None,
    )
    np.testing.assert_array_equal(got.latency_ns, sent.latency_ns)
    np.testing.assert_array_equal(got.start_ns, sent.start_ns)
    np.testing.assert_array_equal(got.copy_in_ns, sent.copy_in_ns)
    np.testing.assert_array_equal(got.copy_out_ns, sent.copy_out_ns)
    assert (got.ran_on, got.fallback) == (sent.ran_on, sent.fallback)
    assert (got.weight_bytes, got.session_runs) == (sent.weight_bytes, sent.session_runs)
    assert got.threads_used == 1.5


def usual_latencies(count: int) -> st.SearchStrategy[UsualLatencies]:
    return st.builds(
        UsualLatencies,
        st.just(tuple(f"r{index}" for index in range(count))),
        hnp.arrays(np.float64, count, elements=st.floats(1, 1e12)),
        hnp.arrays(np.float64, (count, count), elements=st.floats(0, 10)),
        st.integers(0, 10_000),
        st.floats(0, 1e9),
    )


@given(st.none() | st.integers(0, 5).flatmap(usual_latencies), st.integers(0, 3))
def test_result_round_trip(usual: UsualLatencies | None, count: int) -> None:
    references = tuple(
        Measurement(f"r{n}", np.arange(1, 5), np.arange(4), runs_per_visit=2, weight_bytes=n)
        for n in range(count)
    )
    sent = BlockResult("b", (), 5, 4, (), references, usual)
    wire = convert.done_to_pb(sent, 0.2).SerializeToString()
    got = convert.result_from_pb(received(pb.BlockDone, wire), ())
    assert [m.model_id for m in got.references] == [m.model_id for m in references]
    assert [m.weight_bytes for m in got.references] == [m.weight_bytes for m in references]
    if usual is None:
        assert got.usual is None
        return
    assert got.usual is not None
    assert got.usual.to_json() == usual.to_json()
    assert (
        UsualLatencies.from_json(json.loads(json.dumps(usual.to_json()))).references
        == usual.references
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"references": ["a"], "latency_ns": [1.0], "spread": []},
        {"references": ["a"], "latency_ns": [], "spread": [0.1]},
        {"references": ["a"], "latency_ns": [0.0], "spread": [0.1]},
        {"references": ["a"], "latency_ns": [float("nan")], "spread": [0.1]},
        {"references": ["a"], "latency_ns": [1.0], "spread": [-0.1]},
        {"references": ["a"], "latency_ns": [1.0], "spread": [float("inf")]},
    ],
)
def test_nonsense_of_what_is_usual_is_refused(fields: dict[str, list[float]]) -> None:
    done = pb.BlockDone(block_id="b", usual=pb.UsualLatencies(moments=1, **fields))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"latenc|spread"):
        convert.result_from_pb(received(pb.BlockDone, done.SerializeToString()), ())


def test_an_old_host_asks_for_no_references_and_an_old_agent_sends_none() -> None:
    spec = convert.spec_from_pb(received(pb.MeasureSpec, OLD_SPEC.SerializeToString()))
    assert (spec.references, spec.sessions) == (False, 1)
    result = convert.result_from_pb(received(pb.BlockDone, b""), ())
    assert (result.references, result.usual) == ((), None)
    wire = pb.ModelResult(model_id="m", latency_ns=[1], start_ns=[0])
    measurement = convert.measurement_from_pb(received(pb.ModelResult, wire.SerializeToString()))
    assert (measurement.weight_bytes, measurement.session_runs) == (0, ())


@given(st.sampled_from(FailureKind), texts)
def test_failure_round_trip(kind: FailureKind, message: str) -> None:
    sent = Measurement.failed("m", kind, message)
    got = convert.measurement_from_pb(convert.measurement_to_pb(sent, 0.2))
    assert got.failure == Failure(kind, message)
    assert got.latency_ns.size == 0


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=4))
def test_chunks_put_together_are_the_models(sizes: list[int]) -> None:
    models = tuple(Model(f"m{i}", bytes([i]) * size) for i, size in enumerate(sizes))
    block = Block("block", MeasureSpec(), models)
    header, *chunks = convert.block_to_requests(block, "lease")
    assert header.header.protocol_version == PROTOCOL_VERSION
    received = [b""] * len(models)
    for request in chunks:
        chunk = request.chunk
        assert 0 < len(chunk.data) <= CHUNK_BYTES
        assert chunk.offset == len(received[chunk.model])
        received[chunk.model] += chunk.data
    headers = header.header.models
    assert [len(data) for data in received] == [h.sent_bytes for h in headers]
    unpacked = [
        zlib.decompress(data) if h.encoding == pb.ENCODING_ZLIB else data
        for data, h in zip(received, headers, strict=True)
    ]
    assert unpacked == [model.data for model in models]
    for announced, data in zip(headers, unpacked, strict=True):
        assert announced.size_bytes == len(data)
        assert announced.sha256 == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    "message",
    [
        pb.ModelResult(model_id="m"),
        pb.ModelResult(model_id="m", latency_ns=[1, 2], start_ns=[0]),
        pb.ModelResult(model_id="m", failure=pb.Failure(kind=99)),  # type: ignore[arg-type]
    ],
)
def test_nonsense_from_an_agent_is_refused(message: pb.ModelResult) -> None:
    with pytest.raises(ValueError, match=r"neither samples|2 latencies|number 99"):
        convert.measurement_from_pb(message)
