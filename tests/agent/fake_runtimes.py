"""onnxruntime as if it had providers that this machine lacks; models run on the real CPU provider.

Importable by the measuring process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime

from esm_agent.errors import ProviderMissingError
from esm_agent.measure.backends import Backend
from esm_agent.measure.process import Candidate
from esm_protos.providers import ProviderInfo
from tests.agent.fake_backends import IdleBackend

CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"


def device(ep_name: str, kind: str = "CPU", number: int = 0, vendor: str = "Acme") -> Any:
    """A device of a plug-in, as the runtime describes it."""
    hardware = SimpleNamespace(
        type=SimpleNamespace(name=kind), vendor="", vendor_id=0x1234, device_id=number
    )
    return SimpleNamespace(
        ep_name=ep_name, ep_vendor=vendor, device=hardware, ep_metadata={"version": "9"}
    )


class FakeRuntime:
    """Stands for the module.

    Args:
        built_in: Names of the providers of the wheel.
        offered: Devices by the path of the library that offers them.
        claims: Operators that the first built-in provider runs; None for all.
        older: Whether its sessions cannot tell where nodes were assigned.
    """

    __version__ = "1.99"

    def __init__(
        self,
        built_in: Sequence[str] = (CPU,),
        offered: dict[str, Sequence[Any]] | None = None,
        claims: Sequence[str] | None = None,
        older: bool = False,
    ) -> None:
        self.older = older
        self._built_in, self._offered, self.claims = list(built_in), offered or {}, claims
        self._devices = [device(CPU, vendor="Microsoft")]
        self.registered: list[tuple[str, str]] = []
        self.settings: list[dict[str, str]] = []
        self.options: list[Any] = []

    def get_available_providers(self) -> list[str]:
        return list(self._built_in)

    def get_ep_devices(self) -> list[Any]:
        return list(self._devices)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))
        if path not in self._offered:
            raise RuntimeError(f"Failed to load library {path}: no such file")
        for each in self._offered[path]:
            each.ep_metadata["library_path"] = path
            self._devices.append(each)

    def InferenceSession(
        self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1
    ) -> FakeSession:
        first, *rest = providers
        name, settings = first if isinstance(first, tuple) else (first, {})
        if name != CPU:
            assert enable_fallback == 0, "the runtime must not try again with another provider"
            assert rest == [CPU]
        self.settings.append(settings)
        self.options.append(options)
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        return FakeSession(self, name, real)


class FakeSession:
    def __init__(self, runtime: FakeRuntime, name: str, real: Any) -> None:
        self._runtime, self._name, self._real = runtime, name, real

    def __getattr__(self, name: str) -> Any:
        if name == "get_provider_graph_assignment_info":
            if self._runtime.older:
                raise AttributeError(name)
            return self._assigned
        return getattr(self._real, name)

    def _provider(self, op_type: str) -> str:
        claims = self._runtime.claims
        return self._name if claims is None or op_type in claims else CPU

    def _assigned(self) -> list[Any]:
        nodes = [
            node
            for part in self._real.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda alike=list(alike): alike)
            for name, alike in groupby(nodes, lambda node: self._provider(node.op_type))
        ]

    def end_profiling(self) -> str:
        path = Path(self._real.end_profiling())
        events = list(map(json.loads, path.read_text().replace(",\n", "\n").splitlines()[1:-1]))
        for event in events:
            if "provider" in event.get("args", {}):
                event["args"]["provider"] = self._provider(event["args"]["op_name"])
        path.write_text("\n".join(map(json.dumps, events)))
        return str(path)

    def get_providers(self) -> list[str]:
        return [self._name, CPU]


def found(name: str, make: Callable[[], Backend]) -> Candidate:
    return Candidate(ProviderInfo(name, version="1.0"), make)


def dies(code: int | signal.Signals) -> Backend:
    if isinstance(code, signal.Signals):
        os.kill(os.getpid(), code)
    os._exit(code)


def hangs() -> Backend:
    time.sleep(3600)
    raise AssertionError


def missing() -> Backend:
    raise ProviderMissingError("no provider c: registered, no device", "registered, no device")


class Other(IdleBackend):
    name = "other"


class Another(IdleBackend):
    name = "another"


def of_all_sorts() -> list[Candidate]:
    """Two that work, and one of every sort that does not."""
    return [
        found("a", partial(dies, signal.SIGSEGV)),
        found("other", Other),
        found("b", partial(dies, 3)),
        found("c", missing),
        found("other", Other),
        found("another", Another),
    ]


def with_one_that_hangs() -> list[Candidate]:
    return [found("a", hangs), found("other", Other)]


def with_one_that_warns() -> list[Candidate]:
    logging.getLogger("esm_agent.providers").warning("a compiled model is lost")
    return [found("other", Other)]


def with_a_noisy_one() -> list[Candidate]:
    os.write(1, b"noise of a native library\n")
    return [found("other", Other)]
