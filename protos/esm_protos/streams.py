"""Standard streams that never stop a program: words are lost before work is.

A reader that is gone, a full disk and a closed stream make writing fail, and an ASCII locale makes
a "±" fail. A command that has measured for an hour must still write its files. So both programs
run with streams that replace what they cannot encode and remember what they could not write.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

READER_GONE = 128 + 13
"""Exit code of a program that SIGPIPE ended, as shells count."""

_FAILED = 1


def run(program: Callable[[], Any]) -> None:
    """Run a command line; exit as it does, or by what became of its standard output.

    Standard output that could not be written is exit code 141 if its reader is gone, as of
    ``head``, and else 1 with one line on standard error. Standard error may fail in silence.
    """
    if sys.stdin is None:
        _occupy(0, os.O_RDONLY)
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # it stays open
    output = _outlasting("stdout", 1)
    _outlasting("stderr", 2)
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


class _Outlasting(io.RawIOBase):
    """File descriptor that takes everything; after an error it drops what comes.

    Attributes:
        error: why the first write failed, None if none did.
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


def _outlasting(name: str, descriptor: int) -> _Outlasting | None:
    """Replace a stream of :mod:`sys`; None where it is closed or not a file's."""
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        _occupy(descriptor, os.O_WRONLY)
        null = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        setattr(sys, name, null)
        return None
    # What a user asked for by PYTHONIOENCODING stays.
    errors = "replace" if stream.errors in ("strict", "surrogateescape") else stream.errors
    raw = _Outlasting(descriptor)
    buffered = io.BufferedWriter(raw)
    lasting = io.TextIOWrapper(
        buffered,
        encoding=stream.encoding,
        errors=errors,
        line_buffering=name == "stderr" or raw.isatty(),
    )
    stream.flush()
    setattr(sys, name, lasting)
    return raw


def _occupy(descriptor: int, flags: int) -> None:
    """Put the null device where a stream is closed: the next file to be opened would be there, and
    get what libraries write to the stream."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
