"""How far a number can be trusted, in one word, and why.

A verdict rests on what was measured and on what the device said of itself; what a device does
not tell counts neither for it nor against it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from esm_host.arguments import argument
from esm_protos.estimates import Parts
from esm_protos.messages import PI_THROTTLED_BITS, DeviceState
from esm_protos.paces import Shift
from esm_protos.statistics import MIN_ROUNDS


class Verdict(enum.StrEnum):
    """From best to worst."""

    STABLE = "stable"
    """Nothing disturbed the device, and the interval is as narrow as was asked for."""
    NOISY = "noisy"
    """Something disturbed the device, or references strayed."""
    UNRESOLVED = "unresolved"
    """The interval is wider than what was asked for."""
    THROTTLED = "throttled"
    """The device slowed itself down."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reasons, the worst first. What only warns leaves it ``stable``."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    disturbed: bool = field(default=False, compare=False)
    """Whether the device throttled, or something disturbed it."""


DEFAULT_PRECISION = 0.02
"""What an interval is held against where no precision was asked for."""

# Above these a state is a reason. The clock: what NVBench and pyperf warn of begins here.
_CLOCK_FELL = 0.10
_STOLEN = 0.02
_OTHERS_CORES = 0.5
_SLOWED = 0.25
_QUOTA_STOPS = 0.02  # of the periods
_UNUSUAL_PERCENT = 5.0
_FEW_MOMENTS = 12  # an hour: with fewer, a longer history helps most
_CHOSEN = {"applications_clocks_setting", "display_clock_setting"}
"""Reasons for a GPU's clock that are somebody's choice and keep it steady."""


def judge_number(
    interval: float,
    precision: float,
    evidence: Sequence[tuple[Verdict, str]],
    parts: Parts | None = None,
    shift: Shift | None = None,
    no_history: str = "",
) -> Judgement:
    """Return the verdict on one model's latency.

    Args:
        interval: half-width of the 95 % interval, as a share.
        precision: what was asked for, as a share; 0 stands for the default.
        evidence: of the block, from :func:`block_evidence` and quality control.
        parts: what ``interval`` is made of. A reason then names the widest part and its cure, with
            marked names of arguments.
        shift: how far the block is from what is usual.
        no_history: why the device cannot remember its reference models; empty where it can.
    """
    wanted = precision or DEFAULT_PRECISION
    found = list(evidence)
    if interval == float("inf"):
        text = f"too few runs for an interval, which takes {MIN_ROUNDS} visits or more"
        found.append((Verdict.UNRESOLVED, text))
    elif not interval <= wanted:
        held = f"{'asked' if precision else 'held against'} ±{100 * wanted:g} %"
        text = f"interval too wide: ±{100 * interval:.1f} %, {held}"
        if parts is not None:
            pace, others = max(parts.pace, parts.history), _widest_but_pace(parts)
            lacking = _history_lacks(parts, no_history) if pace >= min(others, wanted) else ""
            if lacking and pace >= others:
                # The same for all models of a block: said once.
                text = f"interval too wide, {held}: {lacking}"
            else:
                text += f"; {_unresolved(parts, shift, exact=not precision)}"
                text += f"; besides, {lacking}" if lacking else ""
        found.append((Verdict.UNRESOLVED, text))
    worst_first = sorted(found, key=lambda entry: -list(Verdict).index(entry[0]))
    verdict = worst_first[0][0] if worst_first else Verdict.STABLE
    disturbed = any(each in (Verdict.THROTTLED, Verdict.NOISY) for each, _ in found)
    return Judgement(verdict, tuple(reason for _, reason in worst_first), disturbed)


def _widest_but_pace(parts: Parts) -> float:
    return max(parts.passing, parts.sessions, parts.blocks or 0.0)


def _history_lacks(parts: Parts, no_history: str) -> str:
    """Return what a device remembers, where that is little; else nothing."""
    if parts.moments >= _FEW_MOMENTS:
        return ""
    if no_history:
        return (
            f"this device's history cannot be kept ({no_history}): make room for that file, or "
            "set XDG_STATE_HOME of the agent's user"
        )
    cure = f"time again later, or give {argument('spread')} 1h"
    if not parts.moments:
        return f"this device has no history yet; {cure}"
    moments = f"{parts.moments} moment{'s' * (parts.moments != 1)}"
    return f"this device remembers only {moments}; {cure}"


def _unresolved(parts: Parts, shift: Shift | None, exact: bool) -> str:
    """Name the widest part of an interval, and what makes it narrower.

    Args:
        exact: whether a number of runs was asked for, and no precision.
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
        return f"how fast the device is now is known to {left}: {cure}"
    if parts.sessions == widest:
        return f"sessions differ, which leaves {left}: give more {argument('sessions')}"
    if exact:
        return f"more runs would help: give more {argument('runs')}"
    return (
        f"more rounds would help: give a longer {argument('max_time_s')} or more "
        f"{argument('max_runs')}"
    )


def describe_shift(shift: Shift) -> str | None:
    """Return how far a device is from its usual pace for a model; None up to 5 %."""
    percent = 100 * math.expm1(shift.value)
    if abs(percent) <= _UNUSUAL_PERCENT:
        return None
    most = " (mostly its memory)" if shift.memory / shift.value > 0.5 else ""
    text = f"{abs(percent):.0f} % {'slower' if percent > 0 else 'faster'} than usual"
    return f"this device is {text} for this model{most}"


def block_evidence(states: Sequence[DeviceState], slowdown: float) -> list[tuple[Verdict, str]]:
    """What speaks against all numbers of a block.

    Args:
        states: before, during and after it.
        slowdown: of the device's pace from the first third of the block to the last, a share.
    """
    found = [(Verdict.THROTTLED, reason) for reason in _throttling(states)]
    found += [(Verdict.NOISY, reason) for reason in _disturbances(states)]
    if slowdown > _SLOWED:
        text = f"the device became {100 * slowdown:.0f} % slower during the block"
        found.append((Verdict.NOISY, text))
    return found


def threads_evidence(threads: int, processors: float) -> list[tuple[Verdict, str]]:
    """Return a warning where models have more threads than processors.

    Args:
        processors: that models can use at a time; a CPU quota makes fractions.
    """
    if threads <= processors:
        return []
    fix = f"give --threads {int(processors)}" if processors >= 1 else "raise its CPU quota"
    what = f"{threads} thread{'s' * (threads > 1)} on {processors:.3g} processor"
    return [(Verdict.STABLE, f"{what}{'s' * (processors != 1)}: {fix}")]


def company_evidence(missing: bool, why: str = "") -> list[tuple[Verdict, str]]:
    """Return a warning where reference models were asked for and the agent timed none.

    Args:
        why: in the agent's words; empty where it does not tell.
    """
    if not missing:
        return []
    text = (
        f"the agent timed no reference models ({why or 'one of an older version has none'}), so "
        "the interval is of this block alone"
    )
    return [(Verdict.STABLE, text)]


def reference_evidence(worst: float, tolerance: float) -> list[tuple[Verdict, str]]:
    """What quality control says: the reference that strays most, and by what it may, as shares."""
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
    # Before and after, cores idle at low clocks; only the block itself counts.
    during = [max(state.clock_mhz) for state in states[1:-1] if any(state.clock_mhz)]
    yield from _fallen("clock", during)
    for number in range(max((len(state.gpus) for state in states), default=0)):
        gpus = [s.gpus[number] for s in states[1:-1] if len(s.gpus) > number]
        yield from _fallen("GPU clock", [gpu.clock_mhz for gpu in gpus if gpu.clock_mhz])
        reasons = {reason for gpu in gpus for reason in gpu.throttle_reasons} - _CHOSEN
        if reasons:
            yield f"the GPU reports {', '.join(sorted(reasons))}"


def _quota_stops(states: Sequence[DeviceState]) -> Iterator[str]:
    """Since the last state before the first run: what happens to loading does not matter."""
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
    """By how much a counter grew from the first state to the last that tell it."""
    values = [value for state in states if (value := getattr(state, counter)) is not None]
    return values[-1] - values[0] if len(values) > 1 else None
