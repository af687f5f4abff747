"""The RPCs: errors become status codes here, and nowhere else on the device."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import grpc

from esm_agent.doctor import examine
from esm_agent.probe import check_probe_s
from esm_agent.slot import Slot
from esm_agent.telemetry import Telemetry
from esm_agent.upload import (
    TooLargeError,
    UploadedBlock,
    UploadError,
    VersionError,
    check_version,
    receive,
)
from esm_agent.worker import CancelledError, WorkerUnavailableError
from esm_protos import convert
from esm_protos.messages import BlockResult, DeviceInfo, Progress
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

log = logging.getLogger(__name__)


class ProfilerServicer(profiler_pb2_grpc.ProfilerServicer):
    """Serves one device. The state in ``info`` is read anew whenever somebody asks."""

    def __init__(
        self, info: DeviceInfo, slot: Slot, scratch: Path, telemetry: Telemetry | None = None
    ) -> None:
        self._info = info
        self._slot = slot
        self._scratch = scratch
        self._telemetry = telemetry or Telemetry()

    def GetDeviceInfo(
        self, request: pb.GetDeviceInfoRequest, context: grpc.ServicerContext
    ) -> pb.DeviceInfo:
        # Answered whatever the host's version: the host compares, and knows both.
        # own_s would be this process's, which is not the one that measures.
        state = replace(self._telemetry.state(at_ns=0), own_s=None)
        return convert.device_info_to_pb(replace(self._info, state=state))

    def MeasureBlock(
        self, request_iterator: Iterator[pb.MeasureBlockRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.MeasureBlockEvent]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            block = self._receive(request_iterator, Path(folder), context)
            for event in self._events(block, context):
                if isinstance(event, BlockResult):
                    yield from _result_events(event, block)
                else:
                    yield pb.MeasureBlockEvent(progress=convert.progress_to_pb(event))

    def Diagnose(self, request: pb.DiagnoseRequest, context: grpc.ServicerContext) -> pb.Diagnosis:
        try:
            check_version(request.protocol_version)
            check_probe_s(request.probe_s)
        except VersionError as error:
            _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except ValueError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

        def measure(block: UploadedBlock) -> BlockResult:
            *_, result = self._events(block, context)
            assert isinstance(result, BlockResult)
            return result

        return convert.diagnosis_to_pb(examine(measure, self._telemetry, request.probe_s))

    def _events(
        self, block: UploadedBlock, context: grpc.ServicerContext
    ) -> Iterator[Progress | BlockResult]:
        """What becomes of a block that waits its turn; it is dropped when the client goes."""
        ticket = self._slot.submit(block)
        if not context.add_callback(ticket.cancel):
            ticket.cancel()
        try:
            yield from ticket.events()
        except CancelledError:
            _abort(context, grpc.StatusCode.CANCELLED, "the block was cancelled")
        except WorkerUnavailableError as error:
            _abort(context, grpc.StatusCode.INTERNAL, str(error))

    def _receive(
        self,
        requests: Iterator[pb.MeasureBlockRequest],
        folder: Path,
        context: grpc.ServicerContext,
    ) -> UploadedBlock:
        try:
            block = receive(requests, folder, self._info.limits)
        except VersionError as error:
            _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except TooLargeError as error:
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except UploadError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            text = f"no room for the upload on the device: {error.strerror}"
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        if block.spec.provider not in self._info.providers:
            _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this device has no provider '{block.spec.provider}': it has "
                f"{', '.join(self._info.providers)}",
            )
        return block


def _result_events(result: BlockResult, block: UploadedBlock) -> Iterator[pb.MeasureBlockEvent]:
    failures = sum(m.failure is not None for m in result.measurements)
    log.info(
        "block %s: %d models, %d failed, %.2f s",
        result.block_id,
        len(result.measurements),
        failures,
        result.busy_ns / 1e9,
    )
    for measurement in result.measurements:
        yield pb.MeasureBlockEvent(result=convert.measurement_to_pb(measurement, block.spec.trim))
    yield pb.MeasureBlockEvent(done=convert.done_to_pb(result))


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    log.warning("refused: %s", message)
    context.abort(code, message)
    raise AssertionError  # abort() raises; this tells type checkers so
