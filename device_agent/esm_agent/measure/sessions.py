"""Sessions of models, created while nothing is timed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from esm_agent.measure import preflight, timing
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_protos.graphs import mapped, weight_bytes
from esm_protos.messages import Failure, FailureKind, Limits, MeasureSpec, Profile, UsualLatencies

if TYPE_CHECKING:
    from esm_agent.measure.backends import Backend, DeviceModel, LoadedModel

_LARGE_BYTES = 64 << 20
_SLOW_REFERENCE_NS = 1_000_000_000
"""Longest inference of a reference model, ns; slower ones take too much of a block."""

_LONGEST_LOAD_S = 86_400.0
"""Time limit for loading a reference model, which may differ from block to block."""
_OF_COMPANY = (FailureKind.OUT_OF_MEMORY, FailureKind.TIMEOUT)
"""Failures of loading that other models may cause."""

T = TypeVar("T")


class Job(NamedTuple):
    """Models of a block and how to measure them.

    Attributes:
        spec: Spec of the block.
        models: Models by their index in the block.
        loaders: Number of models loaded at a time. With 1, a model that kills the process during
            loading is identified.
        limits: Limits of models; None accepts every model.
        peak_memory: Whether to measure the memory of every model; they then load one at a time.
        profile_runs: Number of profiled runs per model; 0 for no profile.
        limit_s: Time after which the agent stops the block, seconds.
        references: Reference models of the agent to time with the block.
        usual: Usual latencies of the reference models; None without history.
        energy_s: Time for measuring the energy of each model, seconds; 0 for none.
        raw: Whether a precision is that of latencies in the block, not at the usual pace.
    """

    spec: MeasureSpec
    models: dict[int, UploadedModel]
    loaders: int = 1
    limits: Limits | None = None
    peak_memory: bool = False
    profile_runs: int = 0
    limit_s: float = math.inf
    references: tuple[UploadedModel, ...] = ()
    usual: UsualLatencies | None = None
    energy_s: float = 0.0
    raw: bool = False


class Loaded(NamedTuple):
    """Model in memory with the durations and the memory of its loading and first run."""

    model: LoadedModel
    load_ns: int
    first_run_ns: int = 0
    peak_rss_bytes: int | None = None
    weight_bytes: int = 0

    @property
    def run(self) -> timing.Run:
        """Function that makes one inference."""
        return self.model.run

    @property
    def device(self) -> DeviceModel | None:
        """Model with its copy functions if the device has its own memory; else None."""
        from esm_agent.measure.backends import DeviceModel

        return self.model if isinstance(self.model, DeviceModel) else None


def failure_of_later_run(error: Exception) -> Failure:
    """Return the failure of a model that ran before."""
    from esm_agent.measure.outcomes import outcome

    failure = outcome(error)
    return Failure(failure.kind, f"a later run failed: {failure.message}")


class Sessions:
    """Sessions of successive blocks. Models shared by two blocks in a row stay loaded.

    Args:
        backends: Backends by provider name.
        clock: Clock, ns.
        memory: Meter of peak memory.
        tick: Callback after a model has loaded or run.
        loading: Context of loading a model.

    Attributes:
        references_problem: Reason why there are no reference models; empty if there are.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        clock: timing.Clock,
        memory: PeakMemory,
        tick: timing.Tick = lambda: None,
        loading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._memory = memory
        self._tick = tick
        self._loading = loading
        self._kept: dict[tuple[object, ...], Loaded] = {}
        self._last: set[tuple[object, ...]] = set()
        self._setting: object = None
        self._references: dict[str, Loaded | str] = {}
        self.references_problem = ""

    def load(
        self, job: Job, on_model: Callable[[int, float], None]
    ) -> tuple[dict[int, Loaded], dict[int, Failure]]:
        """Return the loaded models of a job, and the failures of the others, by index."""
        keys = {index: _key(model, job.spec) for index, model in job.models.items()}
        loaded = {i: self._kept[key] for i, key in keys.items() if key in self._kept}
        if job.peak_memory:  # kept models may have no memory figure
            loaded = {i: model for i, model in loaded.items() if model.peak_rss_bytes is not None}
        self._kept = {}  # frees models that this block does not contain
        failures: dict[int, Failure] = {}
        fresh = [index for index in keys if index not in loaded]
        for index, session in self._fresh(job, fresh, on_model):
            if isinstance(session, Failure):
                failures[index] = session
            else:
                loaded[index] = session
        if job.loaders > 1:  # models loading at the same time may have taken the memory or time
            for index in [i for i, f in failures.items() if f.kind in _OF_COMPANY]:
                on_model(index, 1.0)
                session = self._session(job, index)
                if not isinstance(session, Failure):
                    del failures[index]
                    loaded[index] = session
        # After all loading, because first runs are timed.
        for index in [i for i, model in loaded.items() if not model.first_run_ns]:
            on_model(index, 1.0)
            started = self._first_run(loaded.pop(index))
            if isinstance(started, Failure):
                failures[index] = started
            else:
                loaded[index] = started
        self._make_room(job, loaded, failures)
        now = {keys[index] for index in loaded}
        shared = now & self._last
        if shared != now:  # the same block again is measured with new sessions
            self._kept = {keys[i]: model for i, model in loaded.items() if keys[i] in shared}
        self._last = now
        return {index: loaded[index] for index in keys if index in loaded}, failures

    def _make_room(self, job: Job, loaded: dict[int, Loaded], failures: dict[int, Failure]) -> None:
        """Unload earlier reference models and retry models that ran out of memory."""
        lacking = [i for i, f in failures.items() if f.kind is FailureKind.OUT_OF_MEMORY]
        if not lacking or not self._references:
            return
        self._references.clear()
        for index in lacking:
            again = self.load_one(job, index)
            if not isinstance(again, Failure):
                del failures[index]
                loaded[index] = again

    def _fresh(
        self, job: Job, indices: Sequence[int], on_model: Callable[[int, float], None]
    ) -> Iterator[tuple[int, Loaded | Failure]]:
        def session(index: int) -> Loaded | Failure:
            return self._session(job, index)

        if job.loaders == 1:
            for position, index in enumerate(indices):
                on_model(
                    index, position / len(indices)
                )  # identifies a model that kills the process
                yield index, self._measured(job, index) if job.peak_memory else session(index)
            return
        with ThreadPoolExecutor(job.loaders) as pool:
            for position, found in enumerate(zip(indices, pool.map(session, indices), strict=True)):
                on_model(found[0], position / len(indices))
                yield found

    def load_one(self, job: Job, index: int) -> Loaded | Failure:
        """Load and run one model without others beside it."""
        if job.peak_memory:
            return self._measured(job, index)
        session = self._session(job, index)
        return session if isinstance(session, Failure) else self._first_run(session)

    def renew(self, job: Job, index: int, loaded: dict[int, Loaded]) -> Failure | None:
        """Replace the session of a model by a new one, and run it once.

        Returns:
            None; or the failure, after which the model is no longer loaded.
        """
        old = loaded.pop(index)
        keys = [key for key, kept in self._kept.items() if kept is old]
        for key in keys:
            del self._kept[key]
        as_before, compiled = old._asdict(), old.model.compiled
        del old, as_before["model"]  # frees memory for the new session
        made = self._made(job, index)
        model = made if isinstance(made, Failure) else self._first_run(made)
        if isinstance(model, Failure):
            return model
        # The first session tells how the model was loaded.
        again = replace(model.model, compiled=compiled)
        loaded[index] = model._replace(**as_before, model=again)
        self._kept |= dict.fromkeys(keys, loaded[index])
        return None

    def references(self, job: Job) -> dict[str, Loaded]:
        """Return the reference models of a job that this device can run; they stay loaded.

        Models that ran out of memory are tried again with the next block. Others that failed, or
        are slow, are not. If none is left, ``references_problem`` gets the reason.
        """
        self.references_problem = ""
        if not job.references:
            return {}
        spec = replace(job.spec, seed=0, load_timeout_s=_LONGEST_LOAD_S)
        setting = (spec.threads, spec.execution, spec.session.key)
        if self._setting != setting:
            self._setting = setting
            self._references.clear()
        missing = [each for each in job.references if each.model_id not in self._references]
        own = job._replace(spec=spec, models=dict(enumerate(missing)), peak_memory=False)
        for index, session in self._fresh(own, list(own.models), lambda index, share: None):
            model = session if isinstance(session, Failure) else self._first_run(session)
            name = missing[index].model_id
            if isinstance(model, Failure):
                self.references_problem = model.message
                if model.kind is not FailureKind.OUT_OF_MEMORY:
                    self._references[name] = model.message
            elif model.first_run_ns > _SLOW_REFERENCE_NS:
                self._references[name] = f"one inference took {model.first_run_ns / 1e9:.1f} s"
            else:
                self._references[name] = model
        known = self._references.items()
        found = {name: model for name, model in known if not isinstance(model, str)}
        reasons = [model for _, model in known if isinstance(model, str)]
        self.references_problem = "" if found else next(iter(reasons), self.references_problem)
        return found

    def profile(self, job: Job, index: int, between: Callable[[float], None]) -> Profile | None:
        """Return the profile of a model; None if profiling fails."""
        model, backend = job.models[index], self._backends[job.spec.provider]
        with ExitStack() as until_it_runs:
            until_it_runs.enter_context(self._loading())

            def running(share: float) -> None:
                until_it_runs.close()
                between(share)

            try:
                return backend.profile(model, job.spec, job.profile_runs, running)
            except Exception:
                return None

    def _measured(self, job: Job, index: int) -> Loaded | Failure:
        """Load and run one model with nothing beside it, and measure its memory."""
        weights = self._weights(job, index)
        if isinstance(weights, Failure):
            return weights
        self._memory.begin()
        try:
            session = self._made(job, index)
            model = session if isinstance(session, Failure) else self._first_run(session)
            if isinstance(model, Failure):
                return model
            peak = self._memory.peak_bytes()
        finally:
            self._memory.end()
        return model._replace(peak_rss_bytes=peak, weight_bytes=weights)

    def _session(self, job: Job, index: int) -> Loaded | Failure:
        weights = self._weights(job, index)
        if isinstance(weights, Failure):
            return weights
        made = self._made(job, index)
        return made if isinstance(made, Failure) else made._replace(weight_bytes=weights)

    def _weights(self, job: Job, index: int) -> int | Failure:
        """Return the size of a model's weights, bytes, or why the model is refused."""
        # Before loading, because it reads the file.
        refusal = self._refusal(job, index)
        if refusal is not None:
            return refusal
        return _attempted(lambda: weight_bytes(job.models[index].path))

    def _refusal(self, job: Job, index: int) -> Failure | None:
        """Return why a model is refused; None if it is accepted."""
        model, limits = job.models[index], job.limits
        if limits is None:
            return None

        def examined() -> Failure | None:
            with mapped(model.path) as data:
                return preflight.examine(data, limits, model.external)

        return _attempted(examined)

    def _made(self, job: Job, index: int) -> Loaded | Failure:
        model, spec = job.models[index], job.spec
        backend = self._backends.get(spec.provider)
        if backend is None:  # it worked at the start of the agent
            text = f"the provider {spec.provider} has stopped working: restart the agent"
            return Failure(FailureKind.CRASH, text)
        with self._loading():
            start = self._clock()
            made = _attempted(lambda: backend.load(model, spec))
            took = self._clock() - start
        self._tick()
        if isinstance(made, Failure):
            return made
        if took > 1e9 * spec.load_timeout_s:  # the agent looks only now and then
            text = f"loading took longer than {spec.load_timeout_s:g} s: give a longer load timeout"
            return Failure(FailureKind.TIMEOUT, text)
        return Loaded(made, took)

    def _first_run(self, model: Loaded) -> Loaded | Failure:
        from esm_agent.measure.backends import first_run

        start = self._clock()
        failure = _attempted(lambda: first_run(model.model))
        took = max(self._clock() - start, 1)
        self._tick()
        return model._replace(first_run_ns=took) if failure is None else failure


def _key(model: UploadedModel, spec: MeasureSpec) -> tuple[object, ...]:
    """Return a key that is equal for models that can share a session."""
    beside = [(place, _content(model.path.parent / place)) for place in sorted(model.external)]
    return (
        _content(model.path),
        tuple(beside),
        model.inputs and _content(model.inputs),
        (model.case.shapes, model.case.threads or spec.threads),
        (spec.seed, spec.execution, spec.allow_fallback, spec.session.key),
    )


def _content(path: Path) -> object:
    """Return a key of a file's content.

    Large files come from the cache, where equal content is one file: they are not read.
    """
    if not path.is_file():
        return None  # reported by the runtime
    about = path.stat()
    if about.st_size > _LARGE_BYTES:
        return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _attempted(call: Callable[[], T]) -> T | Failure:
    """Return the result of a call, or the failure of its exception."""
    from esm_agent.measure.outcomes import outcome

    try:
        return call()
    except Exception as error:
        return outcome(error)
