"""Verdict on a latency: how far it can be trusted, and why.

A verdict rests on the measurement and on the state that the device reports. A missing value counts
neither for nor against it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_protos.estimates import Parts
from esm_protos.messages import PI_THROTTLED_BITS, SLOW_LOAD_NS, DeviceState
from esm_protos.paces import Shift
from esm_protos.providers import ProviderInfo
from esm_protos.session_settings import SessionSettings
from esm_protos.statistics import MIN_ROUNDS, trimmed_mean
from esm_protos.text import counted


class Verdict(enum.StrEnum):
    """Verdicts from best to worst."""

    STABLE = "stable"
    """The device was undisturbed, and the interval is as narrow as requested."""
    NOISY = "noisy"
    """The device was disturbed, or reference models deviated."""
    UNRESOLVED = "unresolved"
    """The interval is wider than requested."""
    THROTTLED = "throttled"
    """The device reduced its clock."""


@dataclass(frozen=True)
class Judgement:
    """Verdict on a model with its reasons, the worst first; warnings leave it ``stable``."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    disturbed: bool = field(default=False, compare=False)
    """Whether the device throttled or was disturbed."""


DEFAULT_PRECISION = 0.02
"""Relative half-width that an interval must reach if no precision was requested."""

# Thresholds above which a state is a reason. That of the clock is NVBench's and pyperf's.
_CLOCK_FELL = 0.10
_STOLEN = 0.02
_OTHERS_CORES = 0.5
_SLOWED = 0.25
_QUOTA_STOPS = 0.02  # share of the periods
_UNUSUAL_PERCENT = 5.0
_FEW_MOMENTS = 12  # one hour: with fewer, a longer history helps most
_MORE_THREADS = 0.5  # beyond those asked for
_APART = 0.10  # median and trimmed mean
_ENOUGH_RUNS = 20  # to tell a second speed from single slow runs
_CHOSEN = {"applications_clocks_setting", "display_clock_setting"}
"""Reasons for a GPU's clock that are settings, and keep it steady."""


_OF_INTERVAL = ("too few runs for an interval", "interval too wide")
"""Begins of the reasons that are about the interval."""


def judge_number(
    interval: float,
    precision: float,
    evidence: Sequence[tuple[Verdict, str]],
    parts: Parts | None = None,
    shift: Shift | None = None,
    history_problem: str = "",
    all_runs: bool = False,
    reported: float | None = None,
    slow_load: bool = False,
) -> Judgement:
    """Return the verdict on a model's latency.

    Args:
        interval: Half-width of the 95 % confidence interval, as a share.
        precision: Requested half-width, as a share; 0 for the default.
        evidence: Evidence on the block, from :func:`block_evidence` and quality control.
        parts: Parts of ``interval``. If given, the reason names the widest part and its remedy,
            with marked names of arguments.
        shift: Deviation of the block from the usual pace.
        history_problem: Reason why the device keeps no history of its reference models; empty if it
            keeps one.
        all_runs: Whether the model has the maximum number of runs.
        reported: Interval of the reported latency, which includes that of further corrections;
            None if it is ``interval``.
        slow_load: Whether the model loads so slowly that a block has one session of it.
    """
    wanted = precision or DEFAULT_PRECISION
    found = list(evidence)
    if interval == float("inf"):
        text = f"{_OF_INTERVAL[0]}, which needs {MIN_ROUNDS} visits or more"
        found.append((Verdict.UNRESOLVED, text))
    elif not interval <= wanted:
        held = f"{'requested' if precision else 'default'} ±{100 * wanted:g} %"
        told = interval if reported is None else reported
        text = f"{_OF_INTERVAL[1]}: ±{100 * told:.1f} %, {held}"
        if parts is not None:
            pace, others = max(parts.pace, parts.history), _widest_but_pace(parts)
            lacking = _short_history(parts, history_problem) if pace >= min(others, wanted) else ""
            if lacking and pace >= others:
                # Without figures of the model, so that the text is the same for the whole block.
                text = f"{_OF_INTERVAL[1]}, {held}: {lacking}"
            else:
                text += f"; {_unresolved(parts, shift, not precision, all_runs, slow_load)}"
                text += f"; besides, {lacking}" if lacking else ""
        found.append((Verdict.UNRESOLVED, text))
    worst_first = sorted(found, key=lambda entry: -list(Verdict).index(entry[0]))
    verdict = worst_first[0][0] if worst_first else Verdict.STABLE
    disturbed = any(each in (Verdict.THROTTLED, Verdict.NOISY) for each, _ in found)
    return Judgement(verdict, tuple(reason for _, reason in worst_first), disturbed)


def judge_again(
    stored: Judgement,
    interval: float,
    precision: float,
    evidence: Sequence[tuple[Verdict, str]],
    reported: float,
) -> Judgement:
    """Return a stored verdict with the interval as it is known now.

    Args:
        stored: Verdict of the time when the model was measured.
        interval: Half-width of the 95 % confidence interval, as a share.
        precision: Requested half-width, as a share; 0 for the default.
        evidence: Evidence on the block. Other stored reasons are from quality control.
        reported: Interval of the reported latency, as in :func:`judge_number`.
    """
    verdicts = {reason: verdict for verdict, reason in evidence}
    kept = [
        (verdicts.get(reason, Verdict.NOISY), reason)
        for reason in stored.reasons
        if not reason.startswith(_OF_INTERVAL)
    ]
    return judge_number(interval, precision, kept, reported=reported)


def _widest_but_pace(parts: Parts) -> float:
    return max(parts.passing, parts.sessions, parts.blocks or 0.0)


def _short_history(parts: Parts, history_problem: str) -> str:
    """Return that the device's history is too short; empty if it is not."""
    if parts.moments >= _FEW_MOMENTS:
        return ""
    if history_problem:
        return (
            f"this device's history cannot be kept ({history_problem}): make room for that file, "
            "or set XDG_STATE_HOME for the agent's user"
        )
    cure = f"time again later, or give {argument('spread')} 1h"
    if not parts.moments:
        return f"this device has no history yet; {cure}"
    moments = counted(parts.moments, "moment")
    return f"the history of this device has only {moments}; {cure}"


def _unresolved(
    parts: Parts, shift: Shift | None, exact: bool, all_runs: bool, slow_load: bool
) -> str:
    """Return the widest part of an interval, and its remedy.

    Args:
        parts: Parts of the interval.
        shift: Deviation of the block from the usual pace.
        exact: Whether a number of runs was requested instead of a precision.
        all_runs: Whether the model has the maximum number of runs.
        slow_load: Whether a block has one session of the model.
    """
    pace = max(parts.pace, parts.history)
    widest = max(pace, _widest_but_pace(parts))
    left = f"±{100 * widest:.1f} %"
    if parts.blocks == widest:
        return f"blocks differ, which leaves {left}: give a longer {argument('spread')}"
    if pace == widest:
        cure = f"time again later, or give {argument('spread')} 10m"
        if unusual := shift and describe_shift(shift):
            return f"{unusual}, and corrected to {left}: {cure}"
        return f"the current pace of the device is known to {left}: {cure}"
    if parts.sessions == widest:
        cure = f"give a longer {argument('spread')}, whose blocks open new ones"
        cure = cure if slow_load else f"give more {argument('sessions')}"
        return f"sessions differ, which leaves {left}: {cure}"
    if exact:
        return f"more runs would help: give more {argument('runs')}"
    if all_runs:
        return f"more runs would help: give more {argument('max_runs')}"
    return f"more runs would help: give a longer {argument('max_time_s')}"


def describe_shift(shift: Shift) -> str | None:
    """Return how far a device is from its usual pace for a model; None up to 5 %."""
    percent = 100 * math.expm1(shift.value)
    if abs(percent) <= _UNUSUAL_PERCENT:
        return None
    most = " (mostly its memory)" if shift.memory / shift.value > 0.5 else ""
    text = f"{abs(percent):.0f} % {'slower' if percent > 0 else 'faster'} than usual"
    return f"this device is {text} for this model{most}"


def block_evidence(states: Sequence[DeviceState], slowdown: float) -> list[tuple[Verdict, str]]:
    """Return the evidence against all latencies of a block.

    Args:
        states: States of the device before, during and after the block.
        slowdown: Slowdown of the device from the first third of the block to the last, as a share.
    """
    found = [(Verdict.THROTTLED, reason) for reason in _throttling(states)]
    found += [(Verdict.NOISY, reason) for reason in _disturbances(states)]
    if slowdown > _SLOWED:
        text = f"the device became {100 * slowdown:.0f} % slower during the block"
        found.append((Verdict.NOISY, text))
    return found


def threads_evidence(threads: int, processors: float) -> list[tuple[Verdict, str]]:
    """Return a warning if models have more threads than processors.

    Args:
        threads: Number of threads.
        processors: Number of processors that models can use at a time; a CPU quota makes fractions.
    """
    if threads <= processors:
        return []
    fix = f"give at most {int(processors)}" if processors >= 1 else "raise its CPU quota"
    what = f"{counted(threads, 'thread')} on {counted(processors, 'processor', '.3g')}"
    return [(Verdict.STABLE, f"{what}: {fix}")]


def sessions_evidence(asked: int, load_s: float) -> list[tuple[Verdict, str]]:
    """Return the warning about a model that loads too slowly for the sessions asked for.

    Args:
        asked: Number of sessions that were asked for; 1 if none.
        load_s: Time to load the model and run it once, seconds; 0 unless it is too long.
    """
    if asked == 1 or not load_s:
        return []
    text = (
        f"one session in a block, not {asked}: a model that takes more than "
        f"{SLOW_LOAD_NS / 1e9:g} s to load and run once ({load_s:.1f} s) keeps its session; each "
        f"block of {argument('spread')} opens a new one"
    )
    return [(Verdict.STABLE, text)]


def more_threads(provider: ProviderInfo, used: float, asked: int, session: SessionSettings) -> str:
    """Return a warning if a model used clearly more threads than asked for; empty if not.

    Args:
        provider: Execution provider.
        used: Number of threads that the model used.
        asked: Number of threads that was asked for.
        session: Settings of the session. With nodes in parallel, each has threads of its own.
    """
    if used <= asked + _MORE_THREADS or session.execution_mode != "sequential":
        return ""
    why = "it ignores the number that was asked for"
    if provider.threads_option:
        why = f"its option {provider.threads_option} was set to {asked}"
    elif provider.chooses_threads:
        why = f"it chooses their number; see whether {argument('ep_options')} can set it"
    return f"{provider.name} used {used:.1f} threads, not {asked}: {why}"


def runs_evidence(
    blocks: Iterable[tuple[NDArray[np.int64], float]], trim: float
) -> list[tuple[Verdict, str]]:
    """Return the evidence against a mean that stands for no run, as of runs of two speeds.

    Args:
        blocks: Latencies of a model's runs in each block, shape ``(runs,)`` each, with the
            slowdown of the device during it, which is a reason of its own.
        trim: Share of the fastest and of the slowest runs to drop.
    """
    steady = (runs for runs, slowdown in blocks if slowdown <= _SLOWED)
    many = [runs for runs in steady if len(runs) >= _ENOUGH_RUNS]
    apart = [float(np.median(runs)) / trimmed_mean(runs, trim) - 1 for runs in many]
    worst = max(apart, key=abs, default=0.0)
    if abs(worst) <= _APART:
        return []
    text = (
        f"the runs have more than one speed: their median is {100 * abs(worst):.0f} % "
        f"{'above' if worst > 0 else 'below'} their trimmed mean"
    )
    return [(Verdict.NOISY, text)]


def missing_references_evidence(missing: bool, why: str = "") -> list[tuple[Verdict, str]]:
    """Return a warning if the agent timed none of the requested reference models.

    Args:
        missing: Whether they are missing.
        why: Reason given by the agent; empty if it gives none.
    """
    if not missing:
        return []
    text = (
        f"the agent timed no reference models ({why or 'older versions have none'}), so the "
        "interval holds for this block alone"
    )
    return [(Verdict.STABLE, text)]


def reference_evidence(worst: float, tolerance: float) -> list[tuple[Verdict, str]]:
    """Return the evidence from quality control.

    Args:
        worst: Largest deviation of a reference model, as a share.
        tolerance: Tolerated deviation, as a share.
    """
    if worst <= tolerance:
        return []
    if worst >= 10:
        return [(Verdict.NOISY, "a reference failed")]
    text = f"references off by {100 * worst:.1f} %, tolerated {100 * tolerance:g} %"
    return [(Verdict.NOISY, text)]


def _throttling(states: Sequence[DeviceState]) -> Iterator[str]:
    flags = 0
    for state in states:
        flags |= state.pi_throttled or 0
    for bit, text in PI_THROTTLED_BITS.items():
        if flags >> bit & 1:
            yield f"the board reports {text}"
    if events := _grown(states, "throttle_events"):
        yield f"{events:.0f} thermal throttling events"
    yield from _quota_stops(states)
    # Only states during the block count: before and after, cores idle at low clocks.
    during = [max(state.clock_mhz) for state in states[1:-1] if any(state.clock_mhz)]
    yield from _fallen("clock", during)
    for number in range(max((len(state.gpus) for state in states), default=0)):
        gpus = [s.gpus[number] for s in states[1:-1] if len(s.gpus) > number]
        yield from _fallen("GPU clock", [gpu.clock_mhz for gpu in gpus if gpu.clock_mhz])
        reasons = {reason for gpu in gpus for reason in gpu.throttle_reasons} - _CHOSEN
        if reasons:
            yield f"the GPU reports {', '.join(sorted(reasons))}"


def _quota_stops(states: Sequence[DeviceState]) -> Iterator[str]:
    """Yield a reason if a CPU quota stopped the runs; loading the model does not count."""
    before = [number for number, state in enumerate(states) if state.at_ns <= 0]
    timed = states[before[-1] if before else 0 :]
    periods, stops = _grown(timed, "cpu_periods"), _grown(timed, "cpu_throttled_periods")
    if not periods or not stops or stops < 0:
        return
    if (share := min(stops / periods, 1.0)) > _QUOTA_STOPS:
        stopped_s = _grown(timed, "cpu_throttled_s") or 0.0
        yield (
            f"its control group's CPU quota stopped it in {100 * share:.0f} % of the periods "
            f"({stops:.0f} of {periods:.0f}, {stopped_s:.1f} s): raise the quota"
        )


def _fallen(what: str, clocks_mhz: Sequence[float]) -> Iterator[str]:
    if len(clocks_mhz) > 1 and (fell := 1 - min(clocks_mhz) / max(clocks_mhz)) > _CLOCK_FELL:
        yield (
            f"{what} fell {100 * fell:.0f} % ({max(clocks_mhz):.0f} to {min(clocks_mhz):.0f} MHz)"
        )


def _disturbances(states: Sequence[DeviceState]) -> Iterator[str]:
    if len(states) < 2 or (seconds := (states[-1].at_ns - states[0].at_ns) / 1e9) <= 0:
        return
    if (stolen := (_grown(states, "stolen_s") or 0) / seconds) > _STOLEN:
        yield f"{100 * stolen:.0f} % of a processor stolen by the hypervisor"
    busy, own = _grown(states, "busy_s"), _grown(states, "own_s")
    if busy is not None and own is not None and (others := (busy - own) / seconds) > _OTHERS_CORES:
        yield f"other programs used {others:.1f} processors"
    if pages := _grown(states, "swapped_pages"):
        yield f"{pages:.0f} pages swapped"


def _grown(states: Sequence[DeviceState], counter: str) -> float | None:
    """Return the growth of a counter from the first state with a value to the last."""
    values = [value for state in states if (value := getattr(state, counter)) is not None]
    return values[-1] - values[0] if len(values) > 1 else None
