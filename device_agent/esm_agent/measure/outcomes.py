"""Typed outcomes of models that do not work."""

from __future__ import annotations

import re

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
    unknown = ("no op registered", "is not a registered function")
    if isinstance(error, ort_errors.NotImplemented) or any(words in text for words in unknown):
        return FailureKind.UNSUPPORTED_OP
    return FailureKind.INVALID_MODEL


def one_line(error: BaseException) -> str:
    """Return what it says, without line breaks and without values of tensors.

    A runtime quotes shapes, indices and sizes that it read from a model's data, which may not be
    the client's to read. Kept are numbers of versions, of error codes and of source lines, names,
    and the dimensions of an input beside those that the model declares.
    """
    text = " ".join(str(error).split())
    text = _LISTED.sub("…", _NUMBERS.sub(lambda found: found["kept"] or "…", text))
    return text[:500] or type(error).__name__


_NUMBERS = re.compile(
    r"(?P<kept>"
    r"\[ONNXRuntimeError\] : \d+ : "
    r"|(?:Got invalid dimensions|Invalid rank) for input: .*?Expected: \d+"
    r"(?: index: \d+ Got: \d+ Expected: \d+)*"
    r"|\b(?:opset|version|CUDA failure):? \d+"
    r"|[A-Za-z]\(\d+\)"  # an operator and its version
    r"|\.(?:cc|cpp|cu|cuh|h|hpp):\d+"
    r")|(?<!\w)(?<!\w\.)(?<![A-Za-z_]/)[-+]?\.?\d[\w.+-]*",
    re.IGNORECASE,
)
_LISTED = re.compile(r"…(?:\s*,\s*…)+")
