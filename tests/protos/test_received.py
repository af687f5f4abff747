"""What comes over the wire is valid, or refused whole, whatever it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_protos import convert
from esm_protos import received as gate
from esm_protos.messages import Block, BlockResult, DeviceState, File, MeasureSpec, Model
from esm_protos.pieces import PIECE_BYTES, pieces
from esm_protos.received import NonsenseError, received
from esm_protos.text import LONGEST_TEXT, foreign
from esm_protos.v1 import profiler_pb2 as pb
from tests.protos.anything import messages

OFFERED = [File(bytes(32), 100), File(bytes(32), 1)]

ANSWERS: dict[type[Message], Callable[[Any], object]] = {
    pb.DeviceInfo: convert.device_info_from_pb,
    pb.LeaseReply: lambda reply: convert.standing_from_pb(reply.standing),
    pb.OfferReply: lambda reply: convert.missing_from_pb(reply, OFFERED),
    pb.Progress: convert.progress_from_pb,
    pb.ModelResult: convert.measurement_from_pb,
    pb.BlockDone: lambda done: convert.result_from_pb(done, ()),
    pb.Diagnosis: convert.diagnosis_from_pb,
}
"""Every message that an agent answers with, and how a host reads it."""


def converted(kind: type[Message], data: bytes) -> object:
    """What a host makes of an answer, or why it refuses it."""
    try:
        return ANSWERS[kind](received(kind, data))
    except ValueError as error:
        return str(error)


def check_valid(value: Any) -> None:
    """Finite numbers that fit anywhere, and text that prints on one line."""
    if is_dataclass(value):
        for name, each in vars(value).items():
            if not name.endswith("_id"):  # a host's own, compared with what it sent
                check_valid(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            check_valid(each)
    elif isinstance(value, np.ndarray):
        assert np.isfinite(value).all()
        assert (value >= 0).all()
        assert value.dtype == np.float64 or (value <= 2**53).all()
    elif isinstance(value, str):
        assert value.isprintable()
        assert len(value) <= LONGEST_TEXT
    elif isinstance(value, int | float):
        assert math.isfinite(value)
        assert abs(value) < 2**63 or isinstance(value, float)


@pytest.mark.parametrize("kind", ANSWERS)
@given(st.data())
def test_an_answer_is_valid_or_refused(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    value = converted(kind, message.SerializeToString())
    check_valid(value)
    if is_dataclass(value) and not isinstance(value, type):
        json.dumps(asdict(value), allow_nan=False, default=lambda each: str(type(each)))


@pytest.mark.parametrize("kind", ANSWERS)
@given(st.data())
def test_bytes_are_valid_or_refused(kind: type[Message], data: st.DataObject) -> None:
    good = data.draw(messages(kind, odd=1000)).SerializeToString()
    at = data.draw(st.integers(0, len(good)))
    check_valid(converted(kind, good[:at] + data.draw(st.binary(max_size=8)) + good[at:]))
    check_valid(converted(kind, data.draw(st.binary(max_size=100))))


@given(messages(pb.DeviceState))
def test_a_state_that_is_let_in_survives_json(message: pb.DeviceState) -> None:
    try:
        state = convert.state_from_pb(received(pb.DeviceState, message.SerializeToString()))
    except NonsenseError:
        return
    text = json.dumps(state.to_json(), allow_nan=False)
    assert DeviceState.from_json(json.loads(text)) == state


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.ModelResult(model_id="m", latency_ns=[5, 0], start_ns=[0, 5]), "latency of 0 ns"),
        (
            pb.ModelResult(model_id="m", latency_ns=[2**63], start_ns=[0]),
            "latency of 9223372036854775808 ns",
        ),
        (
            pb.ModelResult(model_id="m", latency_ns=[5], start_ns=[0], warming_ns=[9, 0]),
            "warming of 0.0 ns",
        ),
        (
            pb.ModelResult(model_id="m", latency_ns=[5], start_ns=[0], warming_ns=[5e-324]),
            "warming of 5e-324 ns",
        ),
        (
            pb.ModelResult(model_id="m", latency_ns=[5], start_ns=[0], warm_ns=[0]),
            "warm of 0 ns",
        ),
        *(
            (
                pb.BlockDone(
                    usual=pb.UsualLatencies(references=["a"], latency_ns=[taken], spread=[0.1])
                ),
                f"latency of {taken} ns",
            )
            for taken in (5e-324, 0.5, 9e15)
        ),
        (pb.ModelResult(model_id="m", trimmed_mean_ns=math.nan), "trimmed mean of nan ns"),
        (pb.LeaseReply(standing=pb.Standing(expires_s=math.inf)), "expires of inf s"),
        (pb.LeaseReply(standing=pb.Standing(expires_s=1e9)), "expires of 1000000000.0 s"),
        (pb.BlockDone(states=[pb.DeviceState(load_1min=math.nan)]), "load 1min of nan"),
        (pb.BlockDone(states=[pb.DeviceState(busy_s=-1)]), "busy of -1.0 s"),
        (pb.Progress(state=99), "unknown state number 99"),  # type: ignore[arg-type]
        (pb.OfferReply(missing=[pb.Missing(file=2)]), "file 2 of 2 is missing"),
        (pb.OfferReply(missing=[pb.Missing(file=1, have_bytes=9)]), "9 bytes of a file of 1"),
    ],
)
def test_nonsense_is_named_in_one_line(message: Message, words: str) -> None:
    with pytest.raises(NonsenseError, match=words):
        ANSWERS[type(message)](received(type(message), message.SerializeToString()))


def test_a_temperature_may_be_below_zero() -> None:
    state = pb.DeviceState(temperature_c=-12.5)
    assert received(pb.DeviceState, state.SerializeToString()).temperature_c == -12.5


def test_lists_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_ITEMS", 3)
    whole = pb.BlockDone()
    convert.join_part(whole, pb.BlockDone(states=[pb.DeviceState()] * 3))
    with pytest.raises(NonsenseError, match="a list of 4 states"):
        convert.join_part(whole, pb.BlockDone(states=[pb.DeviceState()]))


@given(st.text())
def test_text_prints_on_one_line(text: str) -> None:
    shown = foreign(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST_TEXT
    assert foreign(shown) == shown


def test_text_that_moves_a_cursor_or_turns_around() -> None:
    assert foreign("a\x1b[2Jb\nc\u202ed") == "a?[2Jb c?d"
    assert foreign("x" * 100_000) == "x" * (LONGEST_TEXT - 1) + "…"


def test_names_that_are_compared_stay_as_they_are() -> None:
    odd = "models/\x1b\n.onnx"
    result = pb.ModelResult(model_id=odd).SerializeToString()
    assert received(pb.ModelResult, result).model_id == odd
    shape = pb.InputShape(input=odd).SerializeToString()
    assert received(pb.InputShape, shape).input == odd
    long = pb.ModelResult(model_id="x" * 5000).SerializeToString()
    with pytest.raises(NonsenseError, match="model id of 5000 characters"):
        received(pb.ModelResult, long)


@settings(max_examples=5, deadline=None)
@given(messages(pb.ModelResult, odd=1000))
def test_pieces_merge_into_the_whole(message: pb.ModelResult) -> None:
    many = pb.ModelResult()
    many.CopyFrom(message)
    many.latency_ns.extend(range(2**53 - 200_000, 2**53))
    many.fallback.extend(["x" * 1000] * 2000)
    many.profile.nodes.extend([pb.NodeTime(name="y" * 1000, ns=1.5)] * 2000)
    whole, count = pb.ModelResult(), 0
    for piece in pieces(many):
        assert piece.ByteSize() <= PIECE_BYTES + 2000
        if not count:
            assert piece.model_id == many.model_id
        whole.MergeFrom(piece)
        count += 1
    assert count > 4
    assert whole == many
    assert list(pieces(message)) == [message]


def test_a_header_of_any_size_comes_in_small_messages() -> None:
    """The header of a model with as many files as it may have, among others."""
    file = File(bytes(32), 5)
    external = tuple((f"weights/{number:0100}", file) for number in range(30_000))
    models = tuple(
        Model(f"m{number}", file, external=external if number == 1 else ()) for number in range(3)
    )
    block = Block("block", MeasureSpec(), models)
    requests = list(convert.block_to_requests(block, "lease"))
    assert len(requests) > 3
    assert requests[0].header_part.lease_id == "lease", "the first part says whose it is"
    header = pb.BlockHeader()
    for request in requests:
        assert request.ByteSize() < 2 * PIECE_BYTES
        kind = request.WhichOneof("part")
        assert kind == ("header" if request is requests[-1] else "header_part")
        sent = received(pb.MeasureBlockRequest, request.SerializeToString())
        convert.join_header(header, getattr(sent, kind))
    assert [model.model_id for model in header.models] == ["m0", "m1", "m2"]
    assert [e.location for e in header.models[1].external] == [name for name, _ in external]


def test_a_header_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_MOST_HEADER_BYTES", 16 << 20)
    part = pb.BlockHeader(models=[pb.ModelHeader(model_id="m" * 4000)] * 260)
    header = pb.BlockHeader()
    for _ in range(16):
        convert.join_header(header, part)
    with pytest.raises(NonsenseError, match="a header of"):
        convert.join_header(header, part)


def test_many_files_are_offered_in_small_messages() -> None:
    files = [File(bytes(32), number) for number in range(100_000)]
    offered: list[File] = []
    for some, request in convert.offer_requests(files, "lease"):
        assert request.ByteSize() < PIECE_BYTES
        assert len(request.files) == len(some)
        offered += some
    assert offered == files


def test_a_block_result_has_no_states_of_nonsense() -> None:
    done = pb.BlockDone(block_id="b", states=[pb.DeviceState(at_ns=-5, clock_mhz=[1500.0])])
    result = convert.result_from_pb(received(pb.BlockDone, done.SerializeToString()), ())
    assert isinstance(result, BlockResult)
    assert result.states == (DeviceState(-5, (1500.0,)),)
