"""Measurement of the energy of a block's models, after everything else of the block."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from esm_agent.energy.estimate import EnergyEstimate, estimate
from esm_agent.energy.find import Sources, measure_tick, no_new_value
from esm_agent.energy.source import EnergySource, SensorError, read_joules, sampling
from esm_agent.energy.windows import Plan, plan, take_windows
from esm_agent.measure.sessions import Job, Sessions
from esm_protos.energy import without_sensor
from esm_protos.messages import Energy, Failure
from esm_protos.metrics import ENERGY
from esm_protos.plugins import described, own_file
from esm_protos.text import counted

_PRECISION = 0.05
"""Precision of the energy if the spec has none."""
_SLOT_VARIES = 1.5
"""Longest expected time of a window, relative to the planned one."""

Write = Callable[[int, float], None]
"""Function that shows the current model and the share of the energy that is done."""


class ModelEnergy(NamedTuple):
    """Energy of a model, with its figures by the keys of metrics."""

    energy: Energy
    values: Mapping[str, float] = {}


def measure_energy(
    sessions: Sessions,
    job: Job,
    models: Sequence[int],
    sources: Sources,
    on_gpu: bool,
    write: Write,
    tick: Callable[[], None],
    ended: Callable[[], bool],
    limit_s: float,
) -> dict[int, ModelEnergy]:
    """Measure the energy of models, or say why that fails.

    Args:
        sessions: Sessions of the models.
        job: Job of the block.
        models: Indices of the models that were timed.
        sources: Energy sources of the device.
        on_gpu: Whether the models run on a GPU.
        write: Function called before every window.
        tick: Function called after every inference.
        ended: Function that returns whether the client wants an early end.
        limit_s: Time left for the block, seconds.

    Returns:
        Energy of each model, by index.
    """
    source = sources.choose(on_gpu)
    if source is None:
        problem = f"no sensor: {without_sensor(sources.sensors)}"
        return dict.fromkeys(models, ModelEnergy(Energy("", "", problem=problem)))
    if problem := _without_tick(source, tick):
        return dict.fromkeys(models, _failed(source, problem))
    chosen = plan(job.energy_s, source.tick_s)
    if not chosen.resolves:
        problem = (
            f"windows of {chosen.window_s:.3g} s are too short for a value every "
            f"{source.tick_s:.3g} s"
        )
        energy = Energy(source.name, source.covers, problem=problem, needs_s=chosen.needs_s)
        return dict.fromkeys(models, ModelEnergy(energy))
    found: dict[int, ModelEnergy] = {}
    runs = {}
    for index in models:
        write(index, 0.0)
        model = sessions.load_one(job._replace(peak_memory=False), index)
        if isinstance(model, Failure):
            found[index] = _failed(source, f"it cannot be loaded again: {model.message}")
        else:
            runs[index] = model.run
    if not runs:
        return found
    clock = time.perf_counter
    last_s = clock() + limit_s - _SLOT_VARIES * (chosen.window_s + chosen.lead_s + source.tick_s)
    try:
        with sampling(source) as check:

            def between(index: int, share: float) -> bool:
                check()
                write(index, share)
                return ended() or clock() > last_s

            seed = job.spec.seed
            windows = take_windows(
                runs, partial(read_joules, source), chosen, seed, clock, time.sleep, between, tick
            )
    except Exception as error:  # anything that a sensor or a model may do
        return found | dict.fromkeys(runs, _failed(source, _described(error, source)))
    if windows and not any(window.joules for window in windows):
        seconds = windows[-1].start_s + windows[-1].seconds - windows[0].start_s
        return found | dict.fromkeys(runs, _failed(source, no_new_value(seconds)))
    for index in runs:
        one = estimate(windows, index)
        if one is None:
            problem = f"it ended early, after {counted(len(windows), 'window')}"
            found[index] = _failed(source, problem)
        else:
            found[index] = _told(one, source, chosen, job)
    return found


def _without_tick(source: EnergySource, tick: Callable[[], None]) -> str:
    """Measure the tick of a source that does not know it; return why that fails, if it does."""

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        tick()  # a slow counter takes longer than an inference may

    try:
        if not source.tick_s:
            joules = partial(read_joules, source)
            source.tick_s = measure_tick(joules, sleep=sleep)
    except Exception as error:  # anything that a sensor may do
        return _described(error, source)
    return ""


def _described(error: Exception, source: EnergySource) -> str:
    return str(error) if isinstance(error, SensorError) else described(error, own_file(source))


def _failed(source: EnergySource, problem: str) -> ModelEnergy:
    return ModelEnergy(Energy(source.name, source.covers, problem=problem))


def _told(one: EnergyEstimate, source: EnergySource, chosen: Plan, job: Job) -> ModelEnergy:
    precision = job.spec.precision or _PRECISION
    problem, needs_s = one.problem(precision, source.resolution_j, job.energy_s)
    gross_mj, idle_mj = (tuple((1e3 * each).tolist()) for each in (one.gross_j, one.idle_j))
    net, gross, interval, per_joule, power = (metric.key for metric in ENERGY)
    values = {
        net: 1e3 * one.net_j,
        gross: 1e3 * float(one.gross_j.mean()),
        power: one.watts,
    }
    if one.net_j > 0:
        values |= {interval: 100 * one.share(), per_joule: 1 / one.net_j}
    needs_s = max(needs_s, chosen.needs_s) if needs_s else 0.0
    energy = Energy(source.name, source.covers, gross_mj, idle_mj, problem, needs_s)
    return ModelEnergy(energy, values)
