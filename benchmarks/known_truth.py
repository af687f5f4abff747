"""Coverage and bias of printed intervals on simulated devices whose true latencies are known.

A device has an arithmetic pace and a memory pace, each a sum of processes from milliseconds to
days. Sessions of a model differ, visits are noisy and have outliers. An agent has taken moments of
history; then it measures a block, with reference models for a tenth of the time. The truth is what
is usual: the mean of the middle half of a model's latencies over all moments.

``python -m benchmarks.known_truth [--draws N] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm_agent.measure.timing import FIRST_CHECK
from esm_protos.estimates import Runs, estimate_block
from esm_protos.messages import UsualLatencies
from esm_protos.paces import WEIGHTLESS, usual_latencies
from esm_protos.statistics import trimmed_mean

Floats = NDArray[np.float64]

TRIM = 0.2
RUNS_PER_VISIT = 4
REFERENCE_RUNS = 8
SIZES_MB = (0.0, 2.0, 8.0, 20.0, 60.0)
"""Weights of the block's models."""
HISTORIES = (0, 3, 30, 300)
"""Moments in the agent's history."""
_SCALES_S = (0.01, 3.0, 300.0, 7200.0, 86_400.0)
"""Time constants of the processes whose sum is a pace."""
_SLOW = 2
"""Index of the first process that is slower than a block."""


@dataclass(frozen=True)
class Setting:
    """Kind of device. Standard deviations are of logarithms.

    Attributes:
        arithmetic: of each process of the arithmetic pace.
        memory: of each process of the memory pace.
        visit: of a visit's noise.
        outliers: share of visits that something else holds up, by 20 to 100 %.
        throttled: share of moments in which the clock is 10 to 40 % slower.
        session: between sessions of any model.
        session_memory: between sessions of a model that waits for memory all the time.
        own: what varies between moments for one model alone.
        own_memory: likewise, as a share of what its memory varies by.
    """

    name: str
    arithmetic: tuple[float, ...]
    memory: tuple[float, ...]
    visit: float
    outliers: float
    throttled: float = 0.0
    session: float = 0.004
    session_memory: float = 0.03
    own: float = 0.003
    own_memory: float = 0.1


SETTINGS = (
    Setting(
        "quiet", (0.003, 0.002, 0.002, 0.003, 0.003), (0.004, 0.005, 0.01, 0.01, 0.01), 0.005, 0.01
    ),
    Setting("noisy", (0.01, 0.01, 0.008, 0.01, 0.01), (0.02, 0.02, 0.03, 0.04, 0.03), 0.02, 0.05),
    Setting(
        "throttling",
        (0.005, 0.005, 0.005, 0.01, 0.01),
        (0.01, 0.01, 0.02, 0.02, 0.02),
        0.01,
        0.03,
        throttled=0.2,
    ),
)


@dataclass(frozen=True)
class Simulated:
    """Model: its latency at paces of 1, and the share that depends on the memory pace."""

    name: str
    weight_bytes: int
    latency_ns: float
    feels: float


class Device:
    """Simulated device.

    Args:
        rng: of the device and of all that happens on it.
    """

    def __init__(self, setting: Setting, rng: np.random.Generator) -> None:
        self.setting = setting
        self.rng = rng
        self._cache_mb = math.exp(rng.uniform(math.log(4), math.log(30)))
        self._mb_per_ms = rng.uniform(5, 20)
        per_ms = rng.uniform(0.5, 2)
        self.references = [
            self._model(name, mb, ms / per_ms)
            for name, mb, ms in (
                ("arithmetic", 0.4, 1.0),
                ("middle", 7.0, 0.6),
                ("large", 17.0, 0.1),
                ("beyond", 67.0, 0.4),
            )
        ]
        self.models = [
            self._model(f"{mb:g} MB", mb, math.exp(rng.uniform(math.log(0.5), math.log(8))))
            for mb in SIZES_MB
        ]

    def _model(self, name: str, mb: float, computing_ms: float) -> Simulated:
        """Return a model; models of the same size differ in their sensitivity to memory."""
        streaming_ms = mb / self._mb_per_ms * mb / (mb + self._cache_mb)
        ms = computing_ms + streaming_ms
        feels = streaming_ms / ms * math.exp(self.rng.normal(0, 0.15))
        return Simulated(name, round(mb * 1e6), 1e6 * ms, min(feels, 1.0))

    def slow(self, count: int) -> Floats:
        """Return both paces at independent moments, as logarithms, ``(count, 2)``."""
        found = np.empty((count, 2))
        for column, sds in enumerate((self.setting.arithmetic, self.setting.memory)):
            found[:, column] = self.rng.normal(0, np.hypot.reduce(sds[_SLOW:]), count)
        throttled = self.rng.random(count) < self.setting.throttled
        found[:, 0] += throttled * np.log(self.rng.uniform(1.1, 1.4, count))
        return found

    def truth_ns(self, model: Simulated) -> float:
        """Return a model's usual latency: the mean of the middle half over all moments."""
        slow = self.slow(20_000)
        return model.latency_ns * math.exp(trimmed_mean(self._feel(model, slow), 0.25))

    def usual(self, moments: int) -> UsualLatencies | None:
        """Return the history of an agent after a number of moments."""
        slow = self.slow(moments)
        taken = np.empty((moments, len(self.references)))
        for column, model in enumerate(self.references):
            off = self._feel(model, slow) + self._alone(model, moments)
            # One session outlasts many moments, but no months.
            sessions = self._sessions(model, moments // 20 + 1)
            off += sessions[np.arange(moments) * len(sessions) // max(moments, 1)]
            off += self.rng.normal(0, 0.003, moments)
            if model.weight_bytes < WEIGHTLESS:  # its quickest runs are what tells
                runs = self.rng.normal(0, self.setting.visit / 2, (moments, 5, REFERENCE_RUNS))
                off += runs.min(axis=2).mean(axis=1)
            taken[:, column] = model.latency_ns * np.exp(off)
        names = [model.name for model in self.references]
        return usual_latencies(names, np.arange(moments) * 3600.0, taken)

    def block(self, seconds: float, sessions: int) -> tuple[list[Runs], list[Runs]]:
        """Measure all models for a time, and reference models for a tenth of it.

        Returns:
            Runs of the models and of the references.
        """
        visits = self._visits(seconds)
        starts = np.array([start for start, _ in visits]) / 1e9
        order = np.array([number for _, number in visits])
        pace = self.slow(1) + self._passing(starts)
        everything = [*self.models, *self.references]
        found = []
        for number, model in enumerate(everything):
            mine = np.flatnonzero(order == number)
            is_reference = number >= len(self.models)
            own_sessions = 1 if is_reference else sessions
            session = np.arange(len(mine)) * own_sessions // max(len(mine), 1)
            off = self._feel(model, pace[mine]) + self._alone(model, 1)
            off = off + self._sessions(model, own_sessions)[session]
            off += self.rng.normal(0, self.setting.visit, len(mine))
            held = self.rng.random(len(mine)) < self.setting.outliers
            off += held * np.log(self.rng.uniform(1.2, 2.0, len(mine)))
            per_visit = REFERENCE_RUNS if is_reference else RUNS_PER_VISIT
            each = off[:, None] + self.rng.normal(0, self.setting.visit / 2, (len(mine), per_visit))
            latency = np.maximum(np.round(model.latency_ns * np.exp(each)), 1).astype(np.int64)
            start = np.round(1e9 * starts[mine]).astype(np.int64)
            start = start[:, None] + np.arange(per_visit) * round(model.latency_ns)
            counts = tuple(int((session == s).sum()) * per_visit for s in range(own_sessions))
            found.append(
                Runs(
                    latency.ravel(),
                    start.ravel(),
                    per_visit,
                    model.weight_bytes,
                    counts if own_sessions > 1 else (),
                    model.name,
                )
            )
        return found[: len(self.models)], found[len(self.models) :]

    def _visits(self, seconds: float) -> list[tuple[float, int]]:
        """Return the start of each visit, ns, and its model."""
        now, spent, next_reference = 0.0, 0.0, 0
        found = []
        rounds = 0
        while now < 1e9 * seconds or rounds < FIRST_CHECK:
            rounds += 1
            for number in self.rng.permutation(len(self.models)).tolist():
                while spent < 0.1 * now:
                    found.append((now, len(self.models) + next_reference))
                    took = 1.5 * REFERENCE_RUNS * self.references[next_reference].latency_ns
                    next_reference = (next_reference + 1) % len(self.references)
                    now, spent = now + took, spent + took
                found.append((now, number))
                now += 3.5 * RUNS_PER_VISIT * self.models[number].latency_ns
        for number in range(len(self.references)):  # what an interval takes at least
            done = sum(each == len(self.models) + number for _, each in found)
            for _ in range(5 - done):
                found.append((now, len(self.models) + number))
                now += 1.5 * REFERENCE_RUNS * self.references[number].latency_ns
        return found

    def _passing(self, at_s: Floats) -> Floats:
        """Return the variation within a block at these times, shape ``(n, 2)``."""
        found = np.zeros((len(at_s), 2))
        gaps = np.diff(at_s)
        for column, sds in enumerate((self.setting.arithmetic, self.setting.memory)):
            for sd, scale in zip(sds[:_SLOW], _SCALES_S, strict=False):
                kept = np.exp(-gaps / scale)
                drawn = self.rng.normal(0, sd, len(at_s))
                values = [drawn[0]]
                for share, fresh in zip(kept, drawn[1:], strict=True):
                    values.append(share * values[-1] + math.sqrt(1 - share**2) * fresh)
                found[:, column] += values
        return found

    def _feel(self, model: Simulated, paces: Floats) -> Floats:
        return paces[:, 0] * (1 - model.feels) + model.feels * (paces[:, 0] + paces[:, 1])

    def _alone(self, model: Simulated, count: int) -> Floats:
        slow = float(np.hypot.reduce(self.setting.memory[_SLOW:]))
        sd = math.hypot(self.setting.own, self.setting.own_memory * model.feels * slow)
        return self.rng.normal(0, sd, count)

    def _sessions(self, model: Simulated, count: int) -> Floats:
        sd = math.hypot(self.setting.session, self.setting.session_memory * model.feels**2)
        return self.rng.normal(0, sd, count)


@dataclass(frozen=True)
class Row:
    """Result for one setting, history and size; shares, not percent.

    Attributes:
        coverage: of the intervals, how many hold the truth.
        bias: mean of the logarithm of latency over truth.
        bias_error: its standard error.
        half_width: root mean square of the intervals' half-widths.
        needed: 1.96 standard deviations of the errors: half-widths should be as much.
        shift: standard deviation of what is corrected.
    """

    setting: str
    moments: str
    size: str
    draws: int
    coverage: float
    bias: float
    bias_error: float
    half_width: float
    needed: float
    shift: float


def simulate(
    setting: Setting, moments: int, draws: int, seed: int = 0, seconds: float = 1.5
) -> dict[str, Floats]:
    """Return for each size of a model log error, half-width and shift, ``(draws, 3)``."""
    found: dict[str, list[tuple[float, float, float]]] = {f"{mb:g} MB": [] for mb in SIZES_MB}
    for draw in range(draws):
        device = Device(
            setting, np.random.default_rng((seed, SETTINGS.index(setting), moments, draw))
        )
        models, references = device.block(seconds, sessions=2)
        block = estimate_block(models, TRIM, True, references, device.usual(moments))
        for model, estimate in zip(device.models, block.models, strict=True):
            error = math.log(estimate.latency_ns / device.truth_ns(model))
            value = estimate.shift.value if estimate.shift else 0.0
            found[model.name].append((error, estimate.interval, value))
    return {name: np.array(values) for name, values in found.items()}


def rows(draws: int, settings: Iterable[Setting] = SETTINGS, seed: int = 0) -> list[Row]:
    """Return coverage, bias and half-widths per setting, history and size."""
    found = []
    for setting in settings:
        by_moments = {count: simulate(setting, count, draws, seed) for count in HISTORIES}
        for count, by_size in by_moments.items():
            for size, values in by_size.items():
                found.append(_row(setting.name, str(count), size, values))
        everything = [each for by_size in by_moments.values() for each in by_size.values()]
        found.append(_row(setting.name, "any", "any", np.concatenate(everything)))
        known = [
            each for count, sizes in by_moments.items() if count >= 30 for each in sizes.values()
        ]
        found.append(_row(setting.name, "30, 300", "any", np.concatenate(known)))
    return found


def _row(setting: str, moments: str, size: str, values: Floats) -> Row:
    errors, intervals, shifts = values.T
    return Row(
        setting,
        moments,
        size,
        len(values),
        float(np.mean(np.abs(errors) <= intervals)),
        float(errors.mean()),
        float(errors.std() / math.sqrt(len(errors))),
        float(np.sqrt(np.mean(intervals**2))),
        1.96 * float(errors.std()),
        float(shifts.std()),
    )


def text(found: Sequence[Row]) -> str:
    """Return a table of percent."""
    lines = ["setting     moments  size    draws  coverage   bias  +-    half-width  needed  shift"]
    lines += [
        f"{r.setting:<11} {r.moments:>7}  {r.size:<6} {r.draws:6}  {r.coverage:7.1%} "
        f"{100 * r.bias:7.2f} {100 * r.bias_error:5.2f}  {r.half_width:9.2%} {r.needed:8.2%} "
        f"{r.shift:6.2%}"
        for r in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300, help="devices of each kind")
    parser.add_argument("--json", type=Path, help="also write JSON to this file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = rows(given.draws, seed=given.seed)
    print(text(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
