"""Interface of backends that run models, and common settings of ONNX Runtime sessions."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from esm_agent.device.facts import usable_cpus
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line, outcome
from esm_agent.measure.versions import too_new
from esm_agent.measure.weightless import drawn_weights
from esm_protos.messages import (
    DeviceState,
    Failure,
    FailureKind,
    Finding,
    MeasureSpec,
    Profile,
)
from esm_protos.plugins import described_in
from esm_protos.providers import ProviderInfo
from esm_protos.session_settings import SessionSettings

_STOP_SPINNING = "session.force_spinning_stop"


@dataclass(frozen=True)
class LoadedModel:
    """Model in memory.

    Attributes:
        run: Function that makes one inference and returns at its end.
        feed: Inputs.
        outputs: Function that returns the outputs of the last inference, as runtime values.
        ran_on: Number of nodes on each provider; empty if not determined.
        fallback: Names of nodes on another provider than the requested one.
        settles: Whether the processor raises its clock under load.
        compiled: ``"cached"`` if the model came compiled from the cache, ``"fresh"`` if it was
            compiled for it; empty otherwise.
    """

    run: Callable[[], object]
    feed: Feed = field(default_factory=Feed)
    outputs: Callable[[], Sequence[Any]] = tuple
    ran_on: tuple[tuple[str, int], ...] = ()
    fallback: tuple[str, ...] = ()
    settles: bool = False
    compiled: str = ""


@dataclass(frozen=True, kw_only=True)
class DeviceModel(LoadedModel):
    """Model on a device with its own memory, which holds its inputs and outputs.

    Attributes:
        copy_in: Function that copies the inputs to the device once and returns at the end.
        copy_out: Function that copies the outputs back once and returns at the end.
    """

    copy_in: Callable[[], object]
    copy_out: Callable[[], object]


class Backend(ABC):
    """Loader of model files for timing."""

    name: str
    """Name of the provider for clients."""
    gpu: bool = False
    """Whether it runs on a GPU."""

    def info(self, device: DeviceState) -> ProviderInfo:
        """Return the description of the provider for clients.

        Args:
            device: Current state of the device, with the names of its GPUs.
        """
        return ProviderInfo(self.name)

    def findings(self) -> tuple[Finding, ...]:
        """Return the doctor's findings about the provider."""
        return ()

    @abstractmethod
    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        """Return the model, ready to run.

        Raises:
            ModelError: the model is invalid, unsupported or too large, or its inputs do not fit.
        """

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """Return the profile of ``runs`` runs in a new session.

        Args:
            model: Model to profile.
            spec: Spec of the block.
            runs: Number of runs.
            between: Callback before each run, with the share of runs made.

        Raises:
            ModelError: the model cannot be profiled.
        """
        raise ModelError(FailureKind.CRASH, f"the provider {self.name} has no profile")


def failure_of(provider: Backend, error: Exception) -> str:
    """Return the error of a provider's hook on one line, with the class and its file."""
    cls = type(provider)
    where = f"{inspect.getfile(cls)}:{cls.__name__}"
    return f"the provider {provider.name} failed: {where}: {described_in(error, cls)}"


def load_error(error: Exception, path: Path) -> ModelError:
    """Return the error to report if the runtime cannot create a session."""
    failure = outcome(error)
    if failure.kind is not FailureKind.OUT_OF_MEMORY and (newer := too_new(path)):
        return ModelError(FailureKind.UNSUPPORTED_OP, newer)
    return ModelError(failure.kind, failure.message)


def session_options(
    model: UploadedModel, spec: MeasureSpec
) -> tuple[ort.SessionOptions, list[Any]]:
    """Return the session options common to all providers, and the random weights of the model.

    The options only refer to the weights: keep them until the session exists.

    Raises:
        ModelError: the model is not an ONNX file, or its weights cannot be drawn.
    """
    threads = model.case.threads or spec.threads
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # failures are reported once, as outcomes
    if threads > 1:
        options.add_session_config_entry(_STOP_SPINNING, "1")
    names, arrays = drawn_weights(model.path, spec.seed)
    weights = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    if names:
        try:
            options.add_external_initializers(names, weights)
        except Exception as error:  # a duplicate name
            raise ModelError(failure_kind(error), one_line(error)) from error
    return options, weights


def apply_settings(options: ort.SessionOptions, settings: SessionSettings) -> None:
    """Set the session options that are not as by default.

    Raises:
        ModelError: this onnxruntime lacks a setting or refuses a config entry.
    """
    if settings.opt_level != "all":
        name = "ORT_DISABLE_ALL"
        if settings.opt_level != "disable":
            name = f"ORT_ENABLE_{settings.opt_level.upper()}"
        level = getattr(ort.GraphOptimizationLevel, name, None)
        if level is None:
            text = (
                f"opt_level {settings.opt_level}: onnxruntime {ort.__version__} has no such level, "
                "choose another or install a newer onnxruntime on the device"
            )
            raise ModelError(FailureKind.INVALID_INPUT, text)
        options.graph_optimization_level = level
    if settings.execution_mode == "parallel":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        # Not ONNX Runtime's 0, which pins the threads to processors.
        options.inter_op_num_threads = settings.inter_op or len(usable_cpus())
        options.add_session_config_entry(_STOP_SPINNING, "1")
    for symbol, size in settings.free_dims.items():
        options.add_free_dimension_override_by_name(symbol, size)
    for name, value in settings.session_options.items():
        try:
            options.add_session_config_entry(name, value)
        except Exception as error:
            text = f"session option {name}={value}: {one_line(error)}"
            raise ModelError(FailureKind.INVALID_INPUT, text) from error


def first_run(model: LoadedModel) -> None:
    """Make the first inference.

    Raises:
        ModelError: the inference fails.
    """
    try:
        model.run()
    except Exception as error:
        raise first_run_error(error, model.feed) from error


def first_run_error(error: Exception, feed: Feed) -> ModelError:
    """Return the error to report if the first run raised ``error``."""
    failure = outcome(error)
    failure = feed.blamed(Failure(failure.kind, f"the first run failed: {failure.message}"))
    return ModelError(failure.kind, failure.message)
