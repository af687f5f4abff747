"""Typed outcomes of models that do not work."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from esm_protos.messages import Failure, FailureKind


class ModelError(Exception):
    """A model cannot be measured; carries the outcome to report for it."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "status_alloc_failed")


def failure_kind(error: Exception) -> FailureKind:
    """The outcome of a model on which the runtime raised ``error``."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return FailureKind.OUT_OF_MEMORY
    # The last one of a type of tensor.
    unknown = ("no op registered", "is not a registered function", "is not currently registered")
    if isinstance(error, ort_errors.NotImplemented) or any(words in text for words in unknown):
        return FailureKind.UNSUPPORTED_OP
    return FailureKind.INVALID_MODEL


def one_line(error: BaseException) -> str:
    """What it says, without the line breaks that runtimes like."""
    return " ".join(str(error).split())[:500] or type(error).__name__
