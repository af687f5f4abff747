"""An upload is what its header announced, or it is refused."""

import hashlib
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from esm_agent.serving import upload
from esm_agent.serving.upload import TooLargeError, UploadError, VersionError, receive
from esm_protos.convert import block_to_requests
from esm_protos.messages import CHUNK_BYTES, Block, Limits, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb

LIMITS = Limits(max_block_bytes=10_000, max_block_models=3)
Requests = list[pb.MeasureBlockRequest]


def requests(*data: bytes) -> Requests:
    models = tuple(Model(f"m{index}", each) for index, each in enumerate(data))
    return list(block_to_requests(Block("b", MeasureSpec(), models), "lease"))


def test_models_arrive_whole(tmp_path: Path) -> None:
    block = receive(requests(b"one", b"", b"three"), tmp_path, LIMITS)
    assert (block.block_id, block.spec) == ("b", MeasureSpec())
    assert [(model.model_id, model.path.read_bytes()) for model in block.models] == [
        ("m0", b"one"),
        ("m1", b""),
        ("m2", b"three"),
    ]


def test_large_and_incompressible_models_arrive_whole(tmp_path: Path) -> None:
    """Around the size up to which models are compressed, and in several chunks."""
    limits = Limits(max_block_bytes=10**8, max_block_models=9)
    noise = random.Random(0).randbytes(3 * CHUNK_BYTES + 5)
    data = [noise[:CHUNK_BYTES], noise[: CHUNK_BYTES + 1], noise, bytes(CHUNK_BYTES)]
    sent = requests(*data)
    assert sum(request.ByteSize() for request in sent) < sum(map(len, data))
    block = receive(sent, tmp_path, limits)
    assert [model.path.read_bytes() for model in block.models] == data


def test_what_unpacks_to_more_than_announced_is_refused_before_it_does(tmp_path: Path) -> None:
    bomb = requests(bytes(10**6))
    bomb[0].header.models[0].size_bytes = 1_000
    with pytest.raises(UploadError, match="longer than announced"):
        receive(bomb, tmp_path, Limits(max_block_bytes=10_000, max_block_models=1))
    assert (tmp_path / "0.onnx").stat().st_size == 0


def test_little_is_unpacked_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of 100 KB that unpacks to 100 MB, as its header says."""
    pieces: list[int] = []
    unpacked = upload._unpacked

    def spy(*arguments) -> Iterator[bytes]:
        for piece in unpacked(*arguments):
            pieces.append(len(piece))
            yield piece

    monkeypatch.setattr(upload, "_unpacked", spy)
    size = 100_000_000
    bomb = requests(bytes(CHUNK_BYTES))
    packed = zlib.compress(bytes(size))
    bomb[0].header.models[0].size_bytes = size
    bomb[0].header.models[0].sent_bytes = len(packed)
    bomb[0].header.models[0].sha256 = hashlib.sha256(bytes(size)).digest()
    bomb[1].chunk.data = packed
    block = receive(bomb, tmp_path, Limits(max_block_bytes=10**9, max_block_models=1))
    assert block.models[0].path.stat().st_size == sum(pieces) == size
    assert max(pieces) <= 1 << 20


def test_one_model_may_be_too_large_where_the_block_is_not(tmp_path: Path) -> None:
    limits = Limits(max_block_bytes=10_000, max_block_models=3, max_model_bytes=100)
    with pytest.raises(TooLargeError, match="model m1 has"):
        receive(requests(b"x", b"x" * 101), tmp_path, limits)


def edited(edit: Callable[[Requests], object]) -> Requests:
    sent = requests(b"first", b"second")
    edit(sent)
    return sent


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.clear(),
        lambda r: r.pop(0),
        lambda r: r.pop(1),
        lambda r: r.pop(),
        lambda r: r.append(r[-1]),
        lambda r: r.insert(1, r[0]),
        lambda r: r.reverse(),
        lambda r: r.insert(1, r.pop()),
        lambda r: setattr(r[1].chunk, "data", b"FIRST"),
        lambda r: setattr(r[1].chunk, "data", b""),
        lambda r: setattr(r[1].chunk, "data", b"first and more"),
        lambda r: setattr(r[1].chunk, "offset", 1),
        lambda r: setattr(r[1].chunk, "model", 7),
        lambda r: setattr(r[0].header.models[0], "encoding", pb.ENCODING_PLAIN),
        lambda r: setattr(r[0].header.models[0], "encoding", 9),
        lambda r: setattr(r[0].header.models[0], "size_bytes", 4),
        lambda r: setattr(r[0].header.models[0], "size_bytes", 6),
        lambda r: setattr(r[0].header, "block_id", ""),
        lambda r: setattr(r[0].header, "block_id", "b" * 5_000),
        lambda r: r[0].header.ClearField("models"),
        lambda r: setattr(r[0].header.models[1], "model_id", "m0"),
        lambda r: setattr(r[0].header.models[0], "sha256", hashlib.sha256(b"").digest()),
        lambda r: setattr(r[0].header.spec, "runs", 0),
        lambda r: setattr(r[0].header.spec, "trim", 0.5),
        lambda r: setattr(r[0].header.spec, "protocol", 9),
        lambda r: setattr(r[0].header.spec, "model_timeout_s", float("nan")),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, edit: Callable[[Requests], object]) -> None:
    with pytest.raises(UploadError):
        receive(edited(edit), tmp_path, LIMITS)


@pytest.mark.parametrize(
    "sent",
    [requests(b"1", b"2", b"3", b"4"), requests(b"x" * 6_000, b"x" * 6_000)],
    ids=["models", "bytes"],
)
def test_too_much_is_refused_by_the_header_alone(tmp_path: Path, sent: Requests) -> None:
    with pytest.raises(TooLargeError, match="fewer models per block"):
        receive(sent[:1], tmp_path, LIMITS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("version", "older"), [(0, "workstation"), (99, "device")])
def test_another_version_says_what_to_upgrade(tmp_path: Path, version: int, older: str) -> None:
    sent = requests(b"model")
    sent[0].header.protocol_version = version
    with pytest.raises(VersionError, match=f"upgrade esm-profiler on the {older}"):
        receive(sent, tmp_path, LIMITS)


def test_samples_that_fit_into_no_memory_are_refused(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_memory_bytes=1 << 30)
    models = tuple(Model(f"m{i}", b"x") for i in range(3))
    for spec in (MeasureSpec(runs=1_000_000), MeasureSpec(runs=1_000_000, precision=0.02)):
        receive(block_to_requests(Block("b", spec, models), ""), tmp_path, limits)
    limits = replace(limits, max_memory_bytes=256 << 20)
    sent = block_to_requests(Block("b", MeasureSpec(runs=1_000_000), models), "")
    with pytest.raises(TooLargeError, match="1000000 runs of 3 models take 300 MB"):
        receive(sent, tmp_path, limits)
