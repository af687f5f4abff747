"""Errors that ONNX Runtime and its providers write to standard error in place of raising them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from esm_agent.measure.outcomes import one_line

_ERROR = re.compile(r"\[E:onnxruntime:[^\]]*\] (?P<text>.*?)(?:\x1b\[\w*)?$", re.MULTILINE)
_STDERR = 2
_LOCK = Lock()  # models load in several threads


def error_of(call: Callable[[], object]) -> str:
    """Return the last error that a call writes to standard error, on one line; empty for none.

    What the call raises is dropped. What it writes still reaches standard error.
    """
    try:
        written = _written(call)
    except OSError:  # no room for a temporary file
        return ""
    found = [match["text"] for match in _ERROR.finditer(written) if match["text"].strip()]
    return one_line(RuntimeError(found[-1])) if found else ""


def _written(call: Callable[[], object]) -> str:
    with _LOCK, tempfile.TemporaryFile() as file:
        before = os.dup(_STDERR)
        os.dup2(file.fileno(), _STDERR)
        try:
            with suppress(Exception):
                call()
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
        file.seek(0)
        written = file.read()
    with suppress(OSError):
        os.write(_STDERR, written)
    return written.decode(errors="replace")
