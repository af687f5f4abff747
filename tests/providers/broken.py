"""A provider that fails as each model asks, and plug-in packages that fail at the agent's start.

Importable by the measuring process. Models run on the real CPU provider.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from esm_agent.measure.process import Candidate
from esm_agent.providers import find_providers
from esm_agent.providers.base import Provider
from esm_agent.providers.built_in import BuiltInProvider
from esm_agent.providers.discovery import _proved
from esm_agent.providers.plugin import Library, PluginProvider
from esm_protos.messages import DeviceState
from esm_protos.providers import ProviderInfo
from tests.agent.fake_runtimes import CPU, FakeRuntime, FakeSession

ACME = "AcmeExecutionProvider"
NO_DEVICE = "/opt/libnodevice.so"
_PLAN = re.compile(rb"broken:(\w+)=(\w+);")
_FIRST, _LATER = 2, 4
"""Calls that make the first run, which is tried again, and calls before a later run that fails."""


def plan(stage: str, action: str) -> str:
    """The text in a model that makes the provider fail."""
    return f"broken:{stage}={action};"


def act(action: str) -> None:
    """Fail in one of the ways."""
    match action:
        case "raises":
            raise RuntimeError("the accelerator is on fire")
        case "foreign":
            raise KeyError("lost")
        case "hangs":
            time.sleep(3600)
        case "exits":
            os._exit(7)
        case "leaves":
            sys.exit(7)
        case "segv" | "kill" | "abrt":
            os.kill(os.getpid(), getattr(signal, f"SIG{action.upper()}"))
        case "eats":
            bytearray(1 << 40)


class BrokenSession(FakeSession):
    """A session that fails at the stage that its model names."""

    def __init__(self, runtime: FakeRuntime, real: Any, stage: str, action: str) -> None:
        super().__init__(runtime, ACME, real)
        self._stage, self._action, self._runs = stage, action, 0

    def _provider(self, op_type: str) -> str:
        if self._stage == "claims":
            return ACME if self._action == "some" and op_type == "Relu" else CPU
        return ACME

    def _run(self, run: Any, arguments: Sequence[Any]) -> Any:
        self._runs += 1
        if (self._stage == "first" and self._runs <= _FIRST) or (
            self._stage == "later" and self._runs > _LATER
        ):
            act(self._action)
        return run(*arguments)

    def run_with_iobinding(self, *arguments: Any) -> Any:
        return self._run(self._real.run_with_iobinding, arguments)

    def run_with_ortvaluevector(self, *arguments: Any) -> Any:
        return self._run(self._real.run_with_ortvaluevector, arguments)

    def run_with_ort_values(self, *arguments: Any) -> Any:
        return self._run(self._real.run_with_ort_values, arguments)

    def get_providers(self) -> list[str]:
        return [CPU] if self._stage == "loaded" else [ACME, CPU]


class BrokenRuntime(FakeRuntime):
    """The runtime with a provider that fails as a model asks.

    Args:
        probe: How it fails on the agent's built-in models; empty: it runs them.
    """

    def __init__(self, probe: str = "") -> None:
        super().__init__([ACME, CPU])
        self._probe = probe

    def InferenceSession(
        self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1
    ) -> FakeSession:
        found = _PLAN.search(Path(path).read_bytes())
        stage, action = (word.decode() for word in found.groups()) if found else ("", "")
        if not found and self._probe:
            stage, action = "compile", self._probe
        if stage == "compile":
            act(action)
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        return BrokenSession(self, real, stage, action)


class UnprovedProvider(BuiltInProvider):
    """A provider of another name that fails on the built-in models."""

    def __init__(self, action: str) -> None:
        super().__init__(ACME, 0, BrokenRuntime(action))
        self.name = f"probe-{action}"


class NamelessProvider(BuiltInProvider):
    """A provider that works, and whose name or identity is of no use."""

    def __init__(self, name: str) -> None:
        super().__init__(ACME, 0, BrokenRuntime())
        self.name = name

    def identity(self, device: DeviceState) -> dict[str, str]:
        if self.name == "info-raises":
            raise RuntimeError("no identity")
        return {}


def find(
    packages: Path, libraries: Sequence[tuple[str, str]] = (), device: int = 0
) -> list[Candidate]:
    """The providers of this machine with those that fail, and those of a folder of packages."""
    sys.path.insert(0, str(packages))
    no_device = PluginProvider(
        "no-device",
        Library("no-device", Path(NO_DEVICE)),
        runtime=FakeRuntime(offered={NO_DEVICE: []}),
    )
    broken: list[Provider] = [BuiltInProvider(ACME, 0, BrokenRuntime()), no_device]
    broken += [NamelessProvider(name) for name in ("info-raises", "bad name")]
    broken += [UnprovedProvider(action) for action in ("raises", "foreign", "exits", "hangs")]
    own = [Candidate(ProviderInfo(each.name), partial(_proved, each)) for each in broken]
    return [*own, *find_providers(libraries, device)]
