"""The doctor's judgements: what is said of every kind of device, and how severe it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esm_agent.device.machine import Machine, Turbo, read_machine
from esm_agent.device.telemetry import Telemetry
from esm_agent.diagnosis.doctor import diagnose
from esm_protos.messages import (
    BlockResult,
    DeviceState,
    Diagnosis,
    FailureKind,
    Finding,
    GpuState,
    Measurement,
    Severity,
    UsualLatencies,
)
from tests.agent.fake_roots import laptop, pi4

OK, UNKNOWN = Severity.OK, Severity.UNKNOWN
ADVICE, UNFIT = Severity.ADVICE, Severity.UNFIT
ALL = (0, 1, 2, 3)

HEALTHY = Machine(
    memory_bytes=8 * 10**9,
    online=ALL,
    usable=ALL,
    max_mhz=dict.fromkeys(ALL, 3000.0),
    turbo=Turbo(False, "echo"),
    throttles_at_c=100.0,
    clock_step_ns=40,
    clock_source="tsc",
)
GOOD = DeviceState(
    at_ns=0,
    clock_mhz=(3000.0,) * 4,
    governors=("performance",) * 4,
    temperature_c=50.0,
    throttle_events=0,
    load_1min=1.0,
    busy_s=100.0,
    own_s=10.0,
    stolen_s=1.0,
    memory_available_bytes=6 * 10**9,
    swap_used_bytes=0,
    swapped_pages=5,
)
LATER = replace(GOOD, at_ns=10 * 10**9, busy_s=110.2, own_s=20.0)


REFERENCES = ("arithmetic", "middle", "large", "beyond")
USUAL = UsualLatencies(REFERENCES, np.full(4, 1e6), np.full((4, 4), 0.02), 200, 1e6)


def probe(
    *states: DeviceState,
    relative: float = 0.0,
    runs: int = 600,
    failure: str = "",
    references_ms: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    usual: UsualLatencies | None = USUAL,
) -> BlockResult:
    """Ten seconds of four models whose pace is ``relative`` slower in every other second."""
    start = np.arange(runs, dtype=np.int64) * (10 * 10**9 // runs)
    slow = 1 + relative * (start // 10**9 % 2)
    measurements = [
        Measurement(f"m{n}", (1e6 * slow).astype(np.int64), start + n * 10**6) for n in range(4)
    ]
    if failure:
        measurements[1] = Measurement.failed("m1", FailureKind.CRASH, failure)
    references = tuple(
        Measurement(
            name,
            np.full(80, round(1e6 * ms)),
            start[:80],
            runs_per_visit=8,
            weight_bytes=5**n * 400_000,
        )
        for n, (name, ms) in enumerate(zip(REFERENCES, references_ms, strict=False))
    )
    return BlockResult("b", tuple(measurements), 1, 1, states, references, usual)


def find(diagnosis: Diagnosis, check: str) -> Finding:
    (finding,) = [f for f in diagnosis.findings if f.check == check]
    return finding


def about(
    check: str,
    machine: Machine = HEALTHY,
    now: DeviceState = GOOD,
    first: DeviceState = GOOD,
    last: DeviceState = LATER,
) -> Finding:
    return find(diagnose(machine, now, probe(first, last)), check)


def test_on_a_healthy_device_everything_is_well() -> None:
    diagnosis = diagnose(HEALTHY, GOOD, probe(GOOD, LATER))
    assert {f.severity for f in diagnosis.findings} == {OK}
    assert not any(f.fix for f in diagnosis.findings)
    assert diagnosis.fit


def test_a_device_that_tells_nothing_is_not_unfit() -> None:
    bare = Machine(memory_bytes=10**9, online=(0,), usable=(0,))
    diagnosis = diagnose(bare, DeviceState(at_ns=0), probe(usual=None))
    told = {f.check for f in diagnosis.findings if f.severity is OK}
    assert told == {"affinity", "smt", "quota", "memory limit", "gpu", "clock", "pace", "noise"}
    assert {f.severity for f in diagnosis.findings} == {OK, UNKNOWN}
    assert diagnosis.fit


def test_a_raspberry_pi_short_of_current(tmp_path: Path) -> None:
    state = Telemetry(pi4(tmp_path)).state(0)
    diagnosis = diagnose(read_machine(tmp_path, ALL), state, probe())
    throttling = find(diagnosis, "throttling")
    assert throttling.severity is UNFIT
    assert throttling.text == "now: under-voltage, throttled"
    assert "power supply" in throttling.fix
    temperature = find(diagnosis, "temperature")
    assert (temperature.severity, temperature.text) == (ADVICE, "71 C, slows down at 80 C")
    governor = find(diagnosis, "governor")
    assert governor.severity is ADVICE
    assert governor.text.startswith("ondemand on 4 processors")
    assert governor.fix.startswith("echo performance | sudo tee /sys/")
    assert not diagnosis.fit


def test_an_x86_laptop(tmp_path: Path) -> None:
    state = Telemetry(laptop(tmp_path)).state(0)
    diagnosis = diagnose(read_machine(tmp_path, ALL), state, probe())
    assert find(diagnosis, "turbo").severity is ADVICE
    assert "no_turbo" in find(diagnosis, "turbo").fix
    assert find(diagnosis, "smt").fix == "taskset -c 0,1 esm-agent serve"
    assert find(diagnosis, "throttling").severity is ADVICE
    assert "28 times since the device started" in find(diagnosis, "throttling").text
    assert diagnosis.fit


@pytest.mark.parametrize(
    ("machine", "severity", "fix"),
    [
        ({"usable": (1, 2)}, OK, ""),
        ({"max_mhz": {0: 1800, 1: 1800, 2: 2400, 3: 2400}}, ADVICE, "taskset -c 2,3 "),
        ({"max_mhz": {0: 5000, 1: 5000, 2: 5200, 3: 5200}}, OK, ""),
        ({"usable": (0, 1, 2), "isolated": (3,)}, ADVICE, "taskset -c 3 "),
        ({"usable": (3,), "isolated": (3,)}, OK, ""),
    ],
)
def test_affinity(machine: dict, severity: Severity, fix: str) -> None:
    finding = about("affinity", replace(HEALTHY, **machine))
    assert finding.severity is severity
    assert finding.fix.startswith(fix)


def test_smt_where_the_cores_are_of_two_kinds() -> None:
    machine = replace(
        HEALTHY, siblings=((0, 1),), max_mhz={0: 5000.0, 1: 5000.0, 2: 3000.0, 3: 3000.0}
    )
    assert about("smt", machine).fix == "taskset -c 0 esm-agent serve"
    assert about("smt", replace(machine, usable=(1, 2))).severity is OK


@pytest.mark.parametrize(
    ("quota", "severity"), [(None, OK), (4.0, OK), (1.5, ADVICE), (0.5, UNFIT)]
)
def test_quota(quota: float | None, severity: Severity) -> None:
    assert about("quota", replace(HEALTHY, quota=quota)).severity is severity


def test_little_memory() -> None:
    finding = about("memory", now=replace(GOOD, memory_available_bytes=10**9))
    assert finding.severity is ADVICE
    assert finding.text.startswith("1.0 of 8.0 GB are available")


@pytest.mark.parametrize(
    ("used", "pages", "severity"),
    [(0, 0, OK), (10**6, 0, ADVICE), (10**6, 500, ADVICE), (10**6, 5000, UNFIT), (0, 5000, UNFIT)],
)
def test_swap(used: int, pages: int, severity: Severity) -> None:
    now = replace(GOOD, swap_used_bytes=used)
    assert about("swap", now=now, last=replace(LATER, swapped_pages=5 + pages)).severity is severity


@pytest.mark.parametrize(("others", "severity"), [(0.05, OK), (0.5, ADVICE), (3.2, UNFIT)])
def test_background(others: float, severity: Severity) -> None:
    last = replace(LATER, busy_s=110 + 10 * others)
    finding = about("background", last=last)
    assert finding.severity is severity
    assert finding.text.startswith(f"other programs used {others:.2f} of 4 processors")


def test_one_processor_is_not_unfit_for_a_little_background() -> None:
    machine = replace(HEALTHY, online=(0,), usable=(0,))
    assert about("background", machine, last=replace(LATER, busy_s=110.9)).severity is OK
    assert about("background", machine, last=replace(LATER, busy_s=112.0)).severity is UNFIT


@pytest.mark.parametrize(("share", "severity"), [(0, OK), (0.01, OK), (0.05, ADVICE), (0.2, UNFIT)])
def test_stolen_time(share: float, severity: Severity) -> None:
    last = replace(LATER, stolen_s=1 + 10 * share)
    assert about("stolen time", last=last).severity is severity


@pytest.mark.parametrize(
    ("celsius", "limit", "severity"),
    [(50, 100, OK), (95, 100, ADVICE), (100, 100, UNFIT), (95, None, UNKNOWN)],
)
def test_temperature(celsius: float, limit: float | None, severity: Severity) -> None:
    """The hottest moment counts, not the last."""
    machine = replace(HEALTHY, throttles_at_c=limit)
    finding = about("temperature", machine, last=replace(LATER, temperature_c=celsius))
    assert finding.severity is severity


def test_throttling_during_the_probe() -> None:
    finding = about("throttling", last=replace(LATER, throttle_events=3))
    assert finding.severity is UNFIT
    assert "3 times" in finding.text


@pytest.mark.parametrize(
    ("bits", "severity", "text", "fix"),
    [
        (0x0, OK, "not since", ""),
        (0x1, UNFIT, "now: under-voltage", "power supply"),
        (0x6, UNFIT, "now: clock capped, throttled", "fan"),
        (0x80008, UNFIT, "now: soft temperature limit", "fan"),
        (0x50000, ADVICE, "not now; earlier: under-voltage, throttled", "power supply"),
    ],
)
def test_bits_of_a_raspberry_pi(bits: int, severity: Severity, text: str, fix: str) -> None:
    finding = about("throttling", now=replace(GOOD, pi_throttled=bits))
    assert finding.severity is severity
    assert finding.text.startswith(text)
    assert fix in finding.fix


def test_a_gpu_that_is_held_back() -> None:
    gpu = GpuState("H100", throttle_reasons=("sw_power_cap",))
    finding = about("gpu", now=replace(GOOD, gpus=(gpu,)))
    assert (finding.severity, finding.text) == (
        ADVICE,
        "the clock is held back (H100: sw_power_cap)",
    )


@pytest.mark.parametrize(("step", "severity"), [(1, OK), (15_000, ADVICE), (1_000_000, UNFIT)])
def test_clock(step: int, severity: Severity) -> None:
    assert about("clock", replace(HEALTHY, clock_step_ns=step)).severity is severity


@pytest.mark.parametrize(("relative", "severity"), [(0, OK), (0.1, ADVICE), (0.5, UNFIT)])
def test_pace(relative: float, severity: Severity) -> None:
    diagnosis = diagnose(HEALTHY, GOOD, probe(GOOD, LATER, relative=relative))
    assert find(diagnosis, "pace").severity is severity
    assert find(diagnosis, "noise").severity is OK, "the pace that all share is divided out"


def test_a_probe_that_was_too_short() -> None:
    diagnosis = diagnose(HEALTHY, GOOD, probe(GOOD, LATER, runs=9))
    noise = find(diagnosis, "noise")
    assert (noise.severity, noise.fix) == (UNKNOWN, "give more seconds")


def test_a_probe_that_failed_is_unfit() -> None:
    diagnosis = diagnose(HEALTHY, GOOD, probe(failure="it died"))
    assert not diagnosis.fit
    assert "'m1' could not be timed: it died" in find(diagnosis, "probe").text
    assert find(diagnosis, "pace").severity is UNKNOWN


def test_whatever_is_wrong_comes_with_its_cure(tmp_path: Path) -> None:
    for diagnosis in (
        diagnose(read_machine(laptop(tmp_path), ALL), Telemetry(tmp_path).state(0), probe()),
        diagnose(HEALTHY, GOOD, probe(relative=0.5, failure="x")),
    ):
        for finding in diagnosis.findings:
            assert bool(finding.fix) >= (finding.severity in (ADVICE, UNFIT)), finding


@pytest.mark.parametrize(
    ("references_ms", "usual", "severity", "words"),
    [
        ((1.0, 1.0, 1.0, 1.0), USUAL, OK, "200 moments"),
        ((1.0, 1.1, 1.2, 1.2), USUAL, ADVICE, "memory is"),
        ((1.2, 1.2, 1.2, 1.2), USUAL, ADVICE, "arithmetic is"),
        ((0.8, 0.8, 0.8, 0.8), USUAL, ADVICE, "faster than usual"),
        ((1.0, 1.0, 1.0, 1.0), None, UNKNOWN, "no history yet"),
        ((), USUAL, UNKNOWN, "no reference models"),
        ((1.2,), USUAL, ADVICE, "arithmetic is"),
    ],
)
def test_tells_how_the_moment_compares_with_what_is_usual(
    references_ms: tuple[float, ...], usual: UsualLatencies | None, severity: Severity, words: str
) -> None:
    told = probe(GOOD, LATER, references_ms=references_ms, usual=usual)
    finding = find(diagnose(HEALTHY, GOOD, told), "usual pace")
    assert finding.severity is severity
    assert words in finding.text
