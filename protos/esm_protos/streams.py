"""Standard streams whose write errors do not end the program.

A closed pipe, a full disk or a closed stream makes writes fail; an ASCII locale cannot encode
"±". A command that has measured for an hour must still write its files. So both programs replace
characters that cannot be encoded, and report a failed write at their end.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

READER_GONE = 128 + 13
"""Exit code that shells give a program ended by SIGPIPE."""

_FAILED = 1


def run(program: Callable[[], Any]) -> None:
    """Run a program, then exit with its code or with that of a failed write.

    If the reader of standard output closed it, as ``head`` does, the exit code is 141. After any
    other write error it is 1, with one line on standard error. Write errors on standard error are
    ignored.
    """
    if sys.stdin is None:
        _occupy(0, os.O_RDONLY)
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # stays open
    output = _replace("stdout", 1)
    _replace("stderr", 2)
    try:
        program()
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if not code and output is not None and (error := output.error) is not None:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            code = READER_GONE
        else:
            code = _FAILED
            sys.stderr.write(f"error: cannot write to standard output: {error.strerror}\n")
            sys.stderr.flush()
    sys.exit(code)


class _LenientFile(io.RawIOBase):
    """File descriptor that drops all further data after its first write error.

    Attributes:
        error: First write error; None if there was none.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        size = len(data)
        if self.error is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.error = error
        return size


def _replace(name: str, descriptor: int) -> _LenientFile | None:
    """Replace a stream of :mod:`sys`; return its new file, or None if the stream is closed."""
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        _occupy(descriptor, os.O_WRONLY)
        null = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        setattr(sys, name, null)
        return None
    # PYTHONIOENCODING may have set another handler, which stays.
    errors = "replace" if stream.errors in ("strict", "surrogateescape") else stream.errors
    raw = _LenientFile(descriptor)
    buffered = io.BufferedWriter(raw)
    replacement = io.TextIOWrapper(
        buffered,
        encoding=stream.encoding,
        errors=errors,
        line_buffering=name == "stderr" or raw.isatty(),
    )
    stream.flush()
    setattr(sys, name, replacement)
    return raw


def _occupy(descriptor: int, flags: int) -> None:
    """Open the null device at the descriptor of a closed stream.

    Otherwise the next file to be opened would take the descriptor, and libraries would write
    their messages into it.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
