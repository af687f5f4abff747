"""What runs a model: ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

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


class Backend(Protocol):
    """Turns a model file into something to time."""

    provider: str
    """What clients call it: ``"cpu"``."""

    def load(self, path: Path, spec: MeasureSpec) -> Callable[[], object]:
        """A callable that runs one inference and returns when it is over.

        Raises:
            ModelError: the model is invalid, unsupported or too large.
        """


class OnnxRuntimeCpu:
    """The CPU execution provider with a fixed number of threads."""

    provider = "cpu"

    def load(self, path: Path, spec: MeasureSpec) -> Callable[[], object]:
        data = path.read_bytes()
        options = ort.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # failures are reported once, as outcomes
        names, arrays = _drawn_weights(data, spec.seed)
        try:
            if names:  # which the runtime refuses if one is there twice
                values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
                options.add_external_initializers(names, values)
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(_kind(error), _one_line(error)) from error
        feed = _inputs(session, spec.seed)

        def run() -> object:
            return session.run(None, feed)

        return run


def first_run(run: Callable[[], object]) -> None:
    """The first inference, in which a model may still turn out not to work.

    Raises:
        ModelError: it does not.
    """
    try:
        run()
    except Exception as error:
        raise ModelError(_kind(error), f"the first run failed: {_one_line(error)}") from error


def _drawn_weights(data: bytes, seed: int) -> tuple[list[str], list[Any]]:
    """Names and arrays of the initializers that the model leaves to its runner."""
    try:
        initializers = onnx_view_pb2.Model.FromString(data).graph.initializer
    except DecodeError as error:
        raise ModelError(FailureKind.INVALID_MODEL, "this is not an ONNX file") from error
    missing = [
        tensor
        for tensor in initializers
        if tensor.data_location == _EXTERNAL
        and any(
            entry.key == "location" and entry.value == WEIGHTLESS_LOCATION
            for entry in tensor.external_data
        )
    ]
    for tensor in missing:
        if tensor.data_type != _FLOAT or any(dim < 1 for dim in tensor.dims):
            raise ModelError(
                FailureKind.INVALID_MODEL,
                f"weightless initializer {tensor.name} must be float32 with positive dimensions",
            )
    names = [tensor.name for tensor in missing]
    return names, [draw_weights(t.name, tuple(t.dims), seed) for t in missing]


def _inputs(session: Any, seed: int) -> dict[str, Any]:
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


def _kind(error: Exception) -> FailureKind:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "bad_alloc" in text or "failed to allocate" in text:
        return FailureKind.OUT_OF_MEMORY
    unknown = ("no op registered", "is not a registered function")
    if isinstance(error, ort_errors.NotImplemented) or any(words in text for words in unknown):
        return FailureKind.UNSUPPORTED_OP
    return FailureKind.INVALID_MODEL


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
