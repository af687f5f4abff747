"""Implementation of the RPCs, and the only place that converts errors to status codes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc

from esm_agent.device.telemetry import Telemetry
from esm_agent.diagnosis.doctor import examine
from esm_agent.diagnosis.probe import check_probe_s
from esm_agent.door.auth import Door
from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.worker import CancelledError, WorkerUnavailableError
from esm_agent.operation import logs
from esm_agent.operation.metrics import Metrics
from esm_agent.serving.cache import (
    Cache,
    CacheError,
    CacheFullError,
    DamagedError,
    LinkFolder,
    NotCachedError,
)
from esm_agent.serving.calls import DeferredAnswer, keep_while
from esm_agent.serving.lease import NoLeaseError, TooManyError
from esm_agent.serving.scratch import Scratch
from esm_agent.serving.slot import DrainingError, Event, Slot, Ticket
from esm_agent.serving.upload import (
    TooLargeError,
    UploadError,
    VersionError,
    check_version,
    receive,
    upload_parts,
)
from esm_protos import convert
from esm_protos.messages import BlockResult, DeviceInfo, Finding, Progress
from esm_protos.providers import OptionError
from esm_protos.text import foreign
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

log = logging.getLogger(__name__)


_LONGEST_NAME = 200
"""Maximum characters of owners, purposes and lease ids, which other clients see."""


_LONGEST_DETAILS = 600
"""Maximum characters of a status text. gRPC drops a text above 8 KB, and a character can take 12
bytes."""


class ProviderError(Exception):
    """Error for an execution provider that the device lacks."""


class ProfilerServicer(profiler_pb2_grpc.ProfilerServicer):
    """Service of the device.

    Args:
        info: Facts of the device; its state is updated at every request.
        slot: Measuring slot.
        scratch: Folder for uploads.
        door: Authentication, which names the callers and the owners of cached files.
        telemetry: Reader of the device's state; None for the default.
        metrics: Counters of refused calls.
        cpus: Processors that models run on; empty for all available ones.
        cache: Cache of files; None for no cache.
        findings: Findings of the execution providers, which the doctor adds to its own.
    """

    def __init__(
        self,
        info: DeviceInfo,
        slot: Slot,
        scratch: Scratch,
        door: Door,
        telemetry: Telemetry | None = None,
        metrics: Metrics | None = None,
        cpus: tuple[int, ...] = (),
        cache: Cache | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        self._info = info
        self._slot = slot
        self._scratch = scratch
        self._client_of = door.client_of
        self._owner_of = door.owner_of
        self._telemetry = telemetry or Telemetry()
        self._metrics = metrics or Metrics()
        self._cpus = cpus
        self._cache = cache
        self._findings = findings

    def GetDeviceInfo(
        self, request: pb.GetDeviceInfoRequest, context: grpc.ServicerContext
    ) -> pb.DeviceInfo:
        # Without a version check: the host compares the versions.
        # Without own_s, which would be the time of this process instead of the measuring one.
        state = replace(self._telemetry.state(at_ns=0), own_s=None)
        occupancy = self._slot.occupancy()
        now = replace(self._info, state=state, occupancy=occupancy, time_unix_s=time.time())
        return convert.device_info_to_pb(now)

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        with self._refusals(context):
            check_version(request.protocol_version)
            names = (request.lease_id, request.owner, request.purpose)
            if not request.lease_id or max(map(len, names)) > _LONGEST_NAME:
                raise UploadError(
                    f"a lease needs an id, and names of at most {_LONGEST_NAME} characters"
                )
            standing = self._slot.renew(
                *names, self._client_of(context), not request.no_wait, context.peer()
            )
        return pb.LeaseReply(standing=convert.standing_to_pb(standing))

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:
        with self._refusals(context):
            check_version(request.protocol_version)
            self._slot.release(request.lease_id, self._client_of(context))
        return pb.ReleaseReply()

    def Offer(self, request: pb.OfferRequest, context: grpc.ServicerContext) -> pb.OfferReply:
        with self._refusals(context):
            check_version(request.protocol_version)
            self._slot.check_lease(request.lease_id, self._client_of(context))
            files = [convert.file_from_pb(file) for file in request.files]
            missing = self._opened_cache().offer(request.lease_id, self._owner_of(context), files)
        return pb.OfferReply(
            missing=[
                pb.Missing(file=each.file, have_bytes=each.have_bytes, nonce=each.nonce)
                for each in missing
            ]
        )

    def Upload(
        self, request_iterator: Iterator[pb.UploadRequest], context: grpc.ServicerContext
    ) -> pb.UploadReply:
        with self._refusals(context):
            header, data = upload_parts(request_iterator)
            check_version(header.protocol_version)
            self._slot.check_lease(header.lease_id, self._client_of(context))
            keep_while(request_iterator, partial(self._slot.has_lease, header.lease_id))
            file, cache = convert.file_from_pb(header.file), self._opened_cache()
            owner = self._owner_of(context)
            if header.proof:
                cache.prove(header.lease_id, owner, file, header.proof)
            else:
                cache.receive(header.lease_id, owner, file, header.offset, data)
        return pb.UploadReply()

    def MeasureBlock(
        self, request_iterator: Iterator[pb.MeasureBlockRequest], context: grpc.ServicerContext
    ) -> DeferredAnswer:
        with ExitStack() as stack:
            folder, linked = stack.enter_context(self._folders(context))
            block = self._receive(request_iterator, folder, linked, context)
            ticket = self._submit(block, context)
            # The files stay until the answer is complete.
            return DeferredAnswer(
                ticket, partial(_messages, block), _is_last, _status_of, stack.pop_all().close
            )

    def FinishBlock(
        self, request: pb.FinishRequest, context: grpc.ServicerContext
    ) -> pb.FinishReply:
        with self._refusals(context):
            check_version(request.protocol_version)
            self._slot.finish(request.block_id, request.lease_id, self._client_of(context))
        return pb.FinishReply()

    def Diagnose(self, request: pb.DiagnoseRequest, context: grpc.ServicerContext) -> pb.Diagnosis:
        def measure(block: UploadedBlock) -> BlockResult:
            *_, result = self._events(replace(block, lease_id=request.lease_id), context)
            assert isinstance(result, BlockResult)
            return result

        with self._refusals(context):
            check_version(request.protocol_version)
            check_probe_s(request.probe_s)
        diagnosis = examine(measure, self._telemetry, request.probe_s, self._cpus, self._findings)
        return convert.diagnosis_to_pb(diagnosis)

    def _events(
        self, block: UploadedBlock, context: grpc.ServicerContext
    ) -> Iterator[Progress | BlockResult]:
        """Yield the events of a block; drop the block if the client disconnects."""
        ticket = self._submit(block, context)
        with _statuses(context):  # the slot logs the outcome of the block
            yield from ticket.events()

    def _submit(self, block: UploadedBlock, context: grpc.ServicerContext) -> Ticket:
        """Queue a block; drop it if its client disconnects."""
        with self._refusals(context):
            ticket = self._slot.submit(block, block.lease_id, self._client_of(context))
        if not context.add_callback(lambda: self._slot.close(ticket)):
            self._slot.close(ticket)
        return ticket

    def _receive(
        self,
        requests: Iterator[pb.MeasureBlockRequest],
        folder: Path,
        linked: LinkFolder | None,
        context: grpc.ServicerContext,
    ) -> UploadedBlock:
        with self._refusals(context):
            self._slot.check_open()

            def check_lease(lease_id: str) -> None:
                self._slot.check_lease(lease_id, self._client_of(context))
                keep_while(requests, partial(self._slot.has_lease, lease_id))

            block = receive(requests, folder, self._info.limits, linked, check_lease)
            if reason := self._info.why_not(block.spec.provider, "on this device"):
                raise ProviderError(reason)
            self._info.provider(block.spec.provider).complete(block.spec.provider_options)
            if reason := block.spec.session.refusal():
                raise OptionError(reason)
        return block

    def _opened_cache(self) -> Cache:
        if self._cache is None:
            raise TooLargeError("this agent has no cache: serve with a --cache-size above 0")
        return self._cache

    @contextmanager
    def _folders(self, context: grpc.ServicerContext) -> Iterator[tuple[Path, LinkFolder | None]]:
        """Create the folders of a block: for the models sent with it, and for cached files."""
        with ExitStack() as stack:
            with self._refusals(context):
                folder = stack.enter_context(self._scratch.folder())
                linked = None
                if self._cache is not None:
                    linked = stack.enter_context(self._cache.linked(self._owner_of(context)))
            yield folder, linked

    @contextmanager
    def _refusals(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Convert known errors to the call's status; log and count them."""

        def refused(code: grpc.StatusCode, text: str) -> None:
            client, peer = self._client_of(context), context.peer()
            self._metrics.refused(code.name)
            logs.limited_event(
                log,
                logging.WARNING,
                "refused",
                reason=text,
                code=code.name,
                client=client,
                peer=peer,
            )

        with _statuses(context, refused):
            yield


_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (VersionError, grpc.StatusCode.FAILED_PRECONDITION),
    (ProviderError, grpc.StatusCode.FAILED_PRECONDITION),
    (TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (CacheFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooManyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (OptionError, grpc.StatusCode.INVALID_ARGUMENT),
    (UploadError, grpc.StatusCode.INVALID_ARGUMENT),
    (DamagedError, grpc.StatusCode.DATA_LOSS),  # the host sends the whole file again
    (CacheError, grpc.StatusCode.INVALID_ARGUMENT),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
    # ABORTED: the call is valid, and the host can try again.
    (NoLeaseError, grpc.StatusCode.ABORTED),
    (DrainingError, grpc.StatusCode.ABORTED),
    (NotCachedError, grpc.StatusCode.ABORTED),
    (OSError, grpc.StatusCode.ABORTED),  # a full or read-only disk, no descriptors
    (CancelledError, grpc.StatusCode.CANCELLED),
    (WorkerUnavailableError, grpc.StatusCode.INTERNAL),
)
"""Status of each error; the first matching entry is used."""


@contextmanager
def _statuses(
    context: grpc.ServicerContext,
    report: Callable[[grpc.StatusCode, str], None] = lambda code, text: None,
) -> Iterator[None]:
    """Convert known errors to the call's status, after a call of ``report`` with it."""
    try:
        yield
    except Exception as error:
        status = _known_status(error)
        if status is None:
            raise
    else:
        return
    report(*status)
    _abort(context, *status)


def _known_status(error: Exception) -> tuple[grpc.StatusCode, str] | None:
    """Return the status of an error and its text for the client; None for an unknown error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        return None
    text = str(error)
    if isinstance(error, OSError):
        text = f"the device cannot accept it now: {error.strerror or type(error).__name__}"
    return code, foreign(text, _LONGEST_DETAILS)


def _messages(block: UploadedBlock, event: Event) -> Iterator[pb.MeasureBlockEvent]:
    """Yield the messages of a block's event, or raise the event if it is an error."""
    if isinstance(event, Exception):
        raise event
    if isinstance(event, BlockResult):
        yield from _result_events(event, block)
    else:
        yield pb.MeasureBlockEvent(progress=convert.progress_to_pb(event))


def _is_last(event: Event) -> bool:
    return isinstance(event, BlockResult)


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    status = _known_status(error)
    if status is None:
        log.error("a block failed", exc_info=error)
        return grpc.StatusCode.UNKNOWN, foreign(f"the agent failed: {error}", _LONGEST_DETAILS)
    return status


def _result_events(result: BlockResult, block: UploadedBlock) -> Iterator[pb.MeasureBlockEvent]:
    for measurement in result.measurements:
        yield from convert.result_events(measurement, block.spec.trim)
    yield from convert.done_events(result, block.spec.trim)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError  # for type checkers: abort() always raises
