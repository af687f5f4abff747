"""Errors and intervals of energies on simulated devices whose true energy is known.

A device with a virtual clock has two models, an idle load, and one sensor as a tree of files that
the agent's own sources read: RAPL with a counter that wraps around, an INA3221, a Raspberry Pi's
PMIC, a battery by its power or by its charge, or a meter of the user. Sensors have ticks of 1 to
1,000 ms and noise of 1 or 10 % of each tick. Models become up to 5 % slower or faster. The idle
load is constant, or a sine, a step or a random walk. One model in ten needs no energy.

An energy should be unresolved if the windows are too short for the tick, if the steps of a
battery's charge are too coarse, and if a model needs no energy.

``python -m benchmarks.energy_known_truth [--cases N] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from esm_agent.energy.battery import battery
from esm_agent.energy.estimate import estimate
from esm_agent.energy.find import measure_tick
from esm_agent.energy.hwmon import Hwmon
from esm_agent.energy.pmic import Pmic
from esm_agent.energy.rapl import Rapl
from esm_agent.energy.source import EnergySource, PowerMeter
from esm_agent.energy.windows import Plan, plan, take_windows

SENSORS = ("rapl", "hwmon", "pmic", "battery power", "battery charge", "own meter")
TICKS_S = (0.001, 0.01, 0.1, 1.0)
NOISES = (0.01, 0.1)
IDLES = ("constant", "sine", "step", "walk")
TIMES = (0.5, 1.05, 2.0, 6.0)
"""Times per model, as multiples of the least one that the tick allows."""
PRECISION = 0.02
_RANGE_UJ, _LEFT_UJ = 20_000_000_000, 500_000_000
"""Range of the RAPL counter, and largest rest of it at the start, so that it wraps around."""
_TICKS_PER_SAMPLE = 4
"""Most ticks between two samples of a meter of watts."""
_NO_ENERGY = 0.1


@dataclass(frozen=True)
class Case:
    """Simulated measurement.

    Attributes:
        sensor: One of :data:`SENSORS`.
        tick_s: Time between two values of the sensor, seconds.
        noise: Standard deviation of the energy of a tick.
        idle: One of :data:`IDLES`.
        time: One of :data:`TIMES`.
    """

    sensor: str
    tick_s: float
    noise: float
    idle: str
    time: float


@dataclass(frozen=True)
class Outcome:
    """Result for one model of a case.

    Attributes:
        case: The case.
        stable: Whether the verdict was ``stable``.
        hopeless: Whether it should be ``unresolved``.
        error: Relative error of the net energy; None without a figure or a true energy.
        inside: Whether the 95 % interval holds the truth; None without a figure.
    """

    case: Case
    stable: bool
    hopeless: bool
    error: float | None = None
    inside: bool | None = None


class Device:
    """Device with a virtual clock and one sensor.

    Args:
        case: The case.
        rng: Source of randomness.
        folder: Empty folder for the tree of files.
    """

    def __init__(self, case: Case, rng: np.random.Generator, folder: Path) -> None:
        self.now = 0.0
        self._drawn: list[float] = []
        self._case, self._rng, self._folder = case, rng, folder
        self._idle_w = rng.uniform(1.0, 10.0)
        self._load = self._idle_w
        self._shape = rng.uniform(0.05, 0.5), rng.uniform(0, 2 * math.pi)
        self._next_s = self._tick_s = case.tick_s
        self._tick_j = 0.0
        self._shown_j = 0.0
        self._shown_w = self._idle_w
        self._sampled_s = math.inf
        self._total_s = math.inf
        self._start_uj = _RANGE_UJ - int(rng.integers(_LEFT_UJ))
        self._write()
        self.source = self._source()
        if isinstance(self.source, PowerMeter):
            self.source.clock = lambda: self.now
            self.source.tick_s = max(self.source.tick_s, case.tick_s)
            self._tick_s = max(case.tick_s, self.source.tick_s / _TICKS_PER_SAMPLE)
            self._sampled_s = 0.0
        elif case.sensor == "own meter":
            self.source.tick_s = measure_tick(self.source.joules, lambda: self.now, self.spend)
        else:
            self.source.tick_s = case.tick_s
        self.source.start()

    def begin(self, total_s: float) -> None:
        """Start the change of the idle load, which takes this time, seconds."""
        self._began_s, self._total_s = self.now, total_s

    def passed(self) -> float:
        """Return the share of this time that has passed."""
        return (self.now - self._began_s) / self._total_s

    def joules(self) -> float:
        """Return what the source reads now."""
        if not self.source.sampled:
            self._write()
        return self.source.joules()

    def spend(self, seconds: float, watts: float = 0.0) -> None:
        """Let time pass, with this power above that of the idle device."""
        ends = self.now + seconds
        while self._next_s <= ends:
            self._tick_j += (self._next_s - self.now) * (watts + self._load)
            self.now = self._next_s
            self._next_s += self._tick_s
            self._show()
        self._tick_j += (ends - self.now) * (watts + self._load)
        self.now = ends

    def _show(self) -> None:
        """End a tick: show its energy with noise, and let the load change."""
        energy_j = self._tick_j * max(1 + self._case.noise * self._normal(), 0.0)
        self._tick_j = 0.0
        self._shown_j += energy_j
        self._shown_w = energy_j / self._tick_s
        if self._total_s < math.inf:
            self._load = self._idle_w * self._change()
        if self.now >= self._sampled_s:
            self._write()
            self.source.sample()
            self._sampled_s = self.now + self.source.tick_s * 0.999

    def _normal(self) -> float:
        if not self._drawn:  # one by one they take most of the time
            self._drawn = self._rng.normal(size=10_000).tolist()
        return self._drawn.pop()

    def _change(self) -> float:
        period, phase = self._shape
        match self._case.idle:
            case "sine":
                return 1 + 0.1 * math.sin(2 * math.pi * self.passed() / period + phase)
            case "step":
                return 1.2 if self.passed() > 2 * period else 1.0
            case "walk":
                step = 0.1 * math.sqrt(self._tick_s / self._total_s)
                return max(self._load / self._idle_w + step * self._normal(), 0.1)
        return 1.0

    def _write(self) -> None:
        """Write the tree of files of the sensor."""
        match self._case.sensor:
            case "rapl":
                shown = (self._start_uj + round(1e6 * self._shown_j)) % (_RANGE_UJ + 1)
                known = {"name": "package-0", "max_energy_range_uj": _RANGE_UJ}
                self._files("sys/class/powercap/intel-rapl:0", {"energy_uj": shown}, known)
            case "hwmon":
                shown = {"in1_input": 5000, "curr1_input": round(1e6 * self._shown_w / 5000)}
                known = {"name": "ina3221", "in1_label": "VDD_IN"}
                self._files("sys/class/hwmon/hwmon0", shown, known)
            case "battery power":
                shown = {"power_now": round(1e6 * self._shown_w)}
                known = {"type": "Battery", "status": "Discharging"}
                self._files("sys/class/power_supply/BAT0", shown, known)
            case "battery charge":
                stored = round((200_000 - self._shown_j) / 36) * 10_000
                known = {"type": "Battery", "status": "Discharging"}
                self._files("sys/class/power_supply/BAT0", {"energy_now": stored}, known)

    def _files(self, below: str, values: dict[str, int], known: dict[str, str | int]) -> None:
        folder = self._folder / below
        if not folder.exists():
            folder.mkdir(parents=True)
            values = {**values, **known}  # type: ignore[dict-item]
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")

    def _source(self) -> EnergySource:
        match self._case.sensor:
            case "rapl":
                return Rapl(self._folder)
            case "hwmon":
                return Hwmon(self._folder)
            case "pmic":
                return Pmic(lambda command: self._adc())
            case "own meter":
                return _OwnMeter(lambda: self._shown_j)
        return battery(self._folder)

    def _adc(self) -> str:
        core, memory = 0.7 * self._shown_w, 0.3 * self._shown_w
        return (
            f" VDD_CORE_A current(7)={core / 0.9:.8f}A\n DDR_A current(3)={memory / 1.1:.8f}A\n"
            " VDD_CORE_V volt(15)=0.90000000V\n DDR_V volt(11)=1.10000000V\n"
            " EXT5V_V volt(24)=5.10000000V\n"
        )


class _OwnMeter(EnergySource):
    """Meter of the user."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read

    def joules(self) -> float:
        return self._read()


@dataclass(frozen=True)
class _Model:
    seconds: float
    watts: float
    drift: float

    def run(self, device: Device) -> Callable[[], None]:
        return lambda: device.spend(self.seconds * (1 + self.drift * device.passed()), self.watts)


def _model(rng: np.random.Generator, tick_s: float) -> _Model:
    """Return a model whose inference takes a tenth of a tick to a tick, or a little longer."""
    seconds = float(rng.uniform(0.1, 1.0)) * max(tick_s, 0.02)
    watts = 0.0 if rng.random() < _NO_ENERGY else float(rng.uniform(2.0, 20.0))
    return _Model(seconds, watts, float(rng.uniform(-0.05, 0.05)))


def simulate(case: Case, seed: int) -> list[Outcome]:
    """Measure the models of a case, and compare with the truth."""
    rng = np.random.default_rng([0xE5, seed])
    with tempfile.TemporaryDirectory(prefix="esm-energy-") as folder:
        device = Device(case, rng, Path(folder))
        tick_s = device.source.tick_s
        models = {number: _model(rng, tick_s) for number in range(2)}
        energy_s = case.time * plan(0.0, tick_s).needs_s
        chosen = plan(energy_s, tick_s)
        if not chosen.resolves:
            return [Outcome(case, stable=False, hopeless=True) for _ in models]
        device.begin(len(models) * energy_s + 2 * _slot_s(chosen))
        windows = take_windows(
            {number: model.run(device) for number, model in models.items()},
            device.joules,
            chosen,
            seed,
            lambda: device.now,
            device.spend,
            lambda model, share: False,
        )
    outcomes = []
    for number, model in models.items():
        found = estimate(windows, number)
        assert found is not None
        # The mean of a linear drift over the measurement.
        truth = model.seconds * (1 + model.drift / 2) * model.watts
        problem, _ = found.problem(PRECISION, device.source.resolution_j, energy_s)
        error = found.net_j - truth
        outcomes.append(
            Outcome(
                case,
                not problem,
                not model.watts or found.window_j < 20 * device.source.resolution_j,
                error / truth if truth else None,
                abs(error) <= found.half_j(),
            )
        )
    return outcomes


def _slot_s(chosen: Plan) -> float:
    return chosen.window_s + chosen.lead_s + chosen.tick_s / 2


def cases(count: int, seed: int = 0) -> list[Case]:
    """Return cases of all kinds of sensors, ticks, noises, idle loads and times."""
    rng = np.random.default_rng([0xE4, seed])

    def drawn(kinds: Sequence[object]) -> list[object]:
        """Return each kind equally often, in random order."""
        return [kinds[at % len(kinds)] for at in rng.permutation(count)]

    columns = map(drawn, (SENSORS, TICKS_S, NOISES, IDLES, TIMES))
    return [Case(*values) for values in zip(*columns, strict=True)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """Outcomes of one kind of case.

    Attributes:
        kind: Kind.
        models: Number of models.
        stable: Share with the verdict ``stable``.
        typical: Median relative error of the stable ones.
        worst: Largest relative error of the stable ones.
        above: Share of the stable ones with an error above 2 %.
        coverage: Share of the 95 % intervals that hold the truth, of all figures.
        hopeless: Number that should be unresolved.
        wrong: Number of these that are stable.
    """

    kind: str
    models: int
    stable: float
    typical: float
    worst: float
    above: float
    coverage: float
    hopeless: int
    wrong: int


def rows(found: Iterable[Outcome]) -> list[Row]:
    """Return rows for each kind of sensor, tick, noise and idle load, and for all."""
    outcomes = list(found)
    kinds: dict[str, list[Outcome]] = {}
    for each in outcomes:
        own = each.case
        for kind in (
            own.sensor,
            f"tick {1000 * own.tick_s:g} ms",
            f"noise {own.noise:.0%}",
            f"idle {own.idle}",
        ):
            kinds.setdefault(kind, []).append(each)
    groups = (SENSORS, "tick", "noise", "idle")
    ordered = sorted(kinds, key=lambda kind: (_group(kind, groups), _rank(kind)))
    return [_row(kind, kinds[kind]) for kind in ordered] + [_row("all", outcomes)]


def _group(kind: str, groups: Sequence[object]) -> int:
    word = kind.split()[0]
    return groups.index(word) if word in groups else 0


def _rank(kind: str) -> float:
    if kind in SENSORS:
        return SENSORS.index(kind)
    word = kind.split()[1]
    return IDLES.index(word) if word in IDLES else float(word.rstrip("%"))


def _row(kind: str, outcomes: Sequence[Outcome]) -> Row:
    errors = np.array([abs(o.error) for o in outcomes if o.stable and o.error is not None])
    inside = [o.inside for o in outcomes if o.inside is not None]
    hopeless = [o for o in outcomes if o.hopeless]
    some = errors if errors.size else np.array([math.nan])
    return Row(
        kind,
        len(outcomes),
        float(np.mean([o.stable for o in outcomes])),
        float(np.median(some)),
        float(some.max()),
        float((some > PRECISION).mean()),
        float(np.mean(inside)) if inside else math.nan,
        len(hopeless),
        sum(o.stable for o in hopeless),
    )


def text(found: Sequence[Row]) -> str:
    """Return a table."""
    lines = [
        "                        of stable ones: error      95 % interval   should be unresolved",
        "kind            models  stable  median  worst  >2%      coverage     count  but stable",
    ]
    lines += [
        f"{r.kind:<15} {r.models:6}  {r.stable:6.1%}  {r.typical:6.2%} {r.worst:6.2%} "
        f"{r.above:5.1%}  {r.coverage:12.1%}  {r.hopeless:8} {r.wrong:11}".replace("nan%", "  - ")
        for r in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="cases, of two models each")
    parser.add_argument("--json", type=Path, help="also write JSON to this file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcomes = [
        outcome
        for number, case in enumerate(cases(given.cases, given.seed))
        for outcome in simulate(case, 10_000 * given.seed + number)
    ]
    found = rows(outcomes)
    print(text(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
