"""Backends for tests, importable by the measuring process. A model's bytes say what it does."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from esm_agent.measure.backends import Backend, LoadedModel
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import DeviceState, FailureKind, MeasureSpec, Profile


class ScriptedBackend(Backend):
    """``ok``, ``crash``, ``crash once PATH``, ``hang``, ``invalid``, ``memory``, ``sleep S``,
    ``dies`` (while it loads), ``killed`` (likewise, as by the system), ``log PATH`` (a line for
    every load), ``slow PATH`` (0.25 s, a line for every run),
    ``eat BYTES`` (memory, while it loads), ``loads S`` (seconds),
    ``untyped`` (an exception while it loads), ``raises N`` (one in its Nth run),
    ``profile fails``, ``profile dies``, ``profile hangs``."""

    name = "cpu"

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        between(0.0)
        script = model.path.read_text()
        if script == "profile fails":
            raise ModelError(FailureKind.CRASH, "scripted")
        if script == "profile dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if script == "profile hangs":
            time.sleep(3600)
        return Profile(runs, (), ())

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        word, _, rest = model.path.read_text().partition(" ")
        if word == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "eat":
            bytearray(int(rest))[::4096] = b"x" * len(range(0, int(rest), 4096))
        if word == "log":
            with Path(rest).open("a") as file:
                file.write("loaded\n")
        if word == "loads":
            time.sleep(float(rest))
        if word == "invalid":
            raise ModelError(FailureKind.INVALID_MODEL, "scripted")
        if word == "memory":
            raise MemoryError
        if word == "untyped":
            raise KeyError("scripted")
        runs = 0

        def run() -> None:
            nonlocal runs
            runs += 1
            if word == "raises" and runs == int(rest):
                raise RuntimeError("indices out of bounds")
            if word == "slow":
                with Path(rest).open("a") as file:
                    file.write("run\n")
                time.sleep(0.25)
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

        return LoadedModel(run)


class IdleBackend(Backend):
    """Takes every model, and does nothing with it."""

    name = "cpu"

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        return LoadedModel(lambda: None)


class ThrottlingBackend(Backend):
    """A model of 5 ms, that takes 8 once it has run 200 times, as on a board that gets hot.

    Its time is that of its own clock."""

    name = "cpu"
    runs = 0
    now_ns = 0

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        def run() -> None:
            self.runs += 1
            self.now_ns += 5_000_000 if self.runs < 200 else 8_000_000

        return LoadedModel(run)


class ThrottlingTelemetry:
    """The clock of that board, from what it says in its third second on."""

    def __init__(self) -> None:
        self.asked = 0

    def state(self, at_ns: int, quick: bool = False) -> DeviceState:
        self.asked += 1
        return DeviceState(at_ns, clock_mhz=(1500.0 if self.asked <= 2 else 940.0,))

    def gpu_energy(self) -> None:
        """No GPU."""


class InstantBackend(Backend):
    """Models that take no time."""

    name = "cpu"

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        return LoadedModel(lambda: None)


class InspectingBackend(Backend):
    """Fails with what the expression that is the model gives in the measuring process."""

    name = "cpu"

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        names = ("os", "pathlib", "resource", "socket", "tempfile")
        try:
            answer = repr(
                eval(model.path.read_text(), {n: importlib.import_module(n) for n in names})
            )
        except Exception as error:
            answer = repr(error)
        raise ModelError(FailureKind.INVALID_MODEL, answer)


class KilledOnceBackend(ScriptedBackend):
    """The first process that makes it is killed while it starts."""

    def __init__(self, marker: Path) -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class BrokenBackend:
    def __init__(self) -> None:
        raise ImportError("No module named 'onnxruntime'")


class RepeatingBackend(CpuProvider):
    """A device that takes ``times`` times as long: it does the work as often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        loaded = super().load(model, spec)

        def run_all() -> None:
            for _ in range(self._times):
                loaded.run()

        return replace(loaded, run=run_all)
