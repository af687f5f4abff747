"""Search for execution providers: built into onnxruntime, in packages, and in given libraries."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from functools import partial
from importlib.machinery import FileFinder
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from esm_agent.errors import ProviderMissingError
from esm_agent.measure.outcomes import one_line
from esm_agent.measure.process import Candidate
from esm_agent.providers.base import CONVOLUTIONS, MATRICES, Provider
from esm_agent.providers.built_in import BuiltInProvider
from esm_agent.providers.plugin import NAMES, PATHS, Library, PluginProvider
from esm_protos.providers import ProviderInfo

_PREFIX = "onnxruntime_"
_PLUGIN_PREFIX = "onnxruntime_ep_"
_LEFT_OUT = {"AzureExecutionProvider", "CPUExecutionProvider", "CUDAExecutionProvider"}
"""Providers of the runtime that run models elsewhere, or have a class of their own here."""


def find(
    libraries: Sequence[tuple[str, str]] = (), device: int = 0, runtime: Any = onnxruntime
) -> list[Candidate]:
    """Return the execution providers of this device, untried, always in the same order.

    Args:
        libraries: Names and paths of libraries that the user gave.
        device: Number of the device to run on, where there are several.
        runtime: Module onnxruntime, or a substitute in tests.
    """
    built_in = sorted(set(runtime.get_available_providers()) - _LEFT_OUT)
    found: list[Provider] = [BuiltInProvider(name, device, runtime) for name in built_in]
    for name, path in libraries:
        found.append(PluginProvider(name, Library(name, Path(path)), "", device, runtime))
    for module in plugin_modules():
        name = module.removeprefix(_PREFIX).removeprefix("ep_").replace("_", "-")
        library = Library(name, module=module)
        found.append(PluginProvider(name, library, _version(module), device, runtime))
    return [Candidate(_untried(provider), partial(_proved, provider)) for provider in found]


def plugin_modules() -> list[str]:
    """Return the installed modules that have a library of providers, without importing them."""
    names = {module.name for module in pkgutil.iter_modules() if _is_plugin(module)}
    return sorted(names - {"onnxruntime"})


def _is_plugin(module: pkgutil.ModuleInfo) -> bool:
    if module.name.startswith(_PLUGIN_PREFIX):
        return True
    if not module.ispkg or not isinstance(module.module_finder, FileFinder):
        return False
    try:
        code = Path(module.module_finder.path, module.name, "__init__.py").read_bytes()
    except OSError:  # a package without the file
        return False
    return all(any(name.encode() in code for name in names) for names in (PATHS, NAMES))


def _version(module: str) -> str:
    """Return the version of a module's package; empty if it is unknown."""
    try:
        return version(module) or ""
    except Exception:  # no package of this name, or one whose metadata is broken
        return ""


def _untried(provider: Provider) -> ProviderInfo:
    return ProviderInfo(provider.name, provider.runtime_name, version=provider.version)


def _proved(provider: Provider) -> Provider:
    """Return a provider on which one of two built-in models runs, if not every node of it.

    A provider of few operators is of use too: each model is refused by itself.

    Raises:
        ProviderMissingError: the provider does not work.
    """
    failure = None
    for probe in (CONVOLUTIONS, MATRICES):
        try:
            provider.prove(probe, allow_fallback=True)
        except ProviderMissingError as error:
            failure = failure or error
        except Exception as error:  # a provider may fail in any way
            text = one_line(error)
            failure = failure or ProviderMissingError(f"no provider {provider.name}: {text}", text)
        else:
            return provider
    assert failure is not None
    raise failure
