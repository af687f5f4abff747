"""Backends for tests, importable by the measuring process. A model's bytes say what it does."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from esm_agent.backends import ModelError
from esm_protos.messages import FailureKind, MeasureSpec


class ScriptedBackend:
    """``ok``, ``crash``, ``crash once PATH``, ``hang``, ``invalid``, ``memory``, ``sleep S``."""

    provider = "cpu"

    def load(self, path: Path, spec: MeasureSpec) -> Callable[[], object]:
        word, _, rest = path.read_text().partition(" ")
        if word == "invalid":
            raise ModelError(FailureKind.INVALID_MODEL, "scripted")
        if word == "memory":
            raise MemoryError
        runs = 0

        def run() -> None:
            nonlocal runs
            runs += 1
            if runs < 3:
                return  # what follows happens in the middle of the measurement
            if word == "crash":
                if not rest:
                    os.kill(os.getpid(), signal.SIGSEGV)
                marker = Path(rest.removeprefix("once "))
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            if word == "hang":
                time.sleep(3600)
            if word == "sleep":
                time.sleep(float(rest))

        return run


class BrokenBackend:
    def __init__(self) -> None:
        raise ImportError("No module named 'onnxruntime'")
