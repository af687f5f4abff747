"""Execution providers in libraries that ONNX Runtime loads at run time."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from esm_agent.measure.outcomes import ModelError, one_line
from esm_agent.providers.base import Options, Provider, ProviderOption, Use
from esm_agent.providers.built_in import known
from esm_protos.messages import DeviceState, FailureKind

PATHS = ("get_library_path", "library_path")
"""Functions of packages that return the path of their library; the first is documented."""
NAMES = ("get_ep_names", "get_ep_name", "EP_NAME")
"""Functions or texts of packages with the names of their providers; the first are documented."""
_EMULATED = {
    "qnn": ProviderOption(
        "backend_type",
        "text",
        "htp",
        "Backend; htp emulates the accelerator on the CPU.",
        # The plug-in takes its default for unknown ones. Its saver and ir write files.
        ("htp", "cpu", "gpu"),
    ),
}
"""Option without which a provider runs nothing if the CPU is its only device."""
_CONFIGS = {"openvino": ("load_config", "CPU", "INFERENCE_NUM_THREADS")}
"""Option with JSON, and its section and entry for the number of threads.

The plug-in of OpenVINO ignores the option that OpenVINO in a wheel has for it.
"""
DEVICE = "ep_device"
"""Name of the option that chooses one of the kinds of a provider's devices."""


@dataclass
class Library:
    """Library with an execution provider, registered once in a process.

    Attributes:
        name: Name under which it is registered, unless the package has one.
        path: Path of the file; None: the package knows it.
        module: Module of the package; empty for a library without a package.
    """

    name: str
    path: Path | None = None
    module: str = ""
    _provider: str | None = field(default=None, init=False)

    def register(self, runtime: Any) -> str:
        """Register the library and return the name of its provider; empty if it has no device.

        Raises:
            Exception: whatever the package or the runtime raises.
        """
        if self._provider is None:
            if self.module:
                package = importlib.import_module(self.module)
                self.path = Path(_told(package, PATHS))
                self.name = _told(package, NAMES)
            known_devices = runtime.get_ep_devices()
            if any(_library(device) == str(self.path) for device in known_devices):
                raise RuntimeError("it is registered already, under another name")
            before = {device.ep_name for device in known_devices}
            runtime.register_execution_provider_library(self.name, str(self.path))
            offered = [device.ep_name for device in runtime.get_ep_devices()]
            self._provider = next((name for name in offered if name not in before), "")
        return self._provider


def _told(package: Any, names: Sequence[str]) -> str:
    """Return what a package tells by the first of these names, the first text of several.

    Raises:
        AttributeError: it has none of them.
        TypeError: it tells no text.
    """
    name = next((name for name in names if getattr(package, name, None) is not None), None)
    if name is None:
        raise AttributeError(f"it has none of {', '.join(names)}")
    found = getattr(package, name)
    told = found() if callable(found) else found
    first = next(iter(told), None) if isinstance(told, list | tuple) else told
    if not isinstance(first, str | os.PathLike) or not str(first):
        raise TypeError(f"its {name} gives {told!r} where a text is needed")
    return str(first)


class PluginProvider(Provider):
    """Execution provider of a library; options of clients reach it as text.

    Args:
        name: Name for clients.
        library: Library that has the provider.
        version: Version of its package; empty: unknown.
        device: Number of the device among those of its kind, as far as there are so many.
        runtime: Module onnxruntime, or a substitute in tests.
    """

    open_options = True

    def __init__(
        self,
        name: str,
        library: Library,
        version: str = "",
        device: int = 0,
        runtime: Any = onnxruntime,
    ) -> None:
        super().__init__(device, runtime)
        self.name = name
        self.runtime_name = ""
        self.version = version
        self._library = library
        self._devices: list[Any] = []
        self._config: tuple[str, str, str] | None = None

    def why_not(self) -> str:
        """Register the library; return why that fails, or that it offers no device."""
        try:
            self.runtime_name = self._library.register(self.runtime)
        except Exception as error:  # a package may fail in any way
            return f"{self._library.path or self._library.module}: {one_line(error)}"
        devices = self.runtime.get_ep_devices()
        self._devices = [each for each in devices if each.ep_name == self.runtime_name]
        if not self._devices:
            return "registered, offers no device on this machine"
        if self._library.path is not None:
            self.files = self._library.path.parent
            with suppress(OSError):
                about = self._library.path.stat()
                self._built = (str(self._library.path), about.st_size, about.st_mtime_ns)
        self._config = _CONFIGS.get(known(self.runtime_name).name)
        self.threads_option = "" if self._config else known(self.runtime_name).threads_option
        kinds = list(dict.fromkeys(map(_kind, self._devices)))
        first = self._devices[0]
        self.version = self.version or first.ep_metadata.get("version", "")
        self.vendor = first.ep_vendor or known(self.runtime_name).vendor
        self.kind = ", ".join(kinds)
        self.gpu = kinds == ["GPU"]
        self.chooses_threads = not (self.threads_option or self._config)
        if len(kinds) > 1:
            text = "Kind of device that runs models."
            self.options = (ProviderOption(DEVICE, "text", kinds[0], text, tuple(kinds)),)
        elif kinds == ["CPU"] and (emulated := _EMULATED.get(known(self.runtime_name).name)):
            self.options = (emulated,)
        return ""

    def with_threads(self, options: Options, threads: int) -> dict[str, str]:
        if self._config is None:
            return super().with_threads(options, threads)
        option, section, entry = self._config
        try:
            config = json.loads(options.get(option, "{}"))
            config[section] = {**config.get(section, {}), entry: str(threads)}
        except (AttributeError, TypeError, ValueError) as error:
            text = f'{option}={options[option]}: give JSON, such as {{"{section}": {{}}}}'
            raise ModelError(FailureKind.INVALID_INPUT, text) from error
        return {**options, option: json.dumps(config)}

    def providers(self, options: Options, use: Use) -> list[tuple[str, dict[str, str]]]:
        """Return no names: :meth:`configure` sets the device of the session."""
        return []

    def configure(self, session: onnxruntime.SessionOptions, options: Options) -> None:
        """Add the chosen device to the session's options, with the options of its provider."""
        kind = options.get(DEVICE) or _kind(self._devices[0])
        alike = [device for device in self._devices if _kind(device) == kind]
        own = {name: value for name, value in options.items() if name != DEVICE}
        session.add_provider_for_devices([alike[min(self.device, len(alike) - 1)]], own)

    def identity(self, device: DeviceState) -> dict[str, str]:
        """Return the version of the provider and its devices."""
        return {
            "provider_version": self.version or "unknown",
            "provider_devices": ", ".join(map(_described, self._devices)),
        }


def _library(device: Any) -> str:
    """Return the path of the library that offers a device; empty for built-in ones."""
    return str(device.ep_metadata.get("library_path", ""))


def _kind(device: Any) -> str:
    """Return the kind of a provider's device: ``CPU``, ``GPU`` or ``NPU``."""
    return str(device.device.type.name)


def _described(device: Any) -> str:
    hardware = device.device
    vendor = hardware.vendor or f"vendor {hardware.vendor_id:#x}"
    return f"{_kind(device)} {vendor} {hardware.device_id:#x}"
