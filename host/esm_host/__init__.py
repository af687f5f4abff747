"""Measurement of latencies, training of latency predictors, and search.

The names below are the interface for programs and notebooks; see docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esm_host import devices as devices
    from esm_host import team as team
    from esm_host.api import compare as compare
    from esm_host.api import export as export
    from esm_host.api import profile as profile
    from esm_host.api import resume as resume
    from esm_host.api import time as time
    from esm_host.api import torch_module as torch_module
    from esm_host.api import write_report as write_report
    from esm_host.campaign.latency import Latency as Latency
    from esm_host.campaign.run import Run as Run
    from esm_host.campaign.run import load_run as load_run
    from esm_host.campaign.watcher import Watcher as Watcher
    from esm_host.errors import AuthError as AuthError
    from esm_host.errors import BusyError as BusyError
    from esm_host.errors import ClusterError as ClusterError
    from esm_host.errors import DatasetError as DatasetError
    from esm_host.errors import DeviceError as DeviceError
    from esm_host.errors import EsmError as EsmError
    from esm_host.errors import MismatchError as MismatchError
    from esm_host.errors import RunExistsError as RunExistsError
    from esm_host.errors import UnreachableError as UnreachableError
    from esm_host.errors import UsageError as UsageError
    from esm_host.extension.loop import Loop as Loop
    from esm_host.extension.settings import MeasuringSettings as MeasuringSettings
    from esm_host.extension.settings import SamplingSettings as SamplingSettings
    from esm_host.extension.settings import Settings as Settings
    from esm_host.extension.settings import SpaceSettings as SpaceSettings
    from esm_host.extension.settings import TrainingSettings as TrainingSettings
    from esm_host.research.study.results import load_study as load_study
    from esm_host.research.study.run import run_study as run_study
    from esm_host.search.record import SearchRecord as SearchRecord
    from esm_host.search.record import load_search as load_search
    from esm_host.search.settings import SearchSettings as SearchSettings
    from esm_host.timing.compare import Comparison as Comparison
    from esm_host.timing.compare import DifferentError as DifferentError
    from esm_host.timing.examples import example_model as example_model
    from esm_host.timing.frames import TimingFile as TimingFile
    from esm_host.timing.frames import TimingInterrupt as TimingInterrupt
    from esm_host.timing.frames import load_timing as load_timing
    from esm_host.workflows.search import run_search as run_search
    from esm_models.architecture import Architecture as Architecture
    from esm_models.errors import ModelsError as ModelsError
    from esm_models.spaces import load_space as load_space
    from esm_protos.messages import MeasureSpec as MeasureSpec
    from esm_protos.session_settings import SessionSettings as SessionSettings

# Names by module; a module is imported on first use, so that `import esm_host` stays fast.
_NAMES = {
    "esm_host.api": (
        *("compare", "export", "profile", "resume", "time", "torch_module", "write_report"),
    ),
    "esm_host.errors": (
        *("AuthError", "BusyError", "ClusterError", "DatasetError", "DeviceError", "EsmError"),
        *("MismatchError", "RunExistsError", "UnreachableError", "UsageError"),
    ),
    "esm_host.timing.compare": ("Comparison", "DifferentError"),
    "esm_host.timing.examples": ("example_model",),
    "esm_host.extension.loop": ("Loop",),
    "esm_host.extension.settings": (
        *("MeasuringSettings", "SamplingSettings", "Settings", "SpaceSettings"),
        "TrainingSettings",
    ),
    "esm_host.campaign.latency": ("Latency",),
    "esm_host.campaign.run": ("Run", "load_run"),
    "esm_host.search.record": ("SearchRecord", "load_search"),
    "esm_host.search.settings": ("SearchSettings",),
    "esm_host.workflows.search": ("run_search",),
    "esm_host.research.study.results": ("load_study",),
    "esm_host.research.study.run": ("run_study",),
    "esm_host.timing.frames": ("TimingFile", "TimingInterrupt", "load_timing"),
    "esm_host.campaign.watcher": ("Watcher",),
    "esm_models.architecture": ("Architecture",),
    "esm_models.errors": ("ModelsError",),
    "esm_models.spaces": ("load_space",),
    "esm_protos.messages": ("MeasureSpec",),
    "esm_protos.session_settings": ("SessionSettings",),
}
__version__: str

_LAZY = {name: module for module, names in _NAMES.items() for name in names}

_MODULES = ("devices", "team")

__all__ = sorted([*_MODULES, *_LAZY])


if not TYPE_CHECKING:  # type checkers report unknown names themselves

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("esm-profiler")
        if name in _MODULES:
            return import_module(f"esm_host.{name}")
        if name not in _LAZY:
            raise AttributeError(f"module 'esm_host' has no attribute '{name}'")
        return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
