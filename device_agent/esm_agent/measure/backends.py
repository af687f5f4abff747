"""What runs a model: ONNX Runtime, on the CPU here and on a GPU in :mod:`~.cuda`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
from google.protobuf.message import DecodeError

from esm_agent.measure import feeds, profiling
from esm_agent.measure.binding import Bound, values
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line
from esm_protos.graphs import external_location, mapped
from esm_protos.messages import Failure, FailureKind, MeasureSpec, Profile
from esm_protos.v1 import onnx_view_pb2
from esm_protos.weights import WEIGHTLESS_LOCATION, draw_weights

_FLOAT = 1  # TensorProto.DataType.FLOAT
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_MAX_WEIGHTLESS_BYTES = 256 << 20  # a graph without its weights is far smaller
_WEIGHTLESS = re.compile(re.escape(WEIGHTLESS_LOCATION.encode()))


class ProviderMissingError(Exception):
    """A provider does not work on this device; the text says why."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        run: one inference; returns when it is over.
        feed: what it is fed.
        outputs: those of the last inference, as the runtime's values.
    """

    run: Callable[[], object]
    feed: Feed = field(default_factory=Feed)
    outputs: Callable[[], Sequence[Any]] = tuple


@dataclass(frozen=True, kw_only=True)
class DeviceModel(LoadedModel):
    """A model on a device with a memory of its own, from and to which ``run`` goes.

    Attributes:
        copy_in: one crossing of the inputs to the device's memory; returns when it is over.
        copy_out: likewise of the outputs, back.
        ran_on: how many nodes the runtime assigned to each provider.
        fallback: names of the nodes that the provider asked for did not take.
    """

    copy_in: Callable[[], object]
    copy_out: Callable[[], object]
    ran_on: tuple[tuple[str, int], ...]
    fallback: tuple[str, ...]


class Backend(Protocol):
    """Turns a model file into something to time."""

    provider: str
    """What clients call it: ``"cpu"`` or ``"cuda"``."""

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        """The model, ready to run.

        Raises:
            ModelError: the model is invalid, unsupported or too large, or its inputs do not fit.
        """

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """Where the time of ``runs`` runs goes, in a session of their own.

        Args:
            between: told before each run the share of them made.

        Raises:
            ModelError: it cannot be told.
        """


class OnnxRuntimeCpu:
    """The CPU execution provider with a fixed number of threads."""

    provider = "cpu"

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        options, weights = session_options(model, spec)
        session = _session(model, options)
        del weights
        feed = feeds.draw(session, spec.seed, model.case, model.inputs, model.path)
        bound = Bound(session, values(feed))
        return LoadedModel(bound.run, feed, bound.outputs)

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        with profiling.folder() as prefix:
            options, weights = session_options(model, spec)
            profiling.enable(options, prefix)
            session = _session(model, options)
            del weights
            feed = feeds.draw(session, spec.seed, model.case, model.inputs, model.path)
            bound = Bound(session, values(feed))
            return profiling.profile(session, bound.run, spec.warmup, runs, between)


def _session(model: UploadedModel, options: ort.SessionOptions) -> Any:
    """From the path and not from bytes: they may be gigabytes, and have more beside them."""
    try:
        return ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(failure_kind(error), one_line(error)) from error


def session_options(
    model: UploadedModel, spec: MeasureSpec
) -> tuple[ort.SessionOptions, list[Any]]:
    """What all providers have in common, and the weights that the model leaves to its runner.

    The options only refer to the weights: keep those until the session has been made.

    Raises:
        ModelError: the model is no ONNX file, or its weights cannot be drawn.
    """
    threads = model.case.threads or spec.threads
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # failures are reported once, as outcomes
    if threads > 1:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    names, arrays = _drawn_weights(model.path, spec.seed)
    weights = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    if names:
        try:
            options.add_external_initializers(names, weights)
        except Exception as error:  # one is there twice
            raise ModelError(failure_kind(error), one_line(error)) from error
    return options, weights


def first_run(model: LoadedModel) -> None:
    """The first inference, in which a model may still turn out not to work.

    Raises:
        ModelError: it does not.
    """
    try:
        model.run()
    except Exception as error:
        raise first_run_error(error, model.feed) from error


def first_run_error(error: Exception, feed: Feed) -> ModelError:
    """What to report of a model whose first run raised ``error``."""
    if isinstance(error, ModelError):
        failure = error.failure
    else:
        text = f"the first run failed: {one_line(error)}"
        failure = Failure(failure_kind(error), text)
    failure = feed.blamed(failure)
    return ModelError(failure.kind, failure.message)


def _drawn_weights(path: Path, seed: int) -> tuple[list[str], list[Any]]:
    """Names and arrays of the initializers that the model leaves to its runner."""
    if path.stat().st_size > _MAX_WEIGHTLESS_BYTES:
        return [], []
    with mapped(path) as data:
        if _WEIGHTLESS.search(data) is None:
            return [], []  # most models with weights need not be taken apart here
        model = onnx_view_pb2.Model()
        try:
            model.MergeFromString(data)
        except DecodeError as error:
            raise ModelError(FailureKind.INVALID_MODEL, "this is not an ONNX file") from error
    missing = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_location == _EXTERNAL and external_location(tensor) == WEIGHTLESS_LOCATION
    ]
    for tensor in missing:
        if tensor.data_type != _FLOAT or any(dim < 1 for dim in tensor.dims):
            raise ModelError(
                FailureKind.INVALID_MODEL,
                f"weightless initializer {tensor.name} must be float32 with positive dimensions",
            )
    names = [tensor.name for tensor in missing]
    return names, [draw_weights(t.name, tuple(t.dims), seed) for t in missing]
