"""Sessions of models: made between blocks, or anew within one, when nothing is timed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from esm_agent.measure import preflight, timing
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_protos.graphs import mapped, weight_bytes
from esm_protos.messages import Failure, FailureKind, Limits, MeasureSpec, Profile, Usual

if TYPE_CHECKING:
    from esm_agent.measure.backends import Backend, DeviceModel, LoadedModel

_LARGE_BYTES = 64 << 20
_SLOW_REFERENCE_NS = 1_000_000_000
"""A reference model that runs longer would take more time than it is worth."""

T = TypeVar("T")


class Job(NamedTuple):
    """Models of a block by their index in it, and how to measure them.

    Attributes:
        loaders: how many models are loaded at a time; with one, a model that kills the process
            while it loads is known.
        limits: what the runtime is to see of models; None shows it anything.
        peak_memory: tell how much every model takes; one is loaded at a time.
        profile_runs: 0 profiles nothing.
        limit_s: time after which the agent breaks the block off.
        references: the agent's reference models, to be timed along.
        usual: what it remembers of them.
    """

    spec: MeasureSpec
    models: dict[int, UploadedModel]
    loaders: int = 1
    limits: Limits | None = None
    peak_memory: bool = False
    profile_runs: int = 0
    limit_s: float = math.inf
    references: tuple[UploadedModel, ...] = ()
    usual: Usual | None = None


class Loaded(NamedTuple):
    """A model in memory, run once, and what that took."""

    model: LoadedModel
    load_ns: int
    first_run_ns: int = 0
    peak_rss_bytes: int | None = None
    weight_bytes: int = 0

    @property
    def run(self) -> timing.Run:
        return self.model.run

    @property
    def device(self) -> DeviceModel | None:
        """Where it lies in a memory other than this program's."""
        from esm_agent.measure.backends import DeviceModel

        return self.model if isinstance(self.model, DeviceModel) else None


def failure_of_later_run(error: Exception) -> Failure:
    """The outcome of a model that ran before, and then did not."""
    from esm_agent.measure.outcomes import outcome

    failure = outcome(error)
    return Failure(failure.kind, f"a later run failed: {failure.message}")


class Sessions:
    """Loads the models of one block after the other, between blocks, when nothing is timed.

    What two blocks in a row share, the references, stays loaded.

    Args:
        tick: told that a model is loaded, or has run.

    Attributes:
        no_references: why there are no reference models that a job asked for; else empty.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        clock: timing.Clock,
        memory: PeakMemory,
        tick: timing.Tick = lambda: None,
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._memory = memory
        self._tick = tick
        self._kept: dict[tuple[object, ...], Loaded] = {}
        self._last: set[tuple[object, ...]] = set()
        self._setting: object = None
        self._references: dict[str, Loaded | str] = {}
        self.no_references = ""

    def load(
        self, job: Job, on_model: Callable[[int, float], None]
    ) -> tuple[dict[int, Loaded], dict[int, Failure]]:
        """The job's models that could be loaded, and why the others could not."""
        keys = {index: _key(model, job.spec) for index, model in job.models.items()}
        loaded = {i: self._kept[key] for i, key in keys.items() if key in self._kept}
        if job.peak_memory:  # it was not asked for when they were loaded
            loaded = {i: model for i, model in loaded.items() if model.peak_rss_bytes is not None}
        self._kept = {}  # what this block lacks makes room for what it brings
        failures: dict[int, Failure] = {}
        fresh = [index for index in keys if index not in loaded]
        for index, session in self._fresh(job, fresh, on_model):
            if isinstance(session, Failure):
                failures[index] = session
            else:
                loaded[index] = session
        if job.loaders > 1:  # what lacked memory may have lacked it for what loaded beside it
            for index in [i for i, f in failures.items() if f.kind is FailureKind.OUT_OF_MEMORY]:
                on_model(index, 1.0)
                session = self._session(job, index)
                if not isinstance(session, Failure):
                    del failures[index]
                    loaded[index] = session
        # Only now: first runs are timed, so nothing may load beside them.
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
        if shared != now:  # else the same was asked again, and is to be measured afresh
            self._kept = {keys[i]: model for i, model in loaded.items() if keys[i] in shared}
        self._last = now
        return {index: loaded[index] for index in keys if index in loaded}, failures

    def _make_room(self, job: Job, loaded: dict[int, Loaded], failures: dict[int, Failure]) -> None:
        """Load models that lacked memory once more, without the references of earlier blocks."""
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
                on_model(index, position / len(indices))  # should it kill the process
                yield index, self._measured(job, index) if job.peak_memory else session(index)
            return
        with ThreadPoolExecutor(job.loaders) as pool:
            for position, found in enumerate(zip(indices, pool.map(session, indices), strict=True)):
                on_model(found[0], position / len(indices))
                yield found

    def load_one(self, job: Job, index: int) -> Loaded | Failure:
        """A model that is measured by itself."""
        if job.peak_memory:
            return self._measured(job, index)
        session = self._session(job, index)
        return session if isinstance(session, Failure) else self._first_run(session)

    def renew(self, job: Job, index: int, loaded: dict[int, Loaded]) -> Failure | None:
        """Replace a model's session by a new one, run once; if that fails, the model is gone."""
        old = loaded.pop(index)
        keys = [key for key, kept in self._kept.items() if kept is old]
        for key in keys:
            del self._kept[key]
        as_before = old._asdict()
        del old, as_before["model"]  # makes room
        made = self._made(job, index)
        model = made if isinstance(made, Failure) else self._first_run(made)
        if isinstance(model, Failure):
            return model
        loaded[index] = model._replace(**as_before)
        self._kept |= dict.fromkeys(keys, loaded[index])
        return None

    def references(self, job: Job) -> dict[str, Loaded]:
        """Return the job's reference models that this device can run; they stay loaded.

        What lacks memory now may fit beside the next block. What fails otherwise, or is slow, is
        not tried again. Afterwards ``no_references`` says why there are none.
        """
        self.no_references = ""
        if not job.references:
            return {}
        spec = replace(job.spec, seed=0)
        setting = (spec.threads, spec.execution)
        if self._setting != setting:
            self._setting = setting
            self._references.clear()
        missing = [each for each in job.references if each.model_id not in self._references]
        own = job._replace(spec=spec, models=dict(enumerate(missing)), peak_memory=False)
        for index, session in self._fresh(own, list(own.models), lambda index, share: None):
            model = session if isinstance(session, Failure) else self._first_run(session)
            name = missing[index].model_id
            if isinstance(model, Failure):
                self.no_references = model.message
                if model.kind is not FailureKind.OUT_OF_MEMORY:
                    self._references[name] = model.message
            elif model.first_run_ns > _SLOW_REFERENCE_NS:
                self._references[name] = (
                    f"one inference of them took {model.first_run_ns / 1e9:.1f} s"
                )
            else:
                self._references[name] = model
        known = self._references.items()
        found = {name: model for name, model in known if not isinstance(model, str)}
        reasons = [model for _, model in known if isinstance(model, str)]
        self.no_references = "" if found else next(iter(reasons), self.no_references)
        return found

    def profile(self, job: Job, index: int, between: Callable[[float], None]) -> Profile | None:
        """Where the time of a model goes; None if that cannot be told."""
        model, backend = job.models[index], self._backends[job.spec.provider]
        try:
            return backend.profile(model, job.spec, job.profile_runs, between)
        except Exception:
            return None

    def _measured(self, job: Job, index: int) -> Loaded | Failure:
        """Loaded and run once, with nothing beside it, so that its memory is known."""
        weights = self._weights(job, index)
        if isinstance(weights, Failure):
            return weights
        self._memory.begin()
        session = self._made(job, index)
        model = session if isinstance(session, Failure) else self._first_run(session)
        if isinstance(model, Failure):
            return model
        return model._replace(peak_rss_bytes=self._memory.peak_bytes(), weight_bytes=weights)

    def _session(self, job: Job, index: int) -> Loaded | Failure:
        weights = self._weights(job, index)
        if isinstance(weights, Failure):
            return weights
        made = self._made(job, index)
        return made if isinstance(made, Failure) else made._replace(weight_bytes=weights)

    def _weights(self, job: Job, index: int) -> int | Failure:
        """Return the bytes of its weights, or why the runtime is not to see the model."""
        # Counted before the model is loaded: the file is read for it.
        refusal = self._refusal(job, index)
        if refusal is not None:
            return refusal
        return _attempted(lambda: weight_bytes(job.models[index].path))

    def _refusal(self, job: Job, index: int) -> Failure | None:
        """Why the runtime is not to see the model."""
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
        if backend is None:  # it worked when the agent announced it
            text = f"the provider {spec.provider} has stopped working: restart the agent"
            return Failure(FailureKind.CRASH, text)
        start = self._clock()
        made = _attempted(lambda: backend.load(model, spec))
        took = self._clock() - start
        self._tick()
        if isinstance(made, Failure):
            return made
        return Loaded(made, took)

    def _first_run(self, model: Loaded) -> Loaded | Failure:
        from esm_agent.measure.backends import first_run

        start = self._clock()
        failure = _attempted(lambda: first_run(model.model))
        took = max(self._clock() - start, 1)
        self._tick()
        return model._replace(first_run_ns=took) if failure is None else failure


def _key(model: UploadedModel, spec: MeasureSpec) -> tuple[object, ...]:
    """What two models must have in common for one session to serve both."""
    beside = [(place, _content(model.path.parent / place)) for place in sorted(model.external)]
    return (
        _content(model.path),
        tuple(beside),
        model.inputs and _content(model.inputs),
        (model.case.shapes, model.case.threads or spec.threads),
        (spec.seed, spec.execution, spec.allow_fallback),
    )


def _content(path: Path) -> object:
    """Tells files of other content apart. What is large comes from the cache, so that the same
    content is the same file, and is not read for it."""
    if not path.is_file():
        return None  # the runtime will say so
    about = path.stat()
    if about.st_size > _LARGE_BYTES:
        return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _attempted(call: Callable[[], T]) -> T | Failure:
    """What the call gives, or the outcome of a model that does not work."""
    from esm_agent.measure.outcomes import outcome

    try:
        return call()
    except Exception as error:
        return outcome(error)
