"""Parallel computation in processes of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import importlib.util
import io
import logging
import pickle
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import cloudpickle
import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from esm_host.arguments import argument
from esm_host.errors import ClusterError, EsmError, UsageError
from esm_protos.plugins import OWN_MODULES
from esm_protos.text import install

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")
Array = NDArray[Any]

_PROTOCOLS = {"dask": "tcp", "dask+tls": "tls"}
_PORT = 8786  # default port of Dask's schedulers
_PATIENCE_S = 10.0  # for a connection
_CHECK_S = 60.0  # for workers, which load libraries first
_LOOK_S = 15.0
_SMALL_BYTES = 1024

_LIBRARIES = (
    *("cloudpickle", "dask", "distributed", "msgpack"),
    *("numpy", "scipy", "pandas", "scikit-learn", "torch"),
    *("gpytorch", "lightgbm", "ngboost", "xgboost", "xgboost-cpu"),
)
"""Libraries whose versions must agree on all machines, for communication and equal results."""

_cluster: ContextVar[Client | None] = ContextVar("cluster", default=None)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


@contextmanager
def parallel(spec: str | int | None = None, warn: Callable[[str], None] = _warn) -> Iterator[None]:
    """Set where :func:`map_unordered` and every ``joblib.Parallel`` compute, inside the context.

    Args:
        spec: Number of processes on this machine; None for one per processor. Or the scheduler of
            a Dask cluster, ``"dask://HOST:PORT"``, or ``"dask+tls://HOST:PORT"`` with the
            certificates of Dask's configuration. The default port is 8786.
        warn: Callback for a cluster that lost all workers; tasks wait for new ones.

    Raises:
        UsageError: the spec is invalid, or the library for clusters is not installed.
        ClusterError: the scheduler does not answer, has no workers, or they are unsuitable: other
            versions, or several tasks at a time in one process.
    """
    scheduler = _scheduler(spec)
    if scheduler is None:
        token = _cluster.set(None)
        try:
            with joblib.parallel_config("loky", n_jobs=-1 if spec is None else int(spec)):
                yield
        finally:
            _cluster.reset(token)
        return
    with _connected(scheduler) as client:
        try:
            _within(_CHECK_S, partial(_check, client))
        except TimeoutError as error:
            raise ClusterError(
                f"{_name(client)} or one of its workers does not answer: restart them"
            ) from error
        token = _cluster.set(client)
        try:
            with _watched(client, warn), joblib.parallel_config("dask", client=client):
                yield
        finally:
            _cluster.reset(token)


def map_unordered(function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R, None, None]:
    """Yield the result of a function for each task, in the order of completion.

    On a cluster, arrays are sent to a worker once, not with every task. Tasks of a worker that
    dies are computed again by another one. Each task has one thread.

    Args:
        function: Function of a module, so that other processes can import it.
        tasks: Tasks with all data they need, because workers have none of this machine's files.

    Raises:
        EsmError: a process of this machine was killed.
        ClusterError: the scheduler is unreachable, or a task killed several workers.
    """
    client = _cluster.get()
    _own_by_value()
    if client is not None:
        yield from _map_on(client, function, tasks)
        return
    run = joblib.Parallel(return_as="generator_unordered")
    try:
        with closing(run(joblib.delayed(function)(task) for task in tasks)) as found:
            yield from found
    except TerminatedWorkerError as error:
        raise EsmError(
            "a process was killed, probably for lack of memory: run it again with a smaller "
            f"number in {argument('parallel')}"
        ) from error


class ByValue:
    """Value that is pickled with the code of the user's files that it needs.

    Unpickling returns the value itself.
    """

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        _own_by_value()
        return pickle.loads, (cloudpickle.dumps(self.value),)


def _own_by_value() -> None:
    """Pickle classes of the user's files with their code, which other processes lack."""
    for name, module in list(sys.modules.items()):
        if name.startswith(OWN_MODULES):
            cloudpickle.register_pickle_by_value(module)


# Tasks on a cluster


def _map_on(client: Client, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    # Through Dask, not joblib: joblib does not use a cluster of one worker, nor workers that join
    # later.
    from distributed import KilledWorker, as_completed
    from distributed.comm.core import CommClosedError

    arrays: dict[str, Array] = {}
    packed = _packed(((function, task) for task in tasks), arrays)
    # Computed rather than scattered: scattered data are lost with their workers, computed data are
    # computed again.
    there = client.submit(pickle.loads, pickle.dumps(arrays), pure=False)
    futures = client.map(_compute, packed, arrays=there, facts=_facts(), pure=False)
    finished = as_completed(futures, loop=client.loop)
    del futures  # results leave the workers as they are yielded
    try:
        for future in finished:
            yield future.result()
    except (
        asyncio.CancelledError,
        concurrent.futures.CancelledError,
        CommClosedError,  # the connection closed while a result was fetched
    ) as error:
        raise ClusterError(
            f"{_name(client)} is unreachable: start scheduler and workers, and run it again"
        ) from error
    except KilledWorker as error:
        raise ClusterError(
            "several workers died of the same task, probably for lack of memory: start fewer "
            "on a machine, or give them more with --memory-limit"
        ) from error
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.cancel(list(finished.futures))


def _compute(task: bytes, arrays: Mapping[str, Array], facts: Mapping[str, str]) -> Any:
    """Run a task on a worker."""
    from distributed import get_worker

    if different := _different(_facts(), facts):  # a worker that joined later
        raise _unfit(get_worker().address, different)
    with threadpool_limits(1):
        function, argument = _Unpickler(io.BytesIO(task), arrays).load()
        return function(argument)


def _packed(tasks: Iterable[object], arrays: dict[str, Array]) -> list[bytes]:
    """Return pickled tasks without their arrays, which are added to ``arrays``."""
    known: dict[int, tuple[Array, str]] = {}
    packed = []
    for task in tasks:
        file = io.BytesIO()
        _Pickler(file, arrays, known).dump(task)
        packed.append(file.getvalue())
    return packed


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickler that moves arrays out of the pickle, each once, by a digest of its content."""

    def __init__(
        self, file: io.BytesIO, arrays: dict[str, Array], known: dict[int, tuple[Array, str]]
    ) -> None:
        super().__init__(file)
        self._arrays = arrays
        self._known = known  # keeps the arrays alive, so that their ids stay unique

    def persistent_id(self, value: object) -> str | None:
        if type(value) is not np.ndarray or value.nbytes < _SMALL_BYTES or value.dtype.hasobject:
            return None
        if id(value) not in self._known:
            form = (value.shape, value.dtype.str, value.dtype.descr, value.flags.f_contiguous)
            digest = hashlib.sha256(repr(form).encode())
            digest.update(value.tobytes())
            self._known[id(value)] = value, digest.hexdigest()
        key = self._known[id(value)][1]
        self._arrays.setdefault(key, value)
        return key


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arrays: Mapping[str, Array]) -> None:
        super().__init__(file)
        self._arrays = arrays

    def persistent_load(self, key: str) -> Array:
        # A copy, aligned as the original, that the task may write to.
        return self._arrays[key].copy(order="K")


# Connection and checks


def _scheduler(spec: str | int | None) -> str | None:
    """Return Dask's address of the scheduler; None for this machine."""
    text = "" if spec is None else str(spec)
    if spec is None or (text.isdecimal() and int(text) > 0):
        return None
    with suppress(ValueError):  # an invalid port or bracket
        url = urlsplit(text)
        rest = url.path.strip("/") or url.query or url.fragment or url.username is not None
        if url.scheme in _PROTOCOLS and url.hostname and not rest:
            host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            return f"{_PROTOCOLS[url.scheme]}://{host}:{url.port or _PORT}"
    raise UsageError(
        f"{argument('parallel')} '{text}': give a number of processes on this machine, or "
        "the scheduler of a cluster, dask://HOST:PORT"
    )


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    try:
        import dask
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"a cluster needs {error.name}: {install('cluster')}") from error
    # Dask logs many lines per problem; the program prints one.
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    settings = {"distributed.admin.large-graph-warning-threshold": "1 TB"}
    try:
        with dask.config.set(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="distributed")
            client = _client(scheduler)
            try:
                yield client
            finally:
                with suppress(Exception):  # of a scheduler that is gone
                    client.close(timeout=1)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _client(scheduler: str) -> Client:
    from distributed import Client

    url = urlsplit(scheduler)
    try:
        socket.create_connection((url.hostname, url.port), _PATIENCE_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} ({error.strerror or error}): start one "
            f"there (dask scheduler), or correct {argument('parallel')}"
        ) from error
    connect = partial(Client, scheduler, timeout=_PATIENCE_S, set_as_default=False)
    try:
        return _within(_PATIENCE_S, connect)
    except Exception as error:  # Dask raises many types
        raise ClusterError(
            f"{scheduler} does not work as a Dask scheduler "
            f"({_line(error) or 'it does not answer'}): correct {argument('parallel')}, "
            "or the certificates"
        ) from error


def _within(wait_s: float, function: Callable[[], R]) -> R:
    """Return the function's result, or raise TimeoutError after the wait.

    Dask has no time limit for a server that accepts a connection and then stays silent, such as
    its own dashboard.
    """
    found: concurrent.futures.Future[R] = concurrent.futures.Future()

    def call() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return found.result(wait_s)


def _check(client: Client) -> None:
    """Check that the workers are suitable.

    Raises:
        ClusterError: there are no workers, or they are unsuitable.
    """
    threads = client.nthreads()
    if not threads:
        raise ClusterError(
            f"{_name(client)} has no workers: start one or more (dask worker {_address(client)} "
            "--nthreads 1)"
        )
    for worker, number in threads.items():
        if number != 1:  # the tasks would share one random generator
            raise ClusterError(
                f"the worker {worker} computes {number} tasks at a time in one process: start it "
                "with --nthreads 1, and with --nworkers -1 for one per processor"
            )
    here = _facts()
    try:
        scheduler: Any = client.run_on_scheduler(_facts)
    except Exception as error:
        scheduler = error
    workers = client.run(_facts, on_error="return")
    for where, found in {_name(client): scheduler, **workers}.items():
        if isinstance(found, BaseException):  # probably esm-profiler is not installed there
            raise _unfit(where, _line(found))
        if different := _different(found, here):
            raise _unfit(where, different)


@contextmanager
def _watched(client: Client, warn: Callable[[str], None]) -> Iterator[None]:
    """Warn when tasks wait because all workers are gone."""
    over = threading.Event()

    def watch() -> None:
        there = True
        while not over.wait(_LOOK_S):
            with suppress(Exception):  # the tasks report an unreachable scheduler
                before, there = there, bool(client.nthreads())
                if before and not there:
                    warn(f"{_name(client)} has lost all workers: tasks wait for new ones")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@cache
def _facts() -> dict[str, str]:
    """Return the versions of this process that results depend on."""
    facts = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    facts |= {"esm-profiler": _version("esm-profiler"), "esm-profiler's code": _code()}
    for name in _LIBRARIES:
        if found := _version(name):
            facts[name.removesuffix("-cpu")] = found
    return facts


def _version(name: str) -> str:
    """Return a version without its build tag; empty if the library is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _code() -> str:
    """Return a digest of the project's own modules."""
    digest = hashlib.sha256()
    for package in ("esm_host", "esm_models", "esm_protos"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for folder in map(Path, spec.submodule_search_locations or ()):
            for file in sorted(folder.rglob("*.py")):
                digest.update(f"{file.relative_to(folder)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _different(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return the versions that differ from those here; empty if none does."""
    return ", ".join(
        f"{name} {there.get(name) or 'missing'} (here {mine or 'missing'})"
        for name, mine in here.items()
        if there.get(name, "") != mine
    )


def _unfit(where: str, different: str) -> ClusterError:
    return ClusterError(
        f"{where} is unsuitable: {different}: install the same esm-profiler and libraries there, "
        "and start it again"
    )


def _address(client: Client) -> str:
    assert client.scheduler is not None
    return str(client.scheduler.address)


def _name(client: Client) -> str:
    return f"the scheduler {_address(client)}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
