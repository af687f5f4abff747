"""What runs a model: ONNX Runtime, on the CPU here and on a GPU in :mod:`esm_agent.cuda`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from esm_protos.graphs import external_location
from esm_protos.messages import Failure, FailureKind, MeasureSpec
from esm_protos.v1 import onnx_view_pb2
from esm_protos.weights import WEIGHTLESS_LOCATION, draw_weights

_FLOAT, _EXTERNAL = 1, 1  # TensorProto.DataType.FLOAT, TensorProto.DataLocation.EXTERNAL

_INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class ModelError(Exception):
    """A model cannot be measured; carries the outcome to report for it."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class ProviderMissingError(Exception):
    """A provider does not work on this device; the text says why."""


@dataclass(frozen=True)
class DeviceModel:
    """A model on a device with a memory of its own.

    Attributes:
        run: one inference from and to the device's memory; returns when it is over.
        copy_in: one crossing of the inputs to the device's memory; returns when it is over.
        copy_out: likewise of the outputs, back.
        ran_on: how many nodes the runtime assigned to each provider.
        fallback: names of the nodes that the provider asked for did not take.
    """

    run: Callable[[], object]
    copy_in: Callable[[], object]
    copy_out: Callable[[], object]
    ran_on: tuple[tuple[str, int], ...]
    fallback: tuple[str, ...]


class Backend(Protocol):
    """Turns a model file into something to time."""

    provider: str
    """What clients call it: ``"cpu"`` or ``"cuda"``."""

    def load(self, path: Path, spec: MeasureSpec) -> Callable[[], object] | DeviceModel:
        """A callable that runs one inference and returns when it is over.

        Raises:
            ModelError: the model is invalid, unsupported or too large.
        """


class OnnxRuntimeCpu:
    """The CPU execution provider with a fixed number of threads."""

    provider = "cpu"

    def load(self, path: Path, spec: MeasureSpec) -> Callable[[], object]:
        data = path.read_bytes()
        options, weights = session_options(data, spec)
        try:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(failure_kind(error), one_line(error)) from error
        del weights
        feed = draw_inputs(session, spec.seed)

        def run() -> object:
            return session.run(None, feed)

        return run


def session_options(data: bytes, spec: MeasureSpec) -> tuple[ort.SessionOptions, list[Any]]:
    """What all providers have in common, and the weights that the model leaves to its runner.

    The options only refer to the weights: keep those until the session has been made.

    Raises:
        ModelError: the model is no ONNX file, or its weights cannot be drawn.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # failures are reported once, as outcomes
    names, arrays = _drawn_weights(data, spec.seed)
    weights = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    if names:
        try:
            options.add_external_initializers(names, weights)
        except Exception as error:  # one is there twice
            raise ModelError(failure_kind(error), one_line(error)) from error
    return options, weights


def first_run(run: Callable[[], object]) -> None:
    """The first inference, in which a model may still turn out not to work.

    Raises:
        ModelError: it does not.
    """
    try:
        run()
    except ModelError:
        raise
    except Exception as error:
        text = f"the first run failed: {one_line(error)}"
        raise ModelError(failure_kind(error), text) from error


def _drawn_weights(data: bytes, seed: int) -> tuple[list[str], list[Any]]:
    """Names and arrays of the initializers that the model leaves to its runner."""
    try:
        initializers = onnx_view_pb2.Model.FromString(data).graph.initializer
    except DecodeError as error:
        raise ModelError(FailureKind.INVALID_MODEL, "this is not an ONNX file") from error
    missing = [
        tensor
        for tensor in initializers
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


def draw_inputs(session: Any, seed: int) -> dict[str, Any]:
    """Random inputs by declared type and shape; a free dimension is taken as 1."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Any] = {}
    for node in session.get_inputs():
        dtype = _INPUT_TYPES.get(node.type)
        if dtype is None:
            raise ModelError(
                FailureKind.UNSUPPORTED_OP, f"input {node.name} has unsupported type {node.type}"
            )
        shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in node.shape]
        if np.issubdtype(dtype, np.floating):
            feed[node.name] = rng.standard_normal(shape).astype(dtype)
        else:
            # 0 and 1 are valid indices, tokens and flags almost everywhere.
            feed[node.name] = rng.integers(0, 2, shape).astype(dtype)
    return feed


_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "status_alloc_failed")


def failure_kind(error: Exception) -> FailureKind:
    """The outcome of a model on which the runtime raised ``error``."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return FailureKind.OUT_OF_MEMORY
    unknown = ("no op registered", "is not a registered function")
    if isinstance(error, ort_errors.NotImplemented) or any(words in text for words in unknown):
        return FailureKind.UNSUPPORTED_OP
    return FailureKind.INVALID_MODEL


def one_line(error: BaseException) -> str:
    """What it says, without the line breaks that runtimes like."""
    return " ".join(str(error).split())[:500] or type(error).__name__
