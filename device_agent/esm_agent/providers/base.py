"""Base class of the execution providers of ONNX Runtime.

A provider is one file with a subclass of :class:`Provider`. It declares its names and options. The
hooks that it overrides translate option values for the runtime. The base class creates sessions,
checks where nodes ran, binds inputs and outputs, and profiles (docs/extending/provider.md).
"""

from __future__ import annotations

import enum
import inspect
import os
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from esm_agent.errors import ProviderMissingError
from esm_agent.measure import feeds, profiling
from esm_agent.measure.backends import (
    Backend,
    LoadedModel,
    apply_settings,
    failure_of,
    first_run,
    first_run_error,
    load_error,
    session_options,
)
from esm_agent.measure.binding import Bound, values
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.outcomes import ModelError, one_line, outcome
from esm_agent.measure.weightless import with_weights
from esm_agent.providers import COMPILED
from esm_agent.providers.compiled import Compiled, compiled_cache, key_of
from esm_agent.providers.device_memory import DeviceMemory, check_feed
from esm_agent.providers.file_options import names_files
from esm_agent.providers.native_errors import error_of
from esm_agent.providers.placement import (
    PlacedNode,
    Placement,
    assigned_nodes,
    called,
    placement,
    profiled_nodes,
    refusal,
)
from esm_protos.messages import DeviceState, FailureKind, MeasureSpec, Profile
from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.session_settings import RECORD
from esm_protos.user_folders import user_folder

__all__ = ["Options", "Provider", "ProviderOption", "Use"]

Options = Mapping[str, str]
"""Values of all options of a provider, by name."""

CPU = "CPUExecutionProvider"
_WITHOUT_WEIGHTS = re.compile(r"initializer|external|weightless|did not run on", re.IGNORECASE)
"""Messages of providers that refuse, or leave to the CPU, nodes whose weights a session gets apart
from the model."""
CONVOLUTIONS, MATRICES = (
    UploadedModel(name, Path(__file__).parents[1] / "reference_models" / f"{name}.onnx")
    for name in ("arithmetic", "large")
)
"""Built-in models that prove a provider: of convolutions, and of a matrix product."""


class DeviceLostError(BaseException):
    """The process can no longer use the device and must end.

    It is no ``Exception``, so that no handler keeps the process alive. The agent starts another
    process and identifies the model.
    """


class Use(enum.Enum):
    """Purpose of a session."""

    TIMED = "timed"
    PROFILED = "profiled"
    """Profiling: the time of each node."""
    PLACED = "placed"
    """Placement: the provider of each node, not its time."""


class PlacedRun(NamedTuple):
    """Run of a model under the runtime's profiler.

    Attributes:
        nodes: Nodes with their providers; a compiled partition is one node.
        shapes: Names and operators of nodes that compute shapes.
        outputs: Outputs, as runtime values.
        feed: Inputs.
    """

    nodes: list[PlacedNode]
    shapes: frozenset[tuple[str, str]]
    outputs: list[Any]
    feed: Feed


class Provider(Backend):
    """Base of execution providers.

    Args:
        device: Number of the GPU, for a GPU provider.
        runtime: Module onnxruntime, or a substitute in tests.

    Attributes:
        name: Name for clients.
        runtime_name: Name in ONNX Runtime.
        options: Options that clients set by name. Every setting that
            changes latencies is an option or is fixed in :meth:`runtime_options`.
        cure: Remedy if this onnxruntime lacks the provider.
        why_not_loading: End of the message if the provider's libraries do not load.
        may_fall_back: Whether the runtime may run nodes on another provider. If so, a model is
            refused if a node ran elsewhere.
        gpu: Whether the provider runs on the GPU of ``esm-agent serve --gpu``. Timing then waits
            until the clock has settled.
        memory: Name of the device's memory in ``OrtValue``; inputs and outputs stay there, and
            copies are timed separately. Empty: main memory.
        fatal: Pattern of errors after which the process must end.
        version: Version of the package that has the provider.
        vendor: Its vendor.
        kind: Kinds of its devices, ``CPU``, ``GPU`` or ``NPU``; empty: unknown.
        open_options: Whether clients may give any option of the runtime's provider, as text.
        files: Folder with the files that options of clients may name; None allows none.
        threads_option: Option of the runtime's provider that sets its number of threads.
        chooses_threads: Whether the provider has threads of its own that no option limits.
    """

    runtime_name: str
    options: tuple[ProviderOption, ...] = ()
    cure: str = ""
    why_not_loading: str = ""
    may_fall_back: bool = True
    gpu: bool = False
    memory: str = ""
    fatal: re.Pattern[str] | None = None
    version: str = ""
    vendor: str = ""
    kind: str = ""
    open_options: bool = False
    files: Path | None = None
    threads_option: str = ""
    chooses_threads: bool = False
    _needs_weights = False
    _can_keep = True
    _built: tuple[object, ...] = ()

    def __init__(self, device: int = 0, runtime: Any = onnxruntime) -> None:
        self.device = device
        self.runtime = runtime

    # Hooks

    def why_not(self) -> str:
        """Return why the runtime lacks the provider, with the remedy; empty if it has it."""
        if self.runtime_name in self.runtime.get_available_providers():
            return ""
        return "this onnxruntime has none" + (f" ({self.cure})" if self.cure else "")

    def prepare(self) -> None:
        """Prepare the first session, such as by loading libraries."""

    def providers(self, options: Options, use: Use) -> list[tuple[str, dict[str, str]]]:
        """Return the runtime's providers in order of preference, each with its options."""
        own = (self.runtime_name, self.runtime_options(options, use))
        return [own, (CPU, {})] if self.may_fall_back else [own]

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return the options for the runtime's provider; by default ``options`` unchanged."""
        return dict(options)

    def with_threads(self, options: Options, threads: int) -> dict[str, str]:
        """Return the options with the number of threads, if the runtime's provider takes one."""
        return {**options, **({self.threads_option: str(threads)} if self.threads_option else {})}

    def configure(self, session: onnxruntime.SessionOptions, options: Options) -> None:
        """Set further session options, besides those common to all providers."""

    def own_names(self) -> tuple[str, ...]:
        """Return the runtime's providers on which a node does not count as fallback."""
        return (self.runtime_name,)

    def identity(self, device: DeviceState) -> dict[str, str]:
        """Return facts that must be equal for latencies to be comparable.

        ``device`` is the state of the device, not the number of the GPU.

        Examples are the name of a GPU or the version of a library. Facts of the machine and of
        onnxruntime are included elsewhere.
        """
        return {}

    def cache_folder(self) -> Path:
        """Return a persistent folder for compiled models.

        Raises:
            OSError: the folder cannot be created.
        """
        given = os.environ.get("CACHE_DIRECTORY")  # systemd's
        own = Path(given) if given else user_folder("XDG_CACHE_HOME", ".cache") / "esm-agent"
        folder = own / COMPILED / self.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def explain(self, error: Exception) -> ModelError:
        """Return the error to report if binding or running a model raised ``error``."""
        failure = outcome(error)
        return ModelError(failure.kind, failure.message)

    # Common to all providers

    def info(self, device: DeviceState) -> ProviderInfo:
        return ProviderInfo(
            self.name,
            self.runtime_name,
            self.options,
            self.identity(device),
            self.may_fall_back,
            self.version,
            self.vendor,
            self.kind,
            open_options=self.open_options,
            threads_option=self.threads_option,
            chooses_threads=self.chooses_threads,
        )

    def prove(self, probe: UploadedModel = CONVOLUTIONS, allow_fallback: bool = False) -> None:
        """Run a built-in model.

        Args:
            probe: The model.
            allow_fallback: Whether its nodes may run on another provider.

        Raises:
            ProviderMissingError: the model does not run; the text gives the remedy.
        """
        if reason := self.why_not():
            raise ProviderMissingError(f"no provider {self.name}: {reason}", reason)
        try:
            self.prepare()
            spec = MeasureSpec(provider=self.name, allow_fallback=allow_fallback)
            first_run(self.load(probe, spec))
        except (ModelError, DeviceLostError) as error:
            where = f" on GPU {self.device}" if self.gpu else ""
            text = f"no provider {self.name}{where}: {error}"
            raise ProviderMissingError(text, str(error)) from error

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        """Return the model, ready to run on this provider.

        Raises:
            ModelError: the model is invalid, unsupported or too large, its inputs do not fit, or
                nodes fell back although the spec does not allow it.
            DeviceLostError: the process must end.
        """
        if self._needs_weights:
            return self._load_with_weights(model, spec) or self._load(model, spec)
        try:
            return self._load(model, spec)
        except ModelError as error:
            if not self.may_fall_back or not _WITHOUT_WEIGHTS.search(str(error)):
                raise
            with suppress(ModelError):  # the first error tells more
                loaded = self._load_with_weights(model, spec)
                if loaded is not None:
                    self._needs_weights = True
                    return loaded
            raise

    def _load_with_weights(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel | None:
        """Return a weightless model that is loaded from a copy with weights; None for others."""
        with with_weights(model, spec.seed) as whole:
            return None if whole is None else self._load(whole, spec)

    def _load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        cache = compiled_cache() if self._caches_compiled else None
        key = "" if cache is None else self._compiled_key(model, spec)
        if cache is not None and (found := cache.find(key)):
            session = self._compiled_session(found, model, spec)
            if session is not None:
                feed = self._feed(session, model, spec)
                loaded = self._loaded(self._bound(session, feed), Placement(found.ran_on))
                return replace(loaded, compiled="cached")
            cache.drop(key)
            cache, self._can_keep = None, False
        nodes = None
        if not self.memory:
            with nullcontext() if cache is None else cache.writing() as path:
                session, wrote = self._compiling_session(model, spec, path)
                nodes = assigned_nodes(session)
                placed = self._placement(nodes or ())
                whole = nodes is not None and not placed.fallback
                kept = wrote and whole
                if kept and cache is not None and path is not None:
                    cache.keep(key, path, placed.ran_on)
            if not self.may_fall_back or whole:
                feed = self._feed(session, model, spec)
                loaded = self._loaded(self._bound(session, feed), placed)
                return replace(loaded, compiled="fresh") if kept else loaded
            del session  # two would take twice the memory
        # Only a run tells which nodes compute shapes, and what the outputs are.
        run = self._placed_run(model, spec)
        placed = self._placement(run.nodes if nodes is None else nodes, run.shapes)
        if placed.own_nodes == 0 and spec.provider_options:
            self._check_options(placed, model, spec)
        if placed.fallback and not spec.allow_fallback:
            raise ModelError(FailureKind.UNSUPPORTED_OP, refusal(placed, self.runtime_name))
        session = self._session(model, spec, Use.TIMED)
        if not self.memory:
            return self._loaded(self._bound(session, run.feed), placed)
        memory = DeviceMemory(self.memory, self.device, self.runtime)
        with self._explained():
            on_device = memory.bound(session, run.feed, run.outputs, self._explanation)
        return self._loaded(on_device, placed)

    def _compiling_session(
        self, model: UploadedModel, spec: MeasureSpec, path: Path | None
    ) -> tuple[Any, bool]:
        """Return a session, and whether the runtime has written the compiled model to ``path``."""
        if path is None:
            return self._session(model, spec, Use.TIMED), False
        with suppress(ModelError):  # the next one tells whether the model is to blame
            return self._session(model, spec, Use.TIMED, compiled=path), path.exists()
        session = self._session(model, spec, Use.TIMED)
        self._can_keep = False
        return session, False

    def _compiled_key(self, model: UploadedModel, spec: MeasureSpec) -> str:
        """Return the key of all that decides what the provider compiles from a model."""
        return key_of(
            model,
            (self.runtime_name, self.version, self.runtime.__version__, self.device, self._built),
            (platform.machine(), platform.node(), Path(inspect.getfile(type(self))).read_bytes()),
            (spec.execution, spec.session.key, model.case.threads or spec.threads, spec.seed),
        )

    @property
    def _caches_compiled(self) -> bool:
        return self.may_fall_back and not self.memory and self._can_keep

    def _compiled_session(
        self, compiled: Compiled, model: UploadedModel, spec: MeasureSpec
    ) -> Any | None:
        """Return a session of a compiled model; None if it fails or has nodes elsewhere.

        Some providers write models that they cannot read.
        """
        try:
            session = self._session(replace(model, path=compiled.path), spec, Use.TIMED)
        except ModelError:
            return None
        return None if self._placement(assigned_nodes(session) or ()).fallback else session

    def _loaded(self, model: LoadedModel, placed: Placement) -> LoadedModel:
        labels = tuple(node.label for node in placed.fallback)
        return replace(model, ran_on=placed.ran_on, fallback=labels, settles=self.gpu)

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """Return the profile of ``runs`` runs; on a GPU, the times of kernel launches.

        Raises:
            ModelError: the model cannot be profiled.
            DeviceLostError: the process must end.
        """
        with ExitStack() as until_done:
            prefix = until_done.enter_context(profiling.folder())
            if self._needs_weights:
                model = until_done.enter_context(with_weights(model, spec.seed)) or model
            session = self._session(model, spec, Use.PROFILED, prefix)
            feed = self._feed(session, model, spec)
            run: Callable[[], object] = partial(_run, session, feed)
            if not self.memory:
                run = Bound(session, values(feed)).run
            try:
                return profiling.profile(session, run, spec.warmup, runs, between)
            except Exception as error:
                raise self._explanation(error) from error

    def _session(
        self,
        model: UploadedModel,
        spec: MeasureSpec,
        use: Use,
        profile: str = "",
        compiled: Path | None = None,
    ) -> Any:
        """Return a session of a model file.

        Args:
            model: Model, loaded by path: it may have gigabytes and external data.
            spec: Spec of the block.
            use: Purpose of the session.
            profile: Prefix of the runtime's profile file; empty: no profile.
            compiled: File to which the runtime writes the compiled model, if it can; None: none.
        """
        known = ProviderInfo(
            self.name,
            options=self.options,
            open_options=self.open_options,
            threads_option=self.threads_option,
        )
        own = known.complete(spec.provider_options)
        self._check_files(spec.provider_options)
        options, weights = session_options(model, spec)
        with self._hooks():
            own = self.with_threads(own, model.case.threads or spec.threads)
            self.configure(options, own)
            apply_settings(options, spec.session)
            providers = [pair if pair[1] else pair[0] for pair in self.providers(own, use)]
        if profile:
            profiling.enable(options, profile)
        elif not self.memory:
            options.add_session_config_entry(RECORD, "1")
        if compiled is not None:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(compiled))
            options.add_session_config_entry("ep.context_embed_mode", "0")  # 1 ends at 2 GB
        # By default the Python API of the runtime retries with another provider after an error.
        strictly = {"enable_fallback": 0} if self.may_fall_back else {}

        def made() -> Any:
            return self.runtime.InferenceSession(
                str(model.path), options, providers=providers or None, **strictly
            )

        try:
            session = made()
        except Exception as error:
            self._check_lost(error)
            raise self._to_blame(load_error(error, model.path), model, spec, use) from error
        if self.runtime_name not in session.get_providers():  # the runtime only logs why
            del session
            what = f"the {called(self.runtime_name)} provider did not load"
            why = error_of(made) or "see the agent's log"
            absent = ModelError(FailureKind.CRASH, f"{what}: {why}{self.why_not_loading}")
            raise self._to_blame(absent, model, spec, use)
        del weights
        return session

    def _to_blame(
        self, error: ModelError, model: UploadedModel, spec: MeasureSpec, use: Use
    ) -> ModelError:
        """Return the error of a model that does not load, or of the options if they are why.

        They are if the model loads without them. The runtime's message may not name an option.
        """
        if error.failure.kind is FailureKind.OUT_OF_MEMORY:
            return error
        entries, options = spec.session.session_options, spec.provider_options
        if entries:
            who, given = "ONNX Runtime refuses the session options", entries
            without = replace(spec, session=replace(spec.session, session_options={}))
        elif options:
            who, given = f"the provider {self.name} refuses the options", options
            without = replace(spec, provider_options={})
        else:
            return error
        try:
            self._session(model, without, use)
        except ModelError as own:
            return own
        values = ", ".join(f"{name}={value}" for name, value in given.items())
        return ModelError(FailureKind.INVALID_INPUT, f"{who} {values}: {error}")

    def _check_options(self, placed: Placement, model: UploadedModel, spec: MeasureSpec) -> None:
        """Check that options are not why all nodes of a model fell back.

        They are if nodes run on the provider without them. Allowing fallback is no cure then.

        Raises:
            ModelError: the options are to blame.
        """
        without = replace(spec, provider_options={})
        try:
            session = None if self.memory else self._session(model, without, Use.TIMED)
            nodes = None if session is None else assigned_nodes(session)
            del session
            found = self._placement(
                self._placed_run(model, without).nodes if nodes is None else nodes
            )
        except ModelError:
            return
        if found.own_nodes:
            given = ", ".join(f"{name}={value}" for name, value in spec.provider_options.items())
            text = (
                f"with the options {given} none of {len(placed.fallback)} nodes ran on "
                f"{called(self.runtime_name)}, without them {found.own_nodes}: change the options"
            )
            raise ModelError(FailureKind.INVALID_INPUT, text)

    def _check_files(self, given: Options) -> None:
        """Check that options of a client name no files of the device but those of the provider.

        A file may be a library that the provider loads, or a folder that it writes to.

        Raises:
            ModelError: an option names another file.
        """
        declared = {option.name for option in self.options}
        for name, value in given.items():
            if name in declared or not names_files(name, value):
                continue
            place = Path(os.path.abspath(value))
            if self.files is None or self.files not in place.parents:
                where = f" outside {self.files}" if self.files else ""
                cure = "declare the option in a provider of your own (docs/extending/provider.md)"
                if "cache" in f"{name}{value}".lower():
                    cure = "esm-agent serve --compiled-cache FOLDER keeps compiled models"
                text = f"{name}={value}: options may not name files{where}; {cure}"
                raise ModelError(FailureKind.INVALID_INPUT, text)

    def _feed(self, session: Any, model: UploadedModel, spec: MeasureSpec) -> Feed:
        feed = feeds.draw(session, spec.seed, model.case, model.inputs, model.path)
        if self.memory:
            check_feed(feed)
        return feed

    def _placement(
        self, nodes: Collection[PlacedNode], shapes: Collection[tuple[str, str]] = frozenset()
    ) -> Placement:
        """Return the placement of nodes, of which some compute shapes."""
        with self._hooks():
            own_names = self.own_names()
        found = placement(nodes, own_names, shapes)
        return found if self.may_fall_back else found._replace(fallback=())

    def _placed_run(self, model: UploadedModel, spec: MeasureSpec) -> PlacedRun:
        """Run the model once under the runtime's profiler.

        The option ``session.disable_cpu_ep_fallback`` would name no node, and also reject
        arithmetic on shapes.
        """
        with profiling.folder() as prefix:
            session = self._session(model, spec, Use.PLACED, prefix)
            feed = self._feed(session, model, spec)
            try:
                outputs = _run(session, feed)
            except Exception as error:
                raise first_run_error(self._explanation(error), feed) from error
            nodes, shapes = profiled_nodes(profiling.events(session))
        return PlacedRun(nodes, shapes, outputs, feed)

    def _bound(self, session: Any, feed: Feed) -> LoadedModel:
        """Return a session with its inputs and outputs in main memory."""
        if not self.may_fall_back:
            bound = Bound(session, values(feed))
            return LoadedModel(bound.run, feed, bound.outputs)
        with self._explained():
            bound = Bound(session, values(feed))
        bound_run = bound.run

        def run() -> None:
            try:
                bound_run()
            except Exception as error:
                raise self._explanation(error) from error

        return LoadedModel(run, feed, bound.outputs)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._explanation(error) from error

    def _explanation(self, error: Exception) -> ModelError:
        if isinstance(error, ModelError):
            return error
        self._check_lost(error)
        with self._hooks():
            return self.explain(error)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Name this class and its file in an error of a hook, for which no model is to blame.

        Raises:
            ModelError: a hook failed.
        """
        try:
            yield
        except ModelError:
            raise
        except Exception as error:  # anything that a user's class may do
            raise ModelError(FailureKind.CRASH, failure_of(self, error)) from error

    def _check_lost(self, error: Exception) -> None:
        """Check whether an error is fatal.

        Raises:
            DeviceLostError: the process must end.
        """
        if self.fatal is not None and self.fatal.search(str(error)):
            raise DeviceLostError(one_line(error)) from error


def _run(session: Any, feed: Feed) -> Any:
    """Make one inference with inputs and outputs in main memory; return the runtime's values."""
    names = [output.name for output in session.get_outputs()]
    return session.run_with_ort_values(names, values(feed))
