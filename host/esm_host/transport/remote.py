"""Profiler of an agent over gRPC; the only place that translates gRPC's errors."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import IO, Any

import grpc

from esm_host.errors import AuthError, DeviceError, InvalidRequestError, NotNowError, VersionError
from esm_host.transport.access import PLAIN, Access, no_agent, tls_error
from esm_host.transport.base import OnProgress, Pending, Profiler, busy, ignore
from esm_host.transport.checked import CheckedChannel
from esm_host.transport.lease import Lease
from esm_protos import convert
from esm_protos.messages import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    Block,
    BlockResult,
    DeviceInfo,
    Diagnosis,
    File,
    Measurement,
    Progress,
    Standing,
    State,
)
from esm_protos.received import NonsenseError
from esm_protos.text import foreign
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A restarted agent is found within a second instead of after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_ANSWER_S = 10.0
_OFFER_S = 60.0
_LOOK_S = 0.2

# The agent or the network failed. The block is lost, but another attempt may succeed.
_GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class RemoteProfiler(Profiler):
    """Profiler of the agent at an address.

    Args:
        address: Address, ``host:port``.
        name: Name of the device in messages; None for the address.
        access: Credentials of both sides.
        answer_s: Time after which an agent that does not answer counts as unreachable, s.
    """

    def __init__(
        self,
        address: str,
        name: str | None = None,
        access: Access = PLAIN,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self.address = address
        self.name = name or address
        self._access = access
        self._answer_s = answer_s
        self._channel = access.channel(address, _OPTIONS)
        self._stub: Any = profiler_pb2_grpc.ProfilerStub(CheckedChannel(self._channel))
        self._lease = Lease(self._stub)

    def device_info(self) -> DeviceInfo:
        request = pb.GetDeviceInfoRequest(protocol_version=PROTOCOL_VERSION)
        with self.translating():
            message = self._stub.GetDeviceInfo(request, timeout=self._answer_s)
            info = convert.device_info_from_pb(message)
        if info.protocol_version != PROTOCOL_VERSION:
            older = "device" if info.protocol_version < PROTOCOL_VERSION else "workstation"
            raise VersionError(
                f"{self.name} speaks protocol {info.protocol_version}, this host "
                f"{PROTOCOL_VERSION}: upgrade esm-profiler on the {older}"
            )
        return info

    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        with self.translating():
            try:
                standing = self._lease.renew(purpose, wait)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self.device_info()  # reports the version of an agent without leases
                raise
        if not wait and standing.ahead:
            raise busy(self.name, standing.holder)
        return standing

    def submit(self, block: Block) -> Pending:
        return _Call(self, block, self._stub, self._renewed())

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        request = pb.DiagnoseRequest(
            protocol_version=PROTOCOL_VERSION, probe_s=probe_s, lease_id=self._renewed()
        )
        with self.translating():
            # No deadline, because it may wait for the blocks of others.
            return convert.diagnosis_from_pb(self._stub.Diagnose(request))

    def close(self) -> None:
        self._lease.release()
        self._channel.close()

    def _renewed(self) -> str:
        """Renew the lease if the agent is reachable, and return its id."""
        # The call that needs the lease reports an unreachable agent better.
        with self.translating(), contextlib.suppress(grpc.RpcError):
            self._lease.renew()
        return self._lease.lease_id

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Translate gRPC's errors and invalid answers into the host's own errors."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.translated(error) from None
        except NonsenseError as error:
            raise DeviceError(f"{self.name} sent an invalid answer: {error}") from error

    def translated(self, error: grpc.RpcError) -> DeviceError:
        """Return the host's own error for one of gRPC's."""
        code, details = error.code(), foreign(error.details() or "no details")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return VersionError(
                f"{self.name} ({self.address}) is not an esm-agent of this version: "
                "install the same esm-profiler on both sides"
            )
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return AuthError(f"{self.name} refused: {details}")
        if code is grpc.StatusCode.FAILED_PRECONDITION and "protocol" in details:
            return VersionError(details)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequestError(f"{self.name} refused: {details}")
        if code is grpc.StatusCode.ABORTED:
            return NotNowError(f"{self.name}: {details}")
        broken = "RST_STREAM" in details or "Stream removed" in details
        if code in _GONE or broken:
            if code is grpc.StatusCode.UNAVAILABLE and (
                reason := tls_error(self.address, self.name, self._access)
            ):
                return reason
            return no_agent(self.address, self.name)
        return DeviceError(f"{self.name} refused: {details}")


class _Call(Pending):
    """MeasureBlock call, which gRPC sends in the background.

    gRPC keeps its events until :meth:`result`. A block with files starts only in :meth:`result`,
    after the files that the agent lacks are uploaded.
    """

    def __init__(self, profiler: RemoteProfiler, block: Block, stub: Any, lease_id: str) -> None:
        self._profiler = profiler
        self._block = block
        self._lease_id = lease_id
        self._stub = stub
        files = (file for model in block.models for file in model.files)
        self._files = list({file.sha256: file for file in files}.values())
        self._call = None if self._files else stub.MeasureBlock(self._requests())

    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        with self._profiler.translating():
            if self._call is None:
                self._upload(on_progress)
                self._call = self._stub.MeasureBlock(self._requests())
            measurements: list[Measurement] = []
            result, done = pb.ModelResult(), pb.BlockDone()  # joined from their parts
            try:
                for event in self._call:
                    kind = event.WhichOneof("event")
                    if kind == "progress":
                        on_progress(convert.progress_from_pb(event.progress))
                    elif kind in ("result_part", "result"):
                        convert.join_part(result, getattr(event, kind))
                        if kind == "result":
                            measurements.append(self._expected(len(measurements), result))
                            result = pb.ModelResult()
                    elif kind in ("done_part", "done"):
                        convert.join_part(done, getattr(event, kind))
                        if kind == "done":
                            return self._complete(measurements, done)
            except NonsenseError:
                self.cancel()  # the stream may be endless
                raise
        name = self._profiler.name
        raise DeviceError(f"{name} ended block {self._block.block_id} without a result")

    def finish(self) -> None:
        request = pb.FinishRequest(
            protocol_version=PROTOCOL_VERSION,
            lease_id=self._lease_id,
            block_id=self._block.block_id,
        )
        try:
            self._stub.FinishBlock(request, timeout=_ANSWER_S)
        except (grpc.RpcError, NonsenseError):
            self.cancel()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _upload(self, on_progress: OnProgress) -> None:
        """Upload the files that the agent lacks, and prove those that other hosts sent.

        Interrupted uploads continue where they stopped.
        """
        lacks: list[tuple[File, int]] = []
        unproved: list[tuple[File, bytes]] = []
        for offered, offer in convert.offer_requests(self._files, self._lease_id):
            reply = self._stub.Offer(offer, timeout=_OFFER_S)
            missing, others = convert.missing_from_pb(reply, offered)
            lacks += missing
            unproved += others
        total = sum(file.size_bytes - have for file, have in lacks)
        before = self.bytes_sent

        def told() -> None:
            share = (self.bytes_sent - before) / max(total, 1)
            on_progress(Progress(State.UPLOADING, min(share, 1.0), None, total))

        for file, nonce in unproved:
            self._send(self._proof(file, nonce), lambda: None)
        for file, have in lacks:
            try:
                self._send_file(file, have, told)
            except grpc.RpcError as error:
                # The agent discarded a damaged partial upload.
                if error.code() is not grpc.StatusCode.DATA_LOSS or not have:
                    raise
                total += have
                self._send_file(file, 0, told)
        if lacks:
            on_progress(Progress(State.UPLOADING, 1.0, None, total))

    def _send_file(self, file: File, offset: int, told: Callable[[], None]) -> None:
        assert file.path is not None
        with file.path.open("rb") as source:
            source.seek(offset)
            self._send(self._pieces(file, offset, source), told)

    def _send(self, requests: Iterator[pb.UploadRequest], told: Callable[[], None]) -> None:
        """Make one Upload call; ``told`` is called repeatedly until it ends."""
        call = self._stub.Upload.future(requests)
        try:
            while not call.done():
                told()
                with contextlib.suppress(grpc.FutureTimeoutError):
                    call.result(timeout=_LOOK_S)
            call.result()
        finally:
            call.cancel()

    def _proof(self, file: File, nonce: bytes) -> Iterator[pb.UploadRequest]:
        """Return the proof that this host has a file, which then need not be sent."""
        assert file.path is not None
        code = hmac.new(nonce, digestmod=hashlib.sha256)
        with file.path.open("rb") as source:
            while piece := source.read(CHUNK_BYTES):
                code.update(piece)
        header = pb.UploadHeader(
            protocol_version=PROTOCOL_VERSION,
            lease_id=self._lease_id,
            file=convert.file_to_pb(file),
            proof=code.digest(),
        )
        return iter((pb.UploadRequest(header=header),))

    def _pieces(self, file: File, offset: int, source: IO[bytes]) -> Iterator[pb.UploadRequest]:
        yield pb.UploadRequest(
            header=pb.UploadHeader(
                protocol_version=PROTOCOL_VERSION,
                lease_id=self._lease_id,
                file=convert.file_to_pb(file),
                offset=offset,
            )
        )
        while piece := source.read(CHUNK_BYTES):
            self.bytes_sent += len(piece)
            yield pb.UploadRequest(data=piece)

    def _requests(self) -> Iterator[pb.MeasureBlockRequest]:
        for request in convert.block_to_requests(self._block, self._lease_id):
            self.bytes_sent += request.ByteSize()
            yield request

    def _expected(self, number: int, message: pb.ModelResult) -> Measurement:
        """Return the result of the block's next model.

        Raises:
            NonsenseError: the result is of another model, or has too many runs.
        """
        models = self._block.models
        if number == len(models) or message.model_id != models[number].model_id:
            raise NonsenseError("the result of another model")
        runs = self._block.spec.runs
        if len(message.latency_ns) > runs:
            raise NonsenseError(
                f"{len(message.latency_ns)} runs of a model instead of at most {runs}"
            )
        return convert.measurement_from_pb(message)

    def _complete(self, measurements: list[Measurement], done: pb.BlockDone) -> BlockResult:
        if len(measurements) < len(self._block.models) or done.block_id != self._block.block_id:
            raise NonsenseError("the results of another block")
        return convert.result_from_pb(done, tuple(measurements))
