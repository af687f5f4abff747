"""An execution provider of ONNX Runtime: what every one does, and what sets one apart.

A provider is one file with a class derived from :class:`Provider`. It states its names and its
options; the hooks that it overrides turn option values into what the runtime takes. Sessions,
proof of where nodes ran, binding and profiles are made here (docs/extending/provider.md).
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime

from esm_agent.measure import feeds, profiling
from esm_agent.measure.backends import (
    Backend,
    LoadedModel,
    ProviderMissingError,
    first_run,
    first_run_error,
    load_error,
    session_options,
)
from esm_agent.measure.binding import Bound, values
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line
from esm_agent.providers.device_memory import DeviceMemory, check_feed
from esm_agent.providers.placement import Placement, called, nodes_by_provider, refusal
from esm_protos.messages import DeviceState, FailureKind, MeasureSpec, Profile
from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.user_folders import user_folder

__all__ = ["Options", "Provider", "ProviderOption", "Use"]

Options = Mapping[str, str]
"""Values of all of a provider's own options."""

CPU = "CPUExecutionProvider"
_PROBE = UploadedModel("probe", Path(__file__).parents[1] / "reference_models" / "arithmetic.onnx")


class DeviceLostError(BaseException):
    """A device is of no more use to this process. No ``except Exception`` may keep it alive: the
    agent starts another, and finds out which model it was."""


class Use(enum.Enum):
    """What a session is for."""

    TIMED = "timed"
    PROFILED = "profiled"
    """Each node's time is wanted."""
    PLACED = "placed"
    """Where each node runs is wanted, and not how fast."""


class Provider(Backend):
    """Base of execution providers.

    Args:
        device: number of the GPU, for a provider that runs on one.
        runtime: the module onnxruntime; for tests.

    Attributes:
        name: what clients call it.
        runtime_name: what ONNX Runtime calls it.
        options: its own, which clients set by ``--ep-option NAME=VALUE``. All that changes
            latencies is one of them, or stated in :meth:`runtime_options`.
        cure: what to do where this onnxruntime has no such provider.
        why_not_loading: what to say, after the agent's log, where the provider's libraries do not
            load.
        may_fall_back: the runtime may run nodes on another provider. Each model is then run once
            under the runtime's profiler, and is refused if a node ran elsewhere.
        gpu: runs on a GPU, which ``esm-agent serve --gpu`` chooses; its clock is waited for.
        memory: name of the device's memory, as ``OrtValue`` takes it, where inputs and outputs
            stay and copies are timed apart; empty: the program's own.
        fatal: matches errors after which the process must end.
    """

    runtime_name: ClassVar[str]
    options: ClassVar[tuple[ProviderOption, ...]] = ()
    cure: ClassVar[str] = ""
    why_not_loading: ClassVar[str] = ""
    may_fall_back: ClassVar[bool] = True
    gpu: ClassVar[bool] = False
    memory: ClassVar[str] = ""
    fatal: ClassVar[re.Pattern[str] | None] = None

    def __init__(self, device: int = 0, runtime: Any = onnxruntime) -> None:
        self.device = device
        self.runtime = runtime

    # What sets a provider apart

    def why_not(self) -> str:
        """Return why the runtime cannot have it here, with the cure; empty if it can."""
        if self.runtime_name in self.runtime.get_available_providers():
            return ""
        return "this onnxruntime has none" + (f" ({self.cure})" if self.cure else "")

    def prepare(self) -> None:
        """Do what has to precede the first session, such as loading libraries."""

    def providers(self, options: Options, use: Use) -> list[tuple[str, dict[str, str]]]:
        """Return the runtime's providers in order of preference, each with its options."""
        own = (self.runtime_name, self.runtime_options(options, use))
        return [own, (CPU, {})] if self.may_fall_back else [own]

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return what the runtime's provider is given; by default the options as they are."""
        return dict(options)

    def configure(self, session: onnxruntime.SessionOptions, options: Options) -> None:
        """Set further options of a session, beside the threads and what all providers share."""

    def own_names(self) -> tuple[str, ...]:
        """Return the runtime's providers on which a node is no fallback."""
        return (self.runtime_name,)

    def identity(self, device: DeviceState) -> dict[str, str]:
        """Return facts beyond those of the machine and of onnxruntime that must be equal for
        latencies to be comparable, such as a GPU's name or a library's version."""
        return {}

    def cache_folder(self) -> Path:
        """Return a folder that outlives the process, for models that the provider compiles; raise
        OSError where there is none."""
        given = os.environ.get("CACHE_DIRECTORY")  # systemd's
        own = Path(given) if given else user_folder("XDG_CACHE_HOME", ".cache") / "esm-agent"
        folder = own / "providers" / self.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def explain(self, error: Exception) -> ModelError:
        """Return what to report of a model that raised an error while it was bound or run."""
        return ModelError(failure_kind(error), one_line(error))

    # What every provider does

    def info(self, device: DeviceState) -> ProviderInfo:
        return ProviderInfo(
            self.name,
            self.runtime_name,
            self.options,
            self.identity(device),
            self.may_fall_back,
        )

    def prove(self) -> None:
        """Run a built-in model.

        Raises:
            ProviderMissingError: it does not run; the text names the cure.
        """
        if reason := self.why_not():
            raise ProviderMissingError(f"no provider {self.name}: {reason}")
        try:
            self.prepare()
            first_run(self.load(_PROBE, MeasureSpec(provider=self.name)))
        except (ModelError, DeviceLostError) as error:
            where = f" on GPU {self.device}" if self.gpu else ""
            raise ProviderMissingError(f"no provider {self.name}{where}: {error}") from error

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        """Return the model, ready to run, where the runtime did put it on this provider.

        Raises:
            ModelError: the model is invalid, unsupported or too large, its inputs do not fit, or
                nodes fell back and the spec does not allow that.
            DeviceLostError: the process must end.
        """
        if not self.may_fall_back:
            session = self._session(model, spec, Use.TIMED)
            feed = self._feed(session, model, spec)
            bound = Bound(session, values(feed))
            return LoadedModel(bound.run, feed, bound.outputs, settles=self.gpu)
        placement = self._placement(model, spec)
        if placement.fallback and not spec.allow_fallback:
            raise ModelError(FailureKind.UNSUPPORTED_OP, refusal(placement, self.runtime_name))
        session = self._session(model, spec, Use.TIMED)
        try:
            loaded = self._bound(session, placement)
        except Exception as error:
            raise self._explanation(error) from error
        return replace(
            loaded, ran_on=placement.ran_on, fallback=placement.fallback, settles=self.gpu
        )

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """Return where the time of ``runs`` runs goes; on a device of its own, that of launches.

        Raises:
            ModelError: it cannot be told.
            DeviceLostError: the process must end.
        """
        with profiling.folder() as prefix:
            session = self._session(model, spec, Use.PROFILED, prefix)
            feed = self._feed(session, model, spec)
            run: Callable[[], object] = partial(_run, session, feed)
            if not self.memory:
                run = Bound(session, values(feed)).run
            try:
                return profiling.profile(session, run, spec.warmup, runs, between)
            except Exception as error:
                raise self._explanation(error) from error

    def _session(self, model: UploadedModel, spec: MeasureSpec, use: Use, profile: str = "") -> Any:
        """Return a session from the model's path: its bytes may be gigabytes, and have more beside
        them.

        Args:
            profile: prefix of the file into which the runtime profiles it; empty: it does not.
        """
        own = ProviderInfo(self.name, options=self.options).complete(spec.provider_options)
        options, weights = session_options(model, spec)
        self.configure(options, own)
        if profile:
            profiling.enable(options, profile)
        providers = [pair if pair[1] else pair[0] for pair in self.providers(own, use)]
        # Else the runtime's Python part takes another provider when this one raises.
        strictly = {"enable_fallback": 0} if self.may_fall_back else {}
        try:
            session = self.runtime.InferenceSession(
                str(model.path), options, providers=providers, **strictly
            )
        except Exception as error:
            self._check_lost(error)
            raise load_error(error, model.path) from error
        del weights
        if self.runtime_name not in session.get_providers():  # it warns, and goes on without
            what = f"the {called(self.runtime_name)} provider did not load"
            raise ModelError(
                FailureKind.CRASH, f"{what}, the agent's log says why{self.why_not_loading}"
            )
        return session

    def _feed(self, session: Any, model: UploadedModel, spec: MeasureSpec) -> Feed:
        feed = feeds.draw(session, spec.seed, model.case, model.inputs, model.path)
        if self.memory:
            check_feed(feed)
        return feed

    def _placement(self, model: UploadedModel, spec: MeasureSpec) -> Placement:
        """Return from a profiled run what the runtime did, not what it planned.

        Every onnxruntime that we support profiles; what tells without a run is newer. Its option
        ``session.disable_cpu_ep_fallback`` names no node, and objects to arithmetic on shapes too.
        """
        with profiling.folder() as prefix:
            session = self._session(model, spec, Use.PLACED, prefix)
            feed = self._feed(session, model, spec)
            try:
                outputs = _run(session, feed)
            except Exception as error:
                raise first_run_error(self._explanation(error), feed) from error
            events = profiling.events(session)
        return Placement(*nodes_by_provider(events, self.own_names()), outputs, feed)

    def _bound(self, session: Any, placement: Placement) -> LoadedModel:
        if self.memory:
            memory = DeviceMemory(self.memory, self.device, self.runtime)
            return memory.bound(session, placement, self._explanation)
        bound = Bound(session, values(placement.feed))
        bound_run = bound.run

        def run() -> None:
            try:
                bound_run()
            except Exception as error:
                raise self._explanation(error) from error

        return LoadedModel(run, placement.feed, bound.outputs)

    def _explanation(self, error: Exception) -> ModelError:
        if isinstance(error, ModelError):
            return error
        self._check_lost(error)
        return self.explain(error)

    def _check_lost(self, error: Exception) -> None:
        """Raise DeviceLostError where the process is lost with the model."""
        if self.fatal is not None and self.fatal.search(str(error)):
            raise DeviceLostError(one_line(error)) from error


def _run(session: Any, feed: Feed) -> Any:
    """Make one inference from and to the program's memory; return the runtime's values."""
    names = [output.name for output in session.get_outputs()]
    return session.run_with_ort_values(names, values(feed))
