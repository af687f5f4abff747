"""A Dask cluster of real processes on this machine, and tasks for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import esm_host
from esm_host.errors import ClusterError
from esm_host.parallel import _within, parallel
from esm_host.research.study.run import StudyWatcher
from esm_host.research.study.task import TaskResult


class Cluster:
    """A scheduler and workers, which end with it.

    Attributes:
        spec: for ``--parallel``.
        address: as Dask has it.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        options: Sequence[str] = (),
        protocol: str = "tcp",
        **settings: str,
    ) -> None:
        """
        Args:
            options: of all processes.
            settings: of Dask, variables of the environment.
        """
        self._folder, self._options, self._settings = folder, options, settings
        self.workers: list[subprocess.Popen[bytes]] = []
        own = ("--port", "0", "--protocol", protocol, "--idle-timeout", "10 minutes")
        self.scheduler = self._start("dask_scheduler", *own)
        self.address = self._said(rf"Scheduler at: +({protocol}://\S+)")
        self.spec = self.address.replace("tcp", "dask").replace("tls", "dask+tls")
        for _ in range(workers):
            self.add_worker()
        self.wait(workers)

    def add_worker(self, threads: int = 1, path: Path | None = None) -> subprocess.Popen[bytes]:
        """
        Args:
            path: where modules are looked for first.
        """
        own = ("--nthreads", str(threads), "--no-nanny", "--death-timeout", "60")
        worker = self._start("dask_worker", self.address, *own, path=path)
        self.workers.append(worker)
        return worker

    @contextmanager
    def with_worker(self, threads: int = 1, path: Path | None = None) -> Iterator[None]:
        """One more."""
        alive = sum(worker.poll() is None for worker in self.workers)
        worker = self.add_worker(threads, path)
        try:
            self.wait(alive + 1)
            yield
        finally:
            worker.kill()
            worker.wait()
            self.wait(alive)

    def wait(self, workers: int) -> None:
        """Until there are so many."""
        from distributed import Client

        ends = time.monotonic() + 60
        connect = partial(Client, self.address, timeout=30, set_as_default=False)
        with _within(30, connect) as client:
            while len(client.nthreads()) != workers:
                if time.monotonic() > ends:
                    raise TimeoutError(self._logs())
                time.sleep(0.05)

    def _said(self, pattern: str) -> str:
        ends = time.monotonic() + 60
        while not (found := re.search(pattern, self._logs())):
            if time.monotonic() > ends or self.scheduler.poll() is not None:
                raise TimeoutError(self._logs())
            time.sleep(0.05)
        return found[1]

    def _logs(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(
        self, program: str, *arguments: str, path: Path | None = None
    ) -> subprocess.Popen[bytes]:
        name = f"{program}-{len(self.workers)}"
        folder = self._folder / name
        folder.mkdir()
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, *self._options]
        paths = [*([str(path)] if path else []), *map(os.path.abspath, filter(None, sys.path))]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"DASK_TEMPORARY_DIRECTORY": str(folder)}
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"],
                cwd=folder,
                env={**os.environ, **environment, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@dataclass(frozen=True)
class Task:
    """Takes its time, and says who it was.

    Attributes:
        fatal: whether it is the end of the process that it is done by.
    """

    number: int
    array: np.ndarray
    takes_s: float = 0
    fatal: bool = False


def done(task: Task) -> tuple[int, float, int]:
    """The number, the array's sum plus the number, and the process."""
    task.array[0] += 0  # a task may write to what it holds
    time.sleep(task.takes_s)
    if task.fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number, float(task.array.sum()) + task.number, os.getpid()


def refused(spec: str, match: str) -> None:
    """That the cluster is, in one line."""
    with pytest.raises(ClusterError, match=match) as caught, parallel(spec):
        pass
    assert "\n" not in str(caught.value)


def with_other_code(folder: Path) -> Path:
    """A place from which a worker takes modules that are not quite ours."""
    place = folder / "other"
    shutil.copytree(Path(esm_host.__file__).parent, place / "esm_host")
    with (place / "esm_host" / "bins.py").open("a") as file:
        file.write("# changed\n")
    return place


class After(StudyWatcher):
    """Does something once when so many tasks are done."""

    def __init__(self, tasks: int, act: object) -> None:
        self._left, self._act = tasks, act

    def on_planned(self, tasks: int, there: int) -> None:
        self.there = there

    def on_task(self, outcome: TaskResult) -> None:
        self._left -= 1
        if not self._left:
            assert callable(self._act)
            self._act()
