"""Checks for conditions on a device that would spoil measurements, with remedies.

:func:`diagnose` judges the machine's set-up, its state and a probe. A finding is UNFIT only if
latencies measured now would be unreliable. Disturbances that interleaving and reference models
remove, such as a clock that changes for all models of a block, are ADVICE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from esm_agent.device.machine import Machine, read_machine
from esm_agent.device.telemetry import Telemetry
from esm_agent.diagnosis.probe import Measure, Noise, noise, paces, run_probe
from esm_protos.messages import (
    PI_THROTTLED_BITS,
    BlockResult,
    DeviceState,
    Diagnosis,
    Finding,
    Severity,
)
from esm_protos.paces import Paces
from esm_protos.text import counted

# pyperf (`pyperf check`) calls a result unstable from a standard deviation of 10 % of the mean.
# The same share of a processor taken away, or of time spent waiting, moves a mean as much.
_TENTH = 0.10
# Below it, noise is smaller than the 3 % by which a block's references may deviate.
_STEADY = 0.02
_REFERENCE_TOLERANCE = 0.03
# Reading a page back from an SD card takes about a millisecond: 100 a second are a tenth of it.
_PAGES_PER_S = 100
# A bare Raspberry Pi 4 warms by 11 K within ten minutes of load (pi-plates.com, "Using a
# THERMOplate to measure temperatures on the RPi4").
_HEAD_ROOM_K = 10.0
_CLOCK_STEP_NS = 1_000  # 1 % of a model of 0.1 ms
_COARSE_STEP_NS = 100_000
_SAME_KIND = 0.9  # favoured cores of one kind are less than a tenth faster

_MOST_MEMORY = 0.75  # the agent's own service gets 80 %

_PI_BEFORE = 16  # offset of the bits for earlier events


@dataclass(frozen=True)
class _Case:
    """Data that the checks judge.

    Attributes:
        machine: Set-up of the machine.
        now: State after the probe, as the agent reads it.
        during: States before, during and after the probe, as the measuring process read them.
        noise: Noise of the probe; None if one of its models failed.
        paces: Paces compared with the usual ones; None if the probe had no reference models.
    """

    machine: Machine
    now: DeviceState
    during: tuple[DeviceState, ...]
    noise: Noise | None
    paces: Paces | None = None

    @property
    def seconds(self) -> float:
        """Time from the first to the last state, s."""
        return (self.during[-1].at_ns - self.during[0].at_ns) / 1e9 if self.during else 0.0

    def gone_up(self, counter: str) -> float | None:
        """Return the increase of a counter during the probe; None if it is not reported."""
        if len(self.during) < 2 or self.seconds <= 0:
            return None
        first, last = (getattr(state, counter) for state in (self.during[0], self.during[-1]))
        return None if first is None or last is None else float(last - first)


def examine(
    measure: Measure,
    telemetry: Telemetry,
    probe_s: float,
    cpus: tuple[int, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Diagnosis:
    """Time the probe and diagnose this device.

    Args:
        measure: Function that measures a block.
        telemetry: Reader of the device's state.
        probe_s: Duration of the probe, s.
        cpus: Processors that the probe runs on; empty for all that this process may use.
        findings: Findings of the execution providers.

    Raises:
        Exception: ``measure`` failed.
    """
    result = run_probe(measure, probe_s)
    found = diagnose(read_machine(usable=cpus or None), telemetry.state(0), result)
    return Diagnosis((*found.findings, *findings))


def diagnose(machine: Machine, now: DeviceState, probe: BlockResult) -> Diagnosis:
    """Return the findings of every check, in a fixed order.

    Args:
        machine: Set-up of the machine.
        now: State after the probe.
        probe: Result of the probe, with states from the measuring process.
    """
    failures = [(m.model_id, m.failure.message) for m in probe.measurements if m.failure]
    case = _Case(machine, now, probe.states, None if failures else noise(probe), paces(probe))
    findings = [check(case) for check in _CHECKS]
    findings += [
        Finding(
            "probe",
            Severity.UNFIT,
            f"the built-in model '{name}' could not be timed: {message}",
            "install the runtime again: pip install --force-reinstall onnxruntime",
        )
        for name, message in failures
    ]
    return Diagnosis(tuple(findings))


def _governor(case: _Case) -> Finding:
    governors = Counter(case.now.governors)
    if not governors:
        return Finding("governor", Severity.UNKNOWN, "not reported (common on virtual machines)")
    text = ", ".join(
        f"{name} on {counted(count, 'processor')}" for name, count in governors.items()
    )
    if set(governors) == {"performance"}:
        return Finding("governor", Severity.OK, text)
    # pyperf's `system tune` and the kernel's own documentation (admin-guide/pm/cpufreq): any other
    # governor lowers the clock when it sees little load, as between two blocks.
    return Finding(
        "governor",
        Severity.ADVICE,
        f"{text}: the clock follows the load",
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def _turbo(case: _Case) -> Finding:
    turbo = case.machine.turbo
    if turbo is None:
        return Finding("turbo", Severity.UNKNOWN, "not reported by the device")
    if not turbo.on:
        return Finding("turbo", Severity.OK, "off")
    # Linux, Documentation/cpu-freq/boost.txt: the boosted clock depends on the load and heat of
    # the whole package; the switch is there for benchmarks among others.
    return Finding(
        "turbo",
        Severity.ADVICE,
        "on: the clock depends on temperature and on what else runs",
        turbo.fix,
    )


def _affinity(case: _Case) -> Finding:
    """Check which processors the agent runs on, if they differ in kind."""
    machine = case.machine
    text = f"may use {len(machine.usable)} of {counted(len(machine.online), 'processor')}"
    mhz = [machine.max_mhz[n] for n in machine.usable if n in machine.max_mhz]
    if mhz and min(mhz) < _SAME_KIND * max(mhz):
        text += (
            f" of different kinds ({min(mhz):.0f} and {max(mhz):.0f} MHz): a model may move "
            "between them"
        )
    elif machine.isolated and not set(machine.usable) <= set(machine.isolated):
        text += f", not only the isolated ones ({_listed(machine.isolated)})"
    else:
        return Finding("affinity", Severity.OK, text)
    return Finding("affinity", Severity.ADVICE, text, _pinned(machine))


def _smt(case: _Case) -> Finding:
    usable = set(case.machine.usable)
    shared = [group for group in case.machine.siblings if len(usable & set(group)) > 1]
    if not shared:
        return Finding("smt", Severity.OK, "no two of the agent's processors share a core")
    return Finding(
        "smt",
        Severity.ADVICE,
        f"processors share cores (such as {_listed(shared[0])}): work on one slows the other",
        _pinned(case.machine),
    )


def _quota(case: _Case) -> Finding:
    """Check the CPU quota of the control group, and whether it stopped the probe."""
    quota, usable = case.machine.quota, len(case.machine.usable)
    periods, throttled = case.gone_up("cpu_periods"), case.gone_up("cpu_throttled_periods")
    stopped = ""
    if periods and throttled:
        share = min(throttled / periods, 1.0)
        stopped = f"; it stopped the probe in {share:.0%} of its periods"
    fix = "raise the container's limit: --cpus, or CPUQuota= of the service"
    if quota is None or (quota >= usable and not stopped):
        return Finding("quota", Severity.OK, "no limit on processor time")
    text = f"this control group gets {quota:.2g} of {counted(usable, 'processor')}{stopped}"
    if quota < 1 or stopped:
        # CFS bandwidth control stops the group for the rest of each period, usually of 100 ms.
        why = "" if stopped else ": runs are stopped midway again and again"
        return Finding("quota", Severity.UNFIT, f"{text}{why}", fix)
    return Finding(
        "quota",
        Severity.ADVICE,
        f"{text}: give no more threads than {math.floor(quota)}, or runs are stopped midway",
        fix,
    )


def _memory_limit(case: _Case) -> Finding:
    """Check the memory limit of the control group."""
    limit, physical = case.machine.memory_limit_bytes, case.machine.physical_bytes
    if limit is None or limit >= physical:
        return Finding("memory limit", Severity.OK, "none")
    text = f"this control group gets {limit / 1e9:.1f} of {physical / 1e9:.1f} GB"
    if limit >= _MOST_MEMORY * physical:
        return Finding("memory limit", Severity.OK, text)
    return Finding(
        "memory limit",
        Severity.ADVICE,
        f"{text}: a larger model fails with out_of_memory",
        "raise the container's limit: --memory, or MemoryMax= of the service",
    )


def _memory(case: _Case) -> Finding:
    available = case.now.memory_available_bytes
    if available is None:
        return Finding("memory", Severity.UNKNOWN, "not reported by the device")
    text = f"{available / 1e9:.1f} of {case.machine.memory_bytes / 1e9:.1f} GB are available"
    # A block's models alone may take a quarter of the memory (see esm_agent.serving.server).
    if available >= case.machine.memory_bytes / 4:
        return Finding("memory", Severity.OK, text)
    return Finding(
        "memory",
        Severity.ADVICE,
        f"{text}: a block may not fit",
        "stop other programs, or measure fewer models per block",
    )


def _swap(case: _Case) -> Finding:
    used, pages = case.now.swap_used_bytes, case.gone_up("swapped_pages")
    if used is None:
        return Finding("swap", Severity.UNKNOWN, "not reported by the device")
    fix = "stop other programs, or measure fewer models per block; sudo swapoff -a shows what fits"
    if pages:
        per_s = pages / case.seconds
        text = f"{per_s:.0f} pages a second went in or out during the probe"
        severity = Severity.UNFIT if per_s > _PAGES_PER_S else Severity.ADVICE
        return Finding("swap", severity, text, fix)
    if used:
        text = f"{used / 1e6:.0f} MB are swapped out; nothing moved during the probe"
        return Finding("swap", Severity.ADVICE, text, "sudo swapoff -a")
    return Finding("swap", Severity.OK, "not used")


def _background(case: _Case) -> Finding:
    busy, own = case.gone_up("busy_s"), case.gone_up("own_s")
    cores, load = len(case.machine.online), case.now.load_1min
    loaded = "" if load is None else f"; load average {load:.2f}"
    fix = "stop other programs: top -o %CPU lists them"
    if busy is None or own is None:
        return Finding("background", Severity.UNKNOWN, f"not reported{loaded}")
    others = max(0.0, busy - own) / case.seconds
    of = counted(cores, "processor")
    text = f"other programs used {others:.2f} of {of} during the probe{loaded}"
    if cores - others < 1 - _TENTH:
        return Finding(
            "background", Severity.UNFIT, f"{text}: less than one is left for the agent", fix
        )
    if others > _TENTH:
        return Finding("background", Severity.ADVICE, text, fix)
    return Finding("background", Severity.OK, text)


def _stolen(case: _Case) -> Finding:
    stolen = case.gone_up("stolen_s")
    if stolen is None:
        return Finding("stolen time", Severity.UNKNOWN, "not reported by the device")
    share = stolen / case.seconds
    text = f"a hypervisor took {share:.1%} of a processor during the probe"
    fix = "measure at a quieter hour, or on a machine that is not shared"
    if share > _TENTH:
        return Finding("stolen time", Severity.UNFIT, text, fix)
    if share > _STEADY:
        return Finding("stolen time", Severity.ADVICE, text, fix)
    return Finding("stolen time", Severity.OK, text if share else "none")


def _temperature(case: _Case) -> Finding:
    told = [s.temperature_c for s in (case.now, *case.during) if s.temperature_c is not None]
    if not told:
        return Finding("temperature", Severity.UNKNOWN, "not reported by the device")
    hottest, limit = max(told), case.machine.throttles_at_c
    if limit is None:
        text = f"{hottest:.0f} C; the temperature at which it slows down is not reported"
        return Finding("temperature", Severity.UNKNOWN, text)
    text = f"{hottest:.0f} C, slows down at {limit:.0f} C"
    fix = "add a heat sink or a fan, or choose a cooler place"
    if hottest >= limit:
        return Finding("temperature", Severity.UNFIT, text, fix)
    if limit - hottest < _HEAD_ROOM_K:
        return Finding("temperature", Severity.ADVICE, text, fix)
    return Finding("temperature", Severity.OK, text)


def _throttling(case: _Case) -> Finding:
    bits = [s.pi_throttled for s in (case.now, *case.during) if s.pi_throttled is not None]
    if bits:
        return _pi_throttling(bits)
    total = case.now.throttle_events
    if total is None:
        return Finding("throttling", Severity.UNKNOWN, "not reported by the device")
    fix = "better cooling, or turbo off"
    if new := case.gone_up("throttle_events"):
        text = f"{new:.0f} times during the probe for heat"
        return Finding("throttling", Severity.UNFIT, text, fix)
    if total:
        text = f"not now; {total} times since the device started, for heat"
        return Finding("throttling", Severity.ADVICE, text, fix)
    return Finding("throttling", Severity.OK, "not since the device started")


def _pi_throttling(told: list[int]) -> Finding:
    """Return the finding for the bits of `vcgencmd get_throttled` (Raspberry Pi documentation)."""
    bits = 0
    for value in told:
        bits |= value
    now = [bit for bit in PI_THROTTLED_BITS if bits >> bit & 1]
    before = [bit for bit in PI_THROTTLED_BITS if bits >> (bit + _PI_BEFORE) & 1]
    if not now and not before:
        return Finding("throttling", Severity.OK, "not since the device started")
    names = ", ".join(PI_THROTTLED_BITS[bit] for bit in now or before)
    fixes = []
    if 0 in (now or before):
        fixes.append("the official power supply and a short cable")
    if set(now or before) & {1, 2, 3} and 0 not in (now or before):
        fixes.append("a heat sink or a fan")
    fix = " and ".join(fixes)
    if now:
        return Finding("throttling", Severity.UNFIT, f"now: {names}", fix)
    return Finding("throttling", Severity.ADVICE, f"not now; earlier: {names}", fix)


def _gpu(case: _Case) -> Finding:
    gpus = case.now.gpus
    held = [
        f"{gpu.name}: {', '.join(gpu.throttle_reasons)}" for gpu in gpus if gpu.throttle_reasons
    ]
    if not gpus:
        return Finding("gpu", Severity.OK, "none that can be read")
    if held:
        return Finding(
            "gpu",
            Severity.ADVICE,
            f"the clock is held back ({'; '.join(held)})",
            "nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE shows the limit",
        )
    return Finding("gpu", Severity.OK, ", ".join(gpu.name for gpu in gpus))


def _clock(case: _Case) -> Finding:
    step, source = case.machine.clock_step_ns, case.machine.clock_source
    text = f"steps of {step:,} ns" + (f" ({source})" if source else "")
    if step <= _CLOCK_STEP_NS:
        return Finding("clock", Severity.OK, text)
    return Finding(
        "clock",
        Severity.ADVICE if step < _COARSE_STEP_NS else Severity.UNFIT,
        f"{text}: too coarse for short models",
        "choose another: cat /sys/devices/system/clocksource/clocksource0/available_clocksource",
    )


def _pace(case: _Case) -> Finding:
    if case.noise is None or case.noise.spread is None or case.noise.span is None:
        return Finding("pace", Severity.UNKNOWN, "the probe was too short", "give more seconds")
    spread = case.noise.spread
    worst, most = max(case.noise.model_spreads.items(), key=lambda item: item[1])
    text = (
        f"varies by {spread:.1%} between half seconds, {case.noise.span:.1%} from the fastest to "
        f"the slowest; most for '{worst}' ({most:.1%})"
    )
    if spread <= _STEADY:
        return Finding("pace", Severity.OK, text)
    if spread <= _TENTH:
        return Finding(
            "pace",
            Severity.ADVICE,
            text,
            "none needed: interleaved runs and reference models remove most of it",
        )
    return Finding(
        "pace", Severity.UNFIT, text, "resolve the findings above, then run doctor again"
    )


def _usual_pace(case: _Case) -> Finding:
    """Compare the device's paces with its usual ones."""
    paces = case.paces
    if paces is None:
        return Finding("usual pace", Severity.UNKNOWN, "no reference models were timed")
    if not paces.known:
        return Finding(
            "usual pace",
            Severity.UNKNOWN,
            "no history yet for this device in its present set-up",
            "none needed: every block adds to the history, and intervals narrow with time",
        )
    arithmetic, *memory = (math.expm1(value) for value in paces.values)
    parts = {"arithmetic": arithmetic}
    if memory:
        parts["memory"] = max(memory, key=abs)
    off = {name: value for name, value in parts.items() if abs(value) > _REFERENCE_TOLERANCE}
    of = f"of {counted(paces.moments, 'moment')}"
    if not off:
        most = max(parts.values(), key=abs)
        return Finding("usual pace", Severity.OK, f"{_against_usual(most)} at most, {of}")
    text = " and ".join(f"{name} is {_against_usual(value)}" for name, value in off.items())
    return Finding(
        "usual pace",
        Severity.ADVICE,
        f"{text}, {of}",
        "none needed: latencies are reported at the usual pace, with a wider interval",
    )


def _against_usual(share: float) -> str:
    return f"{abs(share):.1%} {'slower' if share > 0 else 'faster'} than usual"


def _interval(case: _Case) -> Finding:
    """Check the intervals of the probe's latencies, without the pace that all models share."""
    worst, interval = "", math.inf
    if case.noise is not None:
        worst, interval = max(case.noise.intervals.items(), key=lambda item: item[1])
    if math.isinf(interval):
        return Finding("noise", Severity.UNKNOWN, "the probe was too short", "give more seconds")
    text = (
        f"95 % intervals of the probe's latencies are {interval:.1%} or less on either side; "
        f"widest for '{worst}'"
    )
    if interval <= _REFERENCE_TOLERANCE:
        return Finding("noise", Severity.OK, text)
    severity = Severity.ADVICE if interval <= _TENTH else Severity.UNFIT
    return Finding("noise", severity, text, "resolve the findings above, or give more runs")


_CHECKS: tuple[Callable[[_Case], Finding], ...] = (
    _governor,
    _turbo,
    _affinity,
    _smt,
    _quota,
    _memory,
    _memory_limit,
    _swap,
    _background,
    _stolen,
    _temperature,
    _throttling,
    _gpu,
    _clock,
    _pace,
    _usual_pace,
    _interval,
)


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _pinned(machine: Machine) -> str:
    """Return the command for an agent on the processors that are best to measure on.

    These are the isolated ones, or else those of the fastest kind, one per core.
    """
    chosen = set(machine.isolated or machine.usable)
    fastest = max((machine.max_mhz.get(n, 0.0) for n in chosen), default=0.0)
    chosen = {n for n in chosen if machine.max_mhz.get(n, 0.0) >= _SAME_KIND * fastest}
    for group in machine.siblings:
        chosen -= set(sorted(chosen & set(group))[1:])
    return f"taskset -c {_listed(chosen)} esm-agent serve"
