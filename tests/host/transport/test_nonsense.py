"""An agent that lies, or speaks no gRPC messages at all, ends in one line; nothing is believed."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.dataset.store import Store
from esm_host.errors import DeviceError
from esm_host.evaluation.verdict import block_evidence, judge_number
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.remote import RemoteProfiler
from esm_models.architecture import Architecture
from esm_protos import convert
from esm_protos.estimates import estimate_measured
from esm_protos.messages import Block, MeasureSpec, Model
from esm_protos.received import NonsenseError, received
from esm_protos.text import LONGEST_TEXT
from esm_protos.v1 import profiler_pb2 as pb
from tests.faults.malformed import mutated_bytes
from tests.protos.anything import messages

BLOCK = Block("block", MeasureSpec(runs=3), (Model("a", b"a"), Model("b", b"b")))
GARBAGE = b"\xff\xff\xff\xff no message \x1b[2J"
LEASE = pb.LeaseReply(standing=pb.Standing(expires_s=30))
NAN, INF = math.nan, math.inf
Answer = Message | bytes | tuple[grpc.StatusCode, str]


class Liar(grpc.GenericRpcHandler):
    """Answers each method with what it is told to; takes anything."""

    def __init__(self) -> None:
        info = convert.device_info_to_pb(FakeProfiler(lambda model: 1.0).device_info())
        self.answers: dict[str, list[Answer]] = {"GetDeviceInfo": [info], "Lease": [LEASE]}
        self.calls: list[str] = []

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls.append(method)
            for each in self.answers.get(method, []):
                if isinstance(each, tuple):
                    context.abort(*each)
                yield each if isinstance(each, bytes) else each.SerializeToString()

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture
def liar() -> Iterator[tuple[Liar, RemoteProfiler]]:
    handler = Liar()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with RemoteProfiler(f"127.0.0.1:{port}", "pi4") as profiler:
            yield handler, profiler
    finally:
        server.stop(None)


def events(**result: Any) -> list[Answer]:
    """A block's events, of which the first model's result has these fields."""
    good = {"latency_ns": [5, 6, 7], "start_ns": [0, 5, 11]}
    first = pb.ModelResult(**{"model_id": "a", **good, **result})
    return [
        pb.MeasureBlockEvent(result=first),
        pb.MeasureBlockEvent(result=pb.ModelResult(model_id="b", **good)),
        pb.MeasureBlockEvent(done=pb.BlockDone(block_id="block")),
    ]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DeviceError) as error:
        call()
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < LONGEST_TEXT + 100
    return text


def test_what_makes_sense_is_believed(liar: tuple[Liar, RemoteProfiler]) -> None:
    handler, profiler = liar
    handler.answers["MeasureBlock"] = events()
    assert [m.model_id for m in profiler.measure(BLOCK).measurements] == ["a", "b"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (events(latency_ns=[5, 0, 7]), "latency of 0 ns"),
        (events(latency_ns=[5, 2**63, 7]), "latency of 9223372036854775808 ns"),
        (events(latency_ns=[5]), "1 latencies with 3 starts"),
        (events(latency_ns=[5] * 4, start_ns=[0] * 4), "4 runs of a model instead of at most 3"),
        (events(trimmed_mean_ns=NAN), "trimmed mean of nan ns"),
        (events(model_id="c"), "the result of another model"),
        (events(failure=pb.Failure(kind=77)), "unknown kind number 77"),  # type: ignore[arg-type]
        (events()[1:], "the result of another model"),
        (events()[2:], "the results of another block"),
        (events()[:2] + events()[:1], "the result of another model"),
        ([GARBAGE], "not a MeasureBlockEvent"),
        (
            [pb.MeasureBlockEvent(progress=pb.Progress(state="STATE_QUEUED", fraction=NAN))],
            "fraction of nan",
        ),
        (
            [pb.MeasureBlockEvent(done=pb.BlockDone(states=[pb.DeviceState(load_1min=NAN)]))],
            "load 1min of nan",
        ),
    ],
)
def test_a_result_of_nonsense_is_refused_whole(
    liar: tuple[Liar, RemoteProfiler], sent: list[Answer], words: str
) -> None:
    handler, profiler = liar
    handler.answers["MeasureBlock"] = sent
    text = refused(lambda: profiler.measure(BLOCK))
    assert text.startswith("pi4 sent an invalid answer: ")
    assert words in text


def test_parts_have_an_end(
    liar: tuple[Liar, RemoteProfiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, profiler = liar
    monkeypatch.setattr("esm_protos.received.MOST_ITEMS", 50)
    part = pb.MeasureBlockEvent(result_part=pb.ModelResult(fallback=["x"] * 20))
    handler.answers["MeasureBlock"] = [part] * 1000
    assert "a list of 60 fallback" in refused(lambda: profiler.measure(BLOCK))


@pytest.mark.parametrize(
    ("method", "answer", "call", "words"),
    [
        (
            "Lease",
            pb.LeaseReply(standing=pb.Standing(expires_s=INF)),
            lambda profiler: profiler.reserve("test"),
            "expires of inf s",
        ),
        ("Lease", GARBAGE, lambda profiler: profiler.reserve("test"), "not a LeaseReply"),
        (
            "Lease",
            pb.LeaseReply(standing=pb.Standing(wait_s=-1)),
            lambda profiler: profiler.measure(BLOCK),
            "wait of -1.0 s",
        ),
        ("GetDeviceInfo", GARBAGE, lambda profiler: profiler.device_info(), "not a DeviceInfo"),
        (
            "Diagnose",
            pb.Diagnosis(findings=[pb.Finding(severity=44)]),  # type: ignore[arg-type]
            lambda profiler: profiler.diagnose(),
            "unknown severity number 44",
        ),
    ],
)
def test_an_answer_of_nonsense_is_one_line(
    liar: tuple[Liar, RemoteProfiler],
    method: str,
    answer: Answer,
    call: Callable[[RemoteProfiler], object],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler, profiler = liar
    handler.answers[method] = [answer]
    text = refused(lambda: call(profiler))
    assert text.startswith("pi4 sent an invalid answer: ")
    assert words in text
    assert "Traceback" not in capfd.readouterr().err


def mutated_answers(liar: tuple[Liar, RemoteProfiler], numbers: range) -> Counter[str]:
    """What a host makes of answers with bytes changed."""
    handler, profiler = liar
    good = [
        event.SerializeToString()
        for event in [
            pb.MeasureBlockEvent(progress=pb.Progress(state="STATE_QUEUED", fraction=0.5)),
            pb.MeasureBlockEvent(result_part=pb.ModelResult(fallback=["node"])),
            *events(profile=pb.Profile(runs=1, nodes=[pb.NodeTime(name="n", ns=1.5)])),
        ]
        if isinstance(event, Message)
    ]
    info = handler.answers["GetDeviceInfo"][0]
    assert isinstance(info, Message)
    counts: Counter[str] = Counter()
    for number in numbers:
        rng = random.Random(number)
        sent: list[Answer] = list(good)
        at = rng.randrange(len(sent))
        sent[at] = mutated_bytes(good[at], rng)
        handler.answers["MeasureBlock"] = sent
        handler.answers["GetDeviceInfo"] = [mutated_bytes(info.SerializeToString(), rng)]
        for call in (lambda: profiler.measure(BLOCK), profiler.device_info):
            try:
                call()
            except DeviceError as error:
                counts[str(error).partition(":")[0]] += 1
            else:
                counts["believed"] += 1
    return counts


def test_some_mutated_answers(liar: tuple[Liar, RemoteProfiler]) -> None:
    counts = mutated_answers(liar, range(100))
    assert counts["believed"] > 10
    assert counts["pi4 sent an invalid answer"] > 50


@pytest.mark.faults
def test_ten_thousand_mutated_answers(liar: tuple[Liar, RemoteProfiler]) -> None:
    print(f"\n{mutated_answers(liar, range(100, 5100))}")


def test_what_is_believed_can_be_stored_and_reported(tmp_path: Path) -> None:
    plan = [Architecture("s", (("a",), ("b",) * number)) for number in range(1, 5)]
    store = Store(tmp_path / "store.sqlite")
    store.add_plan(0, plan)
    device = FakeProfiler(lambda model: 1.0).device_info()
    numbers = itertools.count()
    stored: list[str] = []

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(messages(pb.ModelResult, odd=30), min_size=4, max_size=4),
        messages(pb.BlockDone, odd=30),
    )
    def keep(results: list[pb.ModelResult], done: pb.BlockDone) -> None:
        block_id = f"b{next(numbers)}"
        for architecture, result in zip(plan, results, strict=True):
            result.model_id = architecture.key
        for result in (*results, *done.references):  # else hardly any would make sense
            del result.start_ns[:]
            result.start_ns.extend(range(len(result.latency_ns)))
            del result.session_runs[:]
        done.ClearField("usual")
        try:
            measurements = tuple(
                convert.measurement_from_pb(received(pb.ModelResult, each.SerializeToString()))
                for each in results
            )
            believed = received(pb.BlockDone, done.SerializeToString())
            result = convert.result_from_pb(believed, measurements)
        except NonsenseError:
            return
        block = Block(block_id, MeasureSpec(), tuple(Model(a.key, b"") for a in plan))
        store.add_block(0, block, replace(result, block_id=block_id), device, 1, 1.0)
        assert store.results()[-1].states == result.states
        stored.append(block_id)

    keep()
    assert len(stored) > 5
    kept = store.results()
    assert [each.block_id for each in kept] == stored
    for result in kept:
        assert len(result.measurements) == 4
        estimate = estimate_measured(result.measurements, MeasureSpec(), result.references)
        evidence = block_evidence(result.states, estimate.slowdown)
        for each in estimate.models:
            assert 0 < each.latency_ns < 2**54
            judge_number(each.interval, 0.02, evidence, each.parts, each.shift)


def test_the_heartbeat_survives_anything(liar: tuple[Liar, RemoteProfiler]) -> None:
    handler, profiler = liar
    handler.answers["Lease"] = [pb.LeaseReply(standing=pb.Standing(expires_s=0.5))]
    profiler.reserve("test")
    (heart,) = [thread for thread in threading.enumerate() if thread.name == "esm-lease"]
    nonsense: list[Answer] = [
        GARBAGE,
        pb.LeaseReply(standing=pb.Standing(expires_s=INF)),
        pb.LeaseReply(standing=pb.Standing(expires_s=NAN)),
        pb.LeaseReply(standing=pb.Standing(expires_s=1e300)),
        (grpc.StatusCode.INTERNAL, "\x1b[2J"),
        pb.LeaseReply(standing=pb.Standing(ahead=2**32 - 1, wait_s=NAN)),
    ]
    for answer in nonsense:
        handler.answers["Lease"] = [answer]
        before = len(handler.calls)
        deadline = time.monotonic() + 10
        while len(handler.calls) < before + 2:  # another one after the answer
            assert time.monotonic() < deadline, answer
            assert heart.is_alive()
            time.sleep(0.01)


def test_words_of_an_agent_are_cut_and_made_harmless(liar: tuple[Liar, RemoteProfiler]) -> None:
    handler, profiler = liar
    evil = "\x1b]0;x\x07\x1b[2J\n\u202e" + "y" * 5000
    handler.answers["Diagnose"] = [(grpc.StatusCode.INVALID_ARGUMENT, evil)]
    assert "\u202e" not in refused(profiler.diagnose)
    info = convert.device_info_to_pb(FakeProfiler(lambda model: 1.0).device_info())
    info.hostname = evil * 20
    info.occupancy.holder.owner = evil * 20
    handler.answers["GetDeviceInfo"] = [info]
    seen = profiler.device_info()
    holder = seen.occupancy.holder
    assert holder is not None
    for text in (seen.hostname, holder.owner):
        assert text.isprintable()
        assert text.startswith("?]0;x??[2J ?yyy")
        assert len(text) == LONGEST_TEXT
