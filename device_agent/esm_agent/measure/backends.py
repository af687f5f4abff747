"""What runs models, as measuring sees it, and what all sessions of ONNX Runtime have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime as ort
from google.protobuf.message import DecodeError

from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line, outcome
from esm_agent.measure.versions import too_new
from esm_protos.graphs import external_location, mapped
from esm_protos.messages import (
    DeviceState,
    Failure,
    FailureKind,
    Finding,
    MeasureSpec,
    Profile,
)
from esm_protos.providers import ProviderInfo
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
        ran_on: how many nodes the runtime assigned to each provider; empty where nobody asked.
        fallback: names of the nodes that the provider asked for did not take.
        settles: what it runs on raises its clock once it has work.
    """

    run: Callable[[], object]
    feed: Feed = field(default_factory=Feed)
    outputs: Callable[[], Sequence[Any]] = tuple
    ran_on: tuple[tuple[str, int], ...] = ()
    fallback: tuple[str, ...] = ()
    settles: bool = False


@dataclass(frozen=True, kw_only=True)
class DeviceModel(LoadedModel):
    """A model on a device with a memory of its own, from and to which ``run`` goes.

    Attributes:
        copy_in: one crossing of the inputs to the device's memory; returns when it is over.
        copy_out: likewise of the outputs, back.
    """

    copy_in: Callable[[], object]
    copy_out: Callable[[], object]


class Backend(ABC):
    """Turns model files into something to time."""

    name: ClassVar[str]
    """What clients call it."""
    gpu: ClassVar[bool] = False
    """Whether it runs on a GPU."""

    def info(self, device: DeviceState) -> ProviderInfo:
        """Return what clients are told of it.

        Args:
            device: its state now, which names the GPUs where a provider runs on one.
        """
        return ProviderInfo(self.name)

    def findings(self) -> tuple[Finding, ...]:
        """Return what the doctor is to say of it."""
        return ()

    @abstractmethod
    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        """Return the model, ready to run.

        Raises:
            ModelError: the model is invalid, unsupported or too large, or its inputs do not fit.
        """

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """Return where the time of ``runs`` runs goes, in a session of their own.

        Args:
            between: told before each run the share of them made.

        Raises:
            ModelError: it cannot be told.
        """
        raise ModelError(FailureKind.CRASH, f"the provider {self.name} tells no profile")


def load_error(error: Exception, path: Path) -> ModelError:
    """Return what to report of a model of which the runtime makes no session."""
    kind, text = failure_kind(error), one_line(error)
    if kind is not FailureKind.OUT_OF_MEMORY and (newer := too_new(path)):
        kind, text = FailureKind.UNSUPPORTED_OP, newer
    return ModelError(kind, text)


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
    failure = outcome(error)
    failure = feed.blamed(Failure(failure.kind, f"the first run failed: {failure.message}"))
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
