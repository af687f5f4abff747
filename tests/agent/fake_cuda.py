"""onnxruntime as if this machine's processor were a GPU: models really run, and it keeps a log.

Importable by the measuring process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from esm_agent.providers.cuda import CudaProvider
from esm_protos.messages import DeviceState, GpuState

PROVIDER = CudaProvider.runtime_name
CPU = "CPUExecutionProvider"


class FakeRuntime:
    """Stands for the module.

    Args:
        built: with the provider.
        loads: the provider's libraries are all there.
        error: what a bound run raises.
    """

    def __init__(
        self,
        built: bool = True,
        loads: bool = True,
        error: str | None = None,
    ) -> None:
        self.built, self.loads, self.error = built, loads, error
        self.cpu_ops: Sequence[str] = ()
        """Operators that it leaves to the processor."""
        self.log: list[str] = []
        self.settings: list[dict[str, str]] = []
        self.options: list[Any] = []
        self.placed: list[tuple[str, int]] = []
        self.OrtValue = self

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, CPU] if self.built else [CPU]

    def preload_dlls(self) -> None:
        print("a library is missing")

    def InferenceSession(
        self, path: str, options: Any, providers: list[Any], enable_fallback: int
    ) -> FakeSession:
        (name, settings), rest = providers
        assert (name, rest, enable_fallback) == (PROVIDER, CPU, 0)
        self.settings.append(settings)
        self.options.append(options)
        return FakeSession(self, onnxruntime.InferenceSession(path, options, providers=[CPU]))

    def ortvalue_from_numpy(self, array: Any, memory: str, device: int) -> FakeValue:
        self.placed.append((memory, device))
        return FakeValue(self, onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array)))

    def ortvalue_from_shape_and_type(
        self, shape: Any, kind: Any, memory: str, device: int
    ) -> FakeValue:
        self.placed.append((memory, device))
        return FakeValue(self, onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind))


class FakeValue:
    def __init__(self, runtime: FakeRuntime, real: Any) -> None:
        self._runtime, self.real = runtime, real

    def data_ptr(self) -> int:
        return int(self.real.data_ptr())

    def update_inplace(self, array: Any) -> None:
        self._runtime.log.append("copy in")
        self.real.update_inplace(array)

    def numpy(self) -> Any:
        self._runtime.log.append("copy out")
        return self.real.numpy()


class FakeSession:
    def __init__(self, runtime: FakeRuntime, real: Any) -> None:
        self._runtime, self._real = runtime, real
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs
        self.get_overridable_initializers = real.get_overridable_initializers
        self.run_with_ort_values = real.run_with_ort_values

    def get_providers(self) -> list[str]:
        return [PROVIDER, CPU] if self._runtime.loads else [CPU]

    def end_profiling(self) -> str:
        path = Path(self._real.end_profiling())
        events = list(map(json.loads, path.read_text().replace(",\n", "\n").splitlines()[1:-1]))
        for event in events:
            arguments = event.get("args", {})
            if arguments.get("op_name") not in (None, *self._runtime.cpu_ops):
                arguments["provider"] = PROVIDER
        path.write_text("\n".join(map(json.dumps, events)))
        return str(path)

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._runtime, self._real.io_binding())

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self._runtime.log.append("run")
        if self._runtime.error is not None:
            raise RuntimeError(self._runtime.error)
        self._real.run_with_iobinding(binding.real)


class FakeBinding:
    def __init__(self, runtime: FakeRuntime, real: Any) -> None:
        self._runtime, self.real = runtime, real

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.real.bind_ortvalue_input(name, value.real)

    def bind_input(self, name: str, memory: str, device: int, *where: Any) -> None:
        self._runtime.placed.append((memory, device))
        self.real.bind_input(name, "cpu", 0, *where)

    def bind_output(self, name: str, memory: str, device: int, *where: Any) -> None:
        self._runtime.placed.append((memory, device))
        self.real.bind_output(name, "cpu", 0, *where)

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.real.bind_ortvalue_output(name, value.real)

    def synchronize_inputs(self) -> None:
        self._runtime.log.append("wait for inputs")

    def synchronize_outputs(self) -> None:
        self._runtime.log.append("wait for outputs")


class SteadyGpu:
    """Telemetry of a GPU whose clock stays."""

    def __init__(self, gpu: int | None = None) -> None:
        pass

    def state(self, at_ns: int, quick: bool = False) -> DeviceState:
        return DeviceState(at_ns, gpus=(GpuState("a GPU", clock_mhz=1980.0),))

    def gpu_energy(self) -> None:
        """No energy counter."""


def proved(gpu: int, runtime: FakeRuntime) -> CudaProvider:
    """As the measuring process makes it."""
    provider = CudaProvider(gpu, runtime)
    provider.prove()
    return provider


def working() -> CudaProvider:
    return proved(0, FakeRuntime())


def on_gpu(gpu: int) -> CudaProvider:
    return proved(gpu, FakeRuntime())


def not_loading() -> CudaProvider:
    return proved(0, FakeRuntime(loads=False))
