"""Files are sent once, kept while they are needed, and never anything but what their hash says."""

import errno
import fcntl
import hashlib
import hmac
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from esm_agent.door.auth import OpenDoor
from esm_agent.providers import make_provider
from esm_agent.serving.cache import Cache, CacheError, CacheFullError, MissingFile, NotCachedError
from esm_agent.serving.server import AgentServer
from esm_host.errors import DeviceError, NotNowError
from esm_host.transport.remote import RemoteProfiler
from esm_protos import convert
from esm_protos.messages import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    Block,
    Case,
    FailureKind,
    File,
    MeasureSpec,
    Model,
    Progress,
    State,
)
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

SPEC = MeasureSpec(runs=3)


def file_of(data: bytes, path: Path | None = None) -> File:
    if path is not None:
        path.write_bytes(data)
    return File(hashlib.sha256(data).digest(), len(data), path)


@pytest.fixture
def alive() -> set[str]:
    return {"lease"}


@pytest.fixture
def cache(tmp_path: Path, alive: set[str]) -> Cache:
    return Cache(tmp_path / "cache", 1000, alive.__contains__)


def put(cache: Cache, data: bytes, lease: str = "lease", client: str = "ada") -> File:
    file = file_of(data)
    cache.receive(lease, client, file, 0, [data])
    return file


def test_what_was_received_is_not_missing_and_can_be_linked(cache: Cache) -> None:
    file = put(cache, b"weights")
    assert cache.offer("lease", "ada", [file]) == []
    with cache.linked("ada") as linked:
        linked.link(file, linked.folder / "w")
        assert (linked.folder / "w").read_bytes() == b"weights"
    assert not linked.folder.exists()


def test_a_cache_that_was_cleared_by_hand_is_made_again(cache: Cache) -> None:
    """As people do, with what is called a cache."""
    file = put(cache, b"weights")
    shutil.rmtree(cache.folder)
    assert cache.offer("lease", "ada", [file]) == [MissingFile(0, 0)]
    put(cache, b"weights")
    with cache.linked("ada") as linked:
        linked.link(file, linked.folder / "w")
        assert (linked.folder / "w").read_bytes() == b"weights"
    shutil.rmtree(cache.folder)
    with cache.linked("ada") as linked, pytest.raises(NotCachedError):
        linked.link(file, linked.folder / "w")


def test_a_broken_upload_is_gone_on_with(cache: Cache) -> None:
    data = b"0123456789"
    file = file_of(data)
    with pytest.raises(CacheError, match="broke off after 4 of 10"):
        cache.receive("lease", "ada", file, 0, [data[:4]])
    assert cache.offer("lease", "ada", [file]) == [MissingFile(0, 4)]
    cache.receive("lease", "ada", file, 4, [data[4:]])
    assert cache.offer("lease", "ada", [file]) == []


@pytest.mark.parametrize("sent", [b"0123456788", b"0123456789a"], ids=["other", "longer"])
def test_what_is_not_the_file_leaves_nothing(cache: Cache, sent: bytes) -> None:
    file = file_of(b"0123456789")
    with pytest.raises(CacheError):
        cache.receive("lease", "ada", file, 0, [sent])
    assert cache.offer("lease", "ada", [file]) == [MissingFile(0, 0)]
    assert cache.used_bytes() == 0


def test_going_on_where_nothing_is_asks_to_begin_again(cache: Cache) -> None:
    with pytest.raises(NotCachedError):
        cache.receive("lease", "ada", file_of(b"0123456789"), 4, [b"456789"])


def test_the_same_file_twice_at_a_time(cache: Cache) -> None:
    file = file_of(b"0123456789")

    def slowly() -> Iterator[bytes]:
        yield b"01234"
        with pytest.raises(NotCachedError, match="by another call"):
            cache.receive("lease", "ada", file, 0, [b"0123456789"])
        yield b"56789"

    cache.receive("lease", "ada", file, 0, slowly())
    assert cache.offer("lease", "ada", [file]) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_keeps_files_whole(
    cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems may have none; two uploads of one file must not mix."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    file = file_of(b"weights")

    def slowly() -> Iterator[bytes]:
        yield b"wei"
        put(cache, b"weights", client="eve")
        yield b"ghts"

    cache.receive("lease", "ada", file, 0, slowly())
    with pytest.raises(CacheError, match="broke off"):
        cache.receive("lease", "ada", file_of(b"others"), 0, [b"oth"])
    assert cache.offer("lease", "ada", [file, file_of(b"others")]) == [MissingFile(1, 0)]
    assert (cache.folder / file.sha256.hex()).read_bytes() == b"weights"
    assert [path.name for path in cache.folder.iterdir() if path.is_file()] == [file.sha256.hex()]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_disk_without_hard_links_is_no_obstacle(
    cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    file = put(cache, b"weights")
    with cache.linked("ada") as linked:
        linked.link(file, linked.folder / "w")
        assert (linked.folder / "w").read_bytes() == b"weights"
        monkeypatch.setattr(os, "link", lambda source, target: os.stat("/missing"))
        with pytest.raises(NotCachedError):
            linked.link(file, linked.folder / "v")


def test_room_is_made_by_what_was_asked_for_the_longest_ago(cache: Cache, alive: set[str]) -> None:
    old, kept, fresh = (put(cache, bytes([n]) * 300) for n in range(3))
    for age, file in ((300, old), (200, kept), (100, fresh)):
        moment = time.time() - age
        os.utime(cache.folder / file.sha256.hex(), (moment, moment))
    alive.clear()
    alive.add("other")
    assert cache.offer("other", "ada", [old]) == []  # asked for just now, and held
    put(cache, b"n" * 300, "other")
    assert cache.offer("other", "ada", [old, kept, fresh]) == [MissingFile(1, 0)]


def test_what_living_leases_hold_stays(cache: Cache) -> None:
    file = put(cache, b"a" * 800)
    with pytest.raises(CacheFullError, match="files in use leave 0 MB"):
        put(cache, b"b" * 300)
    cache.clear()
    assert cache.offer("lease", "ada", [file]) == []


def test_more_than_the_cache_takes_is_refused_before_it_is_sent(cache: Cache) -> None:
    with pytest.raises(CacheFullError, match="--cache-size"):
        cache.offer("lease", "ada", [File(bytes(32), 600), File(bytes([1]) * 32, 600)])


def test_what_is_in_use_survives_that_room_is_made(cache: Cache, alive: set[str]) -> None:
    file = put(cache, b"a" * 800)
    with cache.linked("ada") as linked:
        linked.link(file, linked.folder / "w")
        alive.clear()
        cache.clear()
        assert cache.used_bytes() == 0
        assert (linked.folder / "w").read_bytes() == b"a" * 800
        with pytest.raises(NotCachedError):
            linked.link(file, linked.folder / "again")


def proof(missing: MissingFile, data: bytes) -> bytes:
    return hmac.new(missing.nonce, data, hashlib.sha256).digest()


def test_a_file_is_used_by_who_sent_it_or_proves_to_have_it(cache: Cache) -> None:
    file = put(cache, b"weights", client="ada")
    with cache.linked("eve") as linked:
        with pytest.raises(NotCachedError, match="neither sent nor proved"):
            linked.link(file, linked.folder / "w")
        (missing,) = cache.offer("lease", "eve", [file])
        cache.prove("lease", "eve", file, proof(missing, b"weights"))
        linked.link(file, linked.folder / "w")
    assert cache.offer("lease", "eve", [file]) == []


def test_a_wrong_proof_is_the_last(cache: Cache) -> None:
    """Else a client could try what it guesses of a file, one proof after the other."""
    file = put(cache, b"weights", client="ada")
    (missing,) = cache.offer("lease", "eve", [file])
    with pytest.raises(CacheError, match="wrong"):
        cache.prove("lease", "eve", file, proof(missing, b"guessed"))
    with pytest.raises(NotCachedError):
        cache.prove("lease", "eve", file, proof(missing, b"weights"))
    assert cache.offer("lease", "eve", [file]) == [MissingFile(0)], "it is to be sent"
    with pytest.raises(CacheError):
        cache.receive("lease", "eve", file, 0, [b"guessed"])
    with cache.linked("eve") as linked, pytest.raises(NotCachedError):
        linked.link(file, linked.folder / "w")
    cache.receive("lease", "eve", file, 0, [b"weights"])
    assert cache.offer("lease", "eve", [file]) == []
    assert cache.offer("lease", "ada", [file]) == [], "nor did it harm who had sent it"


def test_a_nonce_is_of_one_lease(cache: Cache, alive: set[str]) -> None:
    alive.add("other")
    file = put(cache, b"weights", client="ada")
    (missing,) = cache.offer("lease", "eve", [file])
    with pytest.raises(NotCachedError):
        cache.prove("other", "eve", file, proof(missing, b"weights"))


def test_nobody_goes_on_with_the_upload_of_another_client(cache: Cache) -> None:
    """Its last byte alone would count as having sent it."""
    data = b"0123456789"
    file = file_of(data)
    with pytest.raises(CacheError, match="broke off"):
        cache.receive("lease", "ada", file, 0, [data[:9]])
    assert cache.offer("lease", "eve", [file]) == [MissingFile(0, 0)]
    with pytest.raises(NotCachedError):
        cache.receive("lease", "eve", file, 9, [data[9:]])
    assert cache.offer("lease", "ada", [file]) == [MissingFile(0, 9)]


def test_a_file_that_the_disk_has_changed_is_sent_again(cache: Cache) -> None:
    file = put(cache, b"weights", client="ada")
    (cache.folder / file.sha256.hex()).write_bytes(b"weighty")
    (missing,) = cache.offer("lease", "eve", [file])
    with pytest.raises(NotCachedError, match="damaged"):
        cache.prove("lease", "eve", file, proof(missing, b"weights"))
    assert cache.offer("lease", "eve", [file]) == [MissingFile(0)]


def test_room_is_reserved_when_an_upload_begins(cache: Cache) -> None:
    first, second = b"a" * 600, b"b" * 600

    def slowly() -> Iterator[bytes]:
        yield first[:1]
        assert cache.used_bytes() == 600
        with pytest.raises(CacheFullError):
            cache.receive("lease", "ada", file_of(second), 0, [second])
        yield first[1:]

    cache.receive("lease", "ada", file_of(first), 0, slowly())
    assert cache.used_bytes() == 600


def test_what_dead_leases_offered_is_forgotten(cache: Cache, alive: set[str]) -> None:
    for number in range(100):
        alive.clear()
        alive.add(f"lease {number}")
        cache.offer(f"lease {number}", "ada", [File(bytes(32), 1)])
    assert len(cache._offered) == 1


def test_a_folder_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    cache = Cache(folder, 1000)
    assert folder.stat().st_mode & 0o077 == 0
    file = put(cache, b"weights")
    assert (folder / file.sha256.hex()).stat().st_mode & 0o077 == 0


def test_a_folder_of_other_files_is_not_closed_to_their_users(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "notes.txt").touch()
    with pytest.raises(PermissionError, match="holds other files: choose an empty folder with "):
        Cache(folder, 1000)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_a_provider_made_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    tmp_path.chmod(0o755)
    make_provider("cpu").cache_folder()
    Cache(tmp_path, 1000)
    assert tmp_path.stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="another user: choose another folder with --cache"):
        Cache(tmp_path, 1000)


# Over a real connection, with the real runtime


class NamingDoor(OpenDoor):
    """Knows every caller by a name that the test sets."""

    client = "ada"

    def client_of(self, context: grpc.ServicerContext) -> str:
        return self.client


@pytest.fixture
def door() -> NamingDoor:
    return NamingDoor()


@pytest.fixture
def shared(tmp_path: Path, door: NamingDoor) -> Iterator[str]:
    folder = tmp_path / "cache"
    server = AgentServer("127.0.0.1", 0, door=door, cache_folder=folder, cache_bytes=50_000_000)
    yield f"127.0.0.1:{server.port}"
    server.stop()


def reshaped_by(file: File) -> Model:
    """Its shape is read from a file, and fits nothing, so that the runtime names it."""
    shape = onnx.TensorProto(name="shape", data_type=onnx.TensorProto.INT64)
    shape.dims.append(file.size_bytes // 8)
    shape.data_location = onnx.TensorProto.EXTERNAL
    shape.external_data.add(key="location", value="shape.bin")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model("reshape", model.SerializeToString(), external=(("shape.bin", file),))


SECRET = (7373, 9191)


def test_a_file_of_another_client_is_not_read(
    shared: str, door: NamingDoor, tmp_path: Path
) -> None:
    file = file_of(np.array(SECRET, np.int64).tobytes(), tmp_path / "secret")
    model = reshaped_by(file)
    with RemoteProfiler(shared) as profiler:
        (measurement,) = profiler.measure(Block("a", SPEC, (model,))).measurements
    assert measurement.failure is not None
    assert "shape" in measurement.failure.message
    assert not any(str(number) in measurement.failure.message for number in SECRET)
    door.client = "eve"
    with RemoteProfiler(shared) as profiler:
        profiler.reserve("test")
        requests = convert.block_to_requests(Block("b", SPEC, (model,)), profiler._lease.lease_id)
        with pytest.raises(grpc.RpcError, match="neither sent nor proved"):
            list(profiler._stub.MeasureBlock(requests))
        guessed = tmp_path / "guessed"
        guessed.write_bytes(bytes(16))
        other = replace(model, external=(("shape.bin", replace(file, path=guessed)),))
        with pytest.raises(DeviceError, match="proof of a file is wrong"):
            profiler.measure(Block("b", SPEC, (other,)))


def test_who_has_a_file_need_not_send_it(shared: str, door: NamingDoor, tmp_path: Path) -> None:
    model = gemm(tmp_path)
    for client in ("ada", "eve"):
        door.client = client
        with RemoteProfiler(shared) as profiler:
            call = profiler.submit(Block("b", SPEC, (model,)))
            assert call.result().measurements[0].failure is None
            sent = call.bytes_sent
    assert sent < 10_000


def test_a_damaged_beginning_is_sent_again(address: str, tmp_path: Path) -> None:
    """Of an upload that broke off; within the same call, so that nothing more is lost."""
    data = random.Random(0).randbytes(3 * CHUNK_BYTES)
    file = file_of(data, tmp_path / "data")
    with RemoteProfiler(address) as profiler:
        profiler.reserve("test")
        header = pb.UploadHeader(
            protocol_version=PROTOCOL_VERSION,
            lease_id=profiler._lease.lease_id,
            file=convert.file_to_pb(file),
        )
        first = [pb.UploadRequest(header=header), pb.UploadRequest(data=data[:CHUNK_BYTES])]
        with pytest.raises(grpc.RpcError):
            profiler._stub.Upload(iter(first))
        (part,) = (tmp_path / "cache").glob("*.part")
        part.write_bytes(bytes(CHUNK_BYTES))
        call = profiler.submit(Block("b", SPEC, (Model("m", file),)))
        told: list[Progress] = []
        call.result(told.append)
        assert call.bytes_sent > 5 * CHUNK_BYTES
        shares = [p.fraction for p in told if p.state is State.UPLOADING]
        assert shares[-1] == 1.0
    assert (tmp_path / "cache" / file.sha256.hex()).read_bytes() == data


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "*//_ORT_MEM_ADDR_/*"])
def test_no_file_is_called_an_address_in_memory(
    address: str, tmp_path: Path, location: str
) -> None:
    model = gemm(tmp_path, width=8, location=location)
    with (
        RemoteProfiler(address) as profiler,
        pytest.raises(DeviceError, match="a memory address"),
    ):
        profiler.measure(Block("b", SPEC, (model,)))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = AgentServer("127.0.0.1", 0, cache_folder=tmp_path / "cache", cache_bytes=50_000_000)
    yield f"127.0.0.1:{server.port}"
    server.stop()


def gemm(folder: Path, width: int = 1200, location: str = "sub/weights.bin") -> Model:
    """``width`` squared weights, in a file of their own."""
    weights = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32)
    tensor = numpy_helper.from_array(weights, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = file_of(weights.tobytes(), folder / "weights.bin")
    return Model("gemm", model.SerializeToString(), external=((location, file),))


def test_external_data_are_sent_once(address: str, tmp_path: Path) -> None:
    model = gemm(tmp_path)
    told: list[Progress] = []
    with RemoteProfiler(address) as profiler:
        first = profiler.submit(Block("a", SPEC, (model,)))
        (measurement,) = first.result(told.append).measurements
        assert measurement.failure is None
        assert first.bytes_sent > model.external[0][1].size_bytes
        shares = [p.fraction for p in told if p.state is State.UPLOADING]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    with RemoteProfiler(address) as profiler:
        second = profiler.submit(Block("b", SPEC, (model,)))
        assert second.result().measurements[0].failure is None
        assert second.bytes_sent < 10_000


def test_a_model_and_its_cases_share_one_file(address: str, tmp_path: Path) -> None:
    inline = gemm(tmp_path)
    own = file_of(inline.data, tmp_path / "m.onnx")
    inputs = tmp_path / "in.npz"
    np.savez(inputs, x=np.ones((2, 1200), np.float32))
    case = Case(inputs=file_of(inputs.read_bytes(), inputs))
    models = tuple(Model(f"m{n}", own, Case() if n else case, inline.external) for n in range(3))
    with RemoteProfiler(address) as profiler:
        call = profiler.submit(Block("b", SPEC, models))
        assert all(m.failure is None for m in call.result().measurements)
        assert call.bytes_sent < 1.1 * sum(file.size_bytes for file in models[0].files)


def test_what_did_not_come_with_a_model_is_not_read(address: str, tmp_path: Path) -> None:
    model = gemm(tmp_path)
    model = replace(model, external=(("elsewhere.bin", model.external[0][1]),))
    with RemoteProfiler(address) as profiler:
        (measurement,) = profiler.measure(Block("b", SPEC, (model,))).measurements
    assert measurement.failure is not None
    assert measurement.failure.kind is FailureKind.INVALID_MODEL
    assert "was not uploaded with the model" in measurement.failure.message


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../weights.bin", "a/../../w", ".model.onnx", "", "w\0"]
)
def test_files_stay_inside_of_the_models_folder(
    address: str, tmp_path: Path, location: str
) -> None:
    model = gemm(tmp_path, width=8, location=location)
    with (
        RemoteProfiler(address) as profiler,
        pytest.raises(DeviceError, match=r"a file outside|two files"),
    ):
        profiler.measure(Block("b", SPEC, (model,)))


def test_a_cached_file_is_not_written_to_through_a_link(address: str, tmp_path: Path) -> None:
    """A model that comes with the block, at the place of a file of its own in the cache."""
    model = gemm(tmp_path, width=8, location=".model.onnx")
    cached = tmp_path / "cache" / model.external[0][1].sha256.hex()
    with RemoteProfiler(address) as profiler, pytest.raises(DeviceError):
        profiler.measure(Block("b", SPEC, (model,)))
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == cached.name


def test_an_agent_without_a_cache_says_so(tmp_path: Path) -> None:
    server = AgentServer("127.0.0.1", 0)
    try:
        with RemoteProfiler(f"127.0.0.1:{server.port}") as profiler:
            assert profiler.device_info().limits.max_cache_bytes == 0
            with pytest.raises(DeviceError, match="--cache-size"):
                profiler.measure(Block("b", SPEC, (gemm(tmp_path),)))
    finally:
        server.stop()


def test_files_are_for_leases(address: str) -> None:
    stub = profiler_pb2_grpc.ProfilerStub(grpc.insecure_channel(address))
    file = pb.File(sha256=bytes(32), size_bytes=3)
    offer = pb.OfferRequest(protocol_version=PROTOCOL_VERSION, lease_id="none", files=[file])
    with pytest.raises(grpc.RpcError) as refused:
        stub.Offer(offer)
    assert refused.value.code() is grpc.StatusCode.ABORTED
    header = pb.UploadHeader(protocol_version=PROTOCOL_VERSION, lease_id="none", file=file)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Upload(iter([pb.UploadRequest(header=header), pb.UploadRequest(data=b"abc")]))
    assert refused.value.code() is grpc.StatusCode.ABORTED


def test_a_cut_upload_goes_on_where_it_was(address: str, tmp_path: Path) -> None:
    """The host dies in the middle; the next one sends the rest."""
    data = random.Random(0).randbytes(3 * CHUNK_BYTES)
    file = file_of(data, tmp_path / "data")
    with RemoteProfiler(address) as profiler:
        profiler.reserve("test")
        stub, lease_id = profiler._stub, profiler._lease.lease_id
        header = pb.UploadHeader(
            protocol_version=PROTOCOL_VERSION, lease_id=lease_id, file=convert.file_to_pb(file)
        )
        first = [pb.UploadRequest(header=header), pb.UploadRequest(data=data[:CHUNK_BYTES])]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Upload(iter(first))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        offer = pb.OfferRequest(
            protocol_version=PROTOCOL_VERSION,
            lease_id=lease_id,
            files=[convert.file_to_pb(file)],
        )
        assert [each.have_bytes for each in stub.Offer(offer).missing] == [CHUNK_BYTES]
        call = profiler.submit(Block("b", SPEC, (Model("m", file),)))
        told: list[Progress] = []
        (measurement,) = call.result(told.append).measurements
        totals = {p.total_bytes for p in told if p.state is State.UPLOADING}
        assert totals == {2 * CHUNK_BYTES}, "what is there already is not sent"
        assert measurement.failure is not None  # noise is no model
        assert call.bytes_sent < 2 * CHUNK_BYTES + 10_000
        assert stub.Offer(offer).missing == []


def test_a_block_whose_file_is_gone_is_to_be_sent_again(address: str, tmp_path: Path) -> None:
    model = gemm(tmp_path, width=8, location="w")
    with RemoteProfiler(address) as profiler:
        profiler.reserve("test")
        requests = convert.block_to_requests(Block("b", SPEC, (model,)), profiler._lease.lease_id)
        with pytest.raises(grpc.RpcError) as refused:
            list(profiler._stub.MeasureBlock(requests))
        assert isinstance(profiler.translated(refused.value), NotNowError)
        assert profiler.measure(Block("b", SPEC, (model,))).measurements[0].failure is None
