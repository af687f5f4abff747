"""Cost of selecting architectures by predicted latency, for simulated and real predictors.

The simulations are those of Laube et al. (What to expect of hardware metric predictors in NAS,
section 5, Fig. 3 and 4). Latencies are standardised over the table. Deviations of a given standard
deviation are added. Architectures are selected by the result and judged by the truth. Real
predictors are judged in the same way.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau

from esm_host.dataset.benchmarks import LatencyTable
from esm_host.encoding import make_encoder
from esm_host.encoding.base import Encoder
from esm_host.errors import UsageError
from esm_host.evaluation.selection import (
    CandidateSets,
    SelectionResults,
    by_falling_accuracy,
    pareto_front,
)
from esm_host.parallel import map_unordered
from esm_host.predictors import entry, make_predictor, predictor_class
from esm_host.predictors.base import Predictor
from esm_host.research.deviation import TYPICAL, Deviations
from esm_protos.nearest import unknown
from esm_protos.text import counted

Floats = NDArray[np.float64]

SIMULATION = "simulation"
"""Source of simulated predictions, in place of a predictor's name."""

_SIZES = (100, 500, 1000, 5000, 10000)
_TAU_DRAWS = 20
_AT_ONCE = 250_000  # numbers that fit a processor's cache


@dataclass(frozen=True)
class Pair:
    """Latencies of a device and accuracies of a task."""

    device: str
    task: str

    def __str__(self) -> str:
        return f"{self.device}:{self.task}"


@dataclass(frozen=True)
class SelectionSettings:
    """Settings of simulations and of real predictors.

    Attributes:
        sizes: Numbers of candidates, drawn anew for each simulation, besides the whole table. None
            for 100, 500, 1000, 5000 and 10000, up to the size of the table.
        stds: Standard deviations of the simulated deviations, relative to that of the table's
            latencies.
        simulations: Number of simulations per pair, size and standard deviation.
        predictors: Names and numbers of training samples; all others are candidates.
        repeats: Number of repeats per predictor and pair, with other training samples and another
            seed.
        encoding: Encoding of all predictors; None for each predictor's own.
        seed: Random seed.
        deviations: Shape of the simulated deviations.
    """

    sizes: tuple[int, ...] | None = None
    stds: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(11))
    simulations: int = 1000
    predictors: tuple[tuple[str, int], ...] = ()
    repeats: int = 5
    encoding: str | None = None
    seed: int = 0
    deviations: Deviations = TYPICAL


class _Data:
    """Rows of a table with both values of a pair, by falling accuracy.

    Attributes:
        rows: Rows of the table, ``(n,)``.
        latency_ms: Latencies, ms, ``(n,)``.
        accuracy_percent: Accuracies, in percent, ``(n,)``.
        latency: Standardised latencies, ``(n,)``.
    """

    def __init__(self, table: LatencyTable, pair: Pair) -> None:
        latency_ms = table.latency_of(pair.device)
        if pair.task not in table.accuracy_percent:
            known = table.accuracy_percent
            raise UsageError(
                unknown("task", pair.task, known, where=f"of {table.name}")
                if known
                else f"{table.name} has no accuracies: choose another table, as NAS-Bench-201's"
            )
        accuracy = table.accuracy_percent[pair.task]
        rows = np.flatnonzero(np.isfinite(latency_ms) & np.isfinite(accuracy))
        if len(rows) < 2 or not np.ptp(latency_ms[rows]) > 0:
            raise UsageError(f"{pair} has fewer than two different latencies: choose another")
        self.rows = rows[by_falling_accuracy(accuracy[rows])]
        self.latency_ms = latency_ms[self.rows]
        self.accuracy_percent = accuracy[self.rows]
        self.mean_ms, self.std_ms = float(self.latency_ms.mean()), float(self.latency_ms.std())
        self.latency = self.standardised(self.latency_ms)

    def standardised(self, latency_ms: Floats) -> Floats:
        return (latency_ms - self.mean_ms) / self.std_ms

    def candidates(self, chosen: NDArray[np.integer] | slice = slice(None)) -> CandidateSets:
        """Return the set of rows with these numbers ``(n,)``, or several sets, ``(k, n)``."""
        latency, accuracy = self.latency[chosen], self.accuracy_percent[chosen]
        reference = float(self.latency.max())
        return CandidateSets(np.atleast_2d(latency), np.atleast_2d(accuracy), reference)

    @cached_property
    def best_hypervolume(self) -> float:
        return float(self.candidates().hypervolume()[0])


def run_selection(
    table: LatencyTable,
    pairs: Sequence[Pair],
    settings: SelectionSettings,
    progress: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Run the simulations and train the predictors.

    Parts run one by one, unless within ``with esm_host.parallel.parallel(...)``.

    Args:
        table: Latencies and accuracies.
        pairs: Devices and tasks.
        settings: Settings.
        progress: Function called with a line after each part.

    Returns:
        One row per pair and setting:

        - ``device``, ``task``, ``source``: ``source`` is ``"simulation"`` or a predictor's name.
        - ``train_samples``: Number of training samples; 0 for simulations.
        - ``candidates``: Number of candidates. Where it is the table's length, rows without a value
          and training samples are not candidates.
        - ``deviation_std``: Standard deviation of the predictions' deviations, relative to that of
          the table's latencies.
        - ``kendall_tau``: Kendall's tau of predicted and true latencies of all.
        - ``selections``: Number of selections. The following are means over them:
          ``selected``, ``verified``, ``mra_all_percent``, ``mra_verified_percent`` and
          ``hypervolume`` (:class:`esm_host.evaluation.selection.SelectionResults`), each with its
          standard deviation in ``NAME_sd``. The unit of the hypervolume is a standard deviation of
          latency times accuracy as a share; it ends at the slowest architecture.
        - ``best_hypervolume``: Hypervolume of the front of the whole table.

    Raises:
        UsageError: there is no such device, task, predictor or encoding, or there are too few
            architectures.
    """
    if not pairs or not settings.stds or settings.simulations < 1 or settings.repeats < 1:
        raise UsageError("give one pair, deviation, simulation and repeat at least")
    if min(settings.stds) < 0:
        raise UsageError("a standard deviation is not negative: give 0 or more")
    data = {pair: _Data(table, pair) for pair in pairs}
    sizes = _sizes(table, settings)
    if settings.encoding is not None:
        make_encoder(settings.encoding, table.space)
    for name, samples in settings.predictors:
        predictor_class(name)
        known = min(len(each.rows) for each in data.values())
        if not 1 <= samples < known:
            raise UsageError(f"{name}:{samples}: give 1 to {known - 1} training samples")
    encoded: _Encoded = {}
    parts: list[_SimulationPart | _PredictorPart] = []
    for pair, own in data.items():
        parts.append(_SimulationPart(pair, own, sizes, settings))
        for name, samples in settings.predictors:
            parts.append(_predictor_part(table, own, pair, name, samples, settings, encoded))
    found: dict[int, list[dict[str, object]]] = {}
    with closing(map_unordered(_run_part, enumerate(parts))) as finished:
        for number, rows in finished:
            found[number] = rows
            progress(f"[{len(found)}/{len(parts)}] {parts[number]}")
    return pd.DataFrame([row for number in sorted(found) for row in found[number]])


def simulate(
    table: LatencyTable, pair: Pair, size: int, settings: SelectionSettings
) -> pd.DataFrame:
    """Return selections by simulated predictors among this number of candidates.

    The rows are those of :func:`run_selection`, one per standard deviation.
    """
    return pd.DataFrame(_SimulationPart(pair, _Data(table, pair), [size], settings).rows())


def from_predictor(
    table: LatencyTable, pair: Pair, name: str, train_samples: int, settings: SelectionSettings
) -> pd.DataFrame:
    """Return the selection by a real predictor among all rows outside its training set.

    The row is that of :func:`run_selection`.
    """
    data = _Data(table, pair)
    return pd.DataFrame(
        _predictor_part(table, data, pair, name, train_samples, settings, {}).rows()
    )


def example(
    table: LatencyTable, pair: Pair, std: float = 0.5, settings: SelectionSettings | None = None
) -> pd.DataFrame:
    """Return one simulated selection among all rows (Laube et al., Fig. 3).

    Returns:
        One row per architecture: ``latency_ms``, ``predicted_ms``, ``accuracy_percent``, and
            whether it is ``optimal`` (on the true front), ``selected`` and ``verified``.
    """
    settings = settings or SelectionSettings()
    data = _Data(table, pair)
    rng = _generator(settings, pair, len(table))
    predicted = data.latency + settings.deviations.draw(rng, data.latency.shape, std)
    accuracy = data.accuracy_percent
    selected = pareto_front(predicted, accuracy)
    verified = np.zeros_like(selected)
    verified[selected] = pareto_front(data.latency[selected], accuracy[selected])
    return pd.DataFrame(
        {
            "latency_ms": data.latency_ms,
            "predicted_ms": data.mean_ms + data.std_ms * predicted,
            "accuracy_percent": accuracy,
            "optimal": pareto_front(data.latency, accuracy),
            "selected": selected,
            "verified": verified,
        }
    )


def averaged(results: pd.DataFrame) -> pd.DataFrame:
    """Return the means of :func:`run_selection` over pairs.

    There is a row per ``source``, ``train_samples``, ``candidates`` and, for simulations,
    ``deviation_std``.
    """
    of_std = results["deviation_std"].where(results["source"] == SIMULATION, -1.0)
    keys = [results[name] for name in ("source", "train_samples", "candidates")]
    numbers = results.select_dtypes("number").columns.difference(["train_samples", "candidates"])
    means = results.groupby([*keys, of_std.rename("std")], sort=False)[list(numbers)].mean()
    return means.reset_index().drop(columns="std")


def at_tau(results: pd.DataFrame, kendall_tau: float, column: str) -> float:
    """Return a column of simulated selections among all rows at a rank correlation.

    It is averaged over pairs and interpolated; NaN outside the simulated range.
    """
    frame = _by_tau(results, int(results["candidates"].max()))
    taus = frame["kendall_tau"]
    return float(np.interp(kendall_tau, taus, frame[column], left=np.nan, right=np.nan))


def tau_worth(results: pd.DataFrame, size: int) -> float:
    """Return the rank correlation that is worth perfect measurements of ``size`` candidates.

    At this correlation, selecting among all rows by prediction has the same hypervolume. It is
    averaged over pairs and interpolated; NaN outside the simulated range.
    """
    perfect = _by_tau(results, size)
    goal = perfect.loc[perfect["deviation_std"] == 0, "hypervolume"]
    frame = _by_tau(results, int(results["candidates"].max())).sort_values("hypervolume")
    if not len(goal):
        return float("nan")
    volumes = frame["hypervolume"]
    taus = frame["kendall_tau"]
    return float(np.interp(goal.iloc[0], volumes, taus, left=np.nan, right=np.nan))


def _by_tau(results: pd.DataFrame, size: int) -> pd.DataFrame:
    frame = averaged(results)
    chosen = (frame["source"] == SIMULATION) & (frame["candidates"] == size)
    return frame[chosen].sort_values("kendall_tau")


def _sizes(table: LatencyTable, settings: SelectionSettings) -> list[int]:
    if settings.sizes is None:
        sizes = {size for size in _SIZES if size < len(table)}
    else:
        sizes = set(settings.sizes)
        for size in sizes:
            if not 1 <= size <= len(table):
                raise UsageError(f"{size} candidates: {table.name} has 1 to {len(table)}")
    return sorted(sizes | {len(table)})


def _generator(settings: SelectionSettings, pair: Pair, number: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, zlib.crc32(str(pair).encode()), number])


@dataclass(frozen=True, eq=False)
class _SimulationPart:
    """Selections of a pair by simulated predictors."""

    pair: Pair
    data: _Data
    sizes: Sequence[int]
    settings: SelectionSettings

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        runs = counted(self.settings.simulations, "simulation")
        return f"{self.pair}: {runs} with {sizes} candidates each"

    def rows(self) -> list[dict[str, object]]:
        taus = _taus(self.data, self.pair, self.settings)
        return [row for size in self.sizes for row in self._rows(size, taus)]

    def _rows(self, size: int, taus: Sequence[float]) -> list[dict[str, object]]:
        data, pair, settings = self.data, self.pair, self.settings
        outcomes: list[list[SelectionResults]] = [[] for _ in settings.stds]
        for candidates, deviations in _draw(data, size, settings, _generator(settings, pair, size)):
            for std, found in zip(settings.stds, outcomes, strict=True):
                found.append(candidates.select(candidates.latency + std * deviations))
        return [
            _row(data, pair, SIMULATION, 0, size, std, tau, found)
            for std, tau, found in zip(settings.stds, taus, outcomes, strict=True)
        ]


def _draw(
    data: _Data, size: int, settings: SelectionSettings, rng: np.random.Generator
) -> Iterator[tuple[CandidateSets, Floats]]:
    """Yield candidates and deviations, a few simulations at a time.

    All standard deviations use the same draws, so that differences are due to them.
    """
    total = len(data.rows)
    step = max(1, _AT_ONCE // total)
    for begin in range(0, settings.simulations, step):
        count = min(step, settings.simulations - begin)
        if size < total:
            chosen = rng.random((count, total)).argpartition(size, axis=1)[:, :size]
            candidates = data.candidates(np.sort(chosen, axis=1))  # stays by falling accuracy
        else:
            candidates = data.candidates()
        yield candidates, settings.deviations.draw(rng, (count, min(size, total)))


def _taus(data: _Data, pair: Pair, settings: SelectionSettings) -> list[float]:
    """Return the mean Kendall's tau of a few draws over all rows, per standard deviation."""
    rng = _generator(settings, pair, 0)
    draws = [settings.deviations.draw(rng, data.latency.shape) for _ in range(_TAU_DRAWS)]
    return [
        float(np.mean([kendalltau(data.latency, data.latency + std * each)[0] for each in draws]))
        for std in settings.stds
    ]


@dataclass(frozen=True, eq=False)
class _PredictorPart:
    """Selections of a pair by a real predictor.

    Attributes:
        predictors: Unfitted predictors, one per repeat.
        encodings: Encodings of the whole table, ``(n, d)``.
    """

    pair: Pair
    data: _Data
    name: str
    samples: int
    predictors: Sequence[Predictor]
    encodings: NDArray[np.float32]
    settings: SelectionSettings

    def __str__(self) -> str:
        times = f"{self.settings.repeats} times"
        return f"{self.pair}: {self.name} with {counted(self.samples, 'sample')}, {times}"

    def rows(self) -> list[dict[str, object]]:
        data, settings = self.data, self.settings
        encodings = self.encodings[data.rows]
        rng = _generator(settings, self.pair, self.samples)
        trained = [rng.choice(len(data.rows), self.samples, replace=False) for _ in self.predictors]
        type(self.predictors[0]).fit_all(
            self.predictors, [(encodings[rows], data.latency_ms[rows]) for rows in trained]
        )
        outcomes, stds, taus = [], [], []
        for predictor, rows in zip(self.predictors, trained, strict=True):
            others = np.setdiff1d(np.arange(len(data.rows)), rows)
            candidates = data.candidates(others)
            predicted = data.standardised(predictor.predict(encodings[others]))
            outcomes.append(candidates.select(predicted[None]))
            stds.append(float(np.std(predicted - candidates.latency[0])))
            taus.append(float(kendalltau(candidates.latency[0], predicted)[0]))
        means = float(np.mean(stds)), float(np.mean(taus))
        total = len(self.encodings)
        return [_row(data, self.pair, self.name, self.samples, total, *means, outcomes)]


_Encoded = dict[str, tuple[Encoder, NDArray[np.float32]]]


def _predictor_part(
    table: LatencyTable,
    data: _Data,
    pair: Pair,
    name: str,
    samples: int,
    settings: SelectionSettings,
    encoded: _Encoded,
) -> _PredictorPart:
    """Return a part of the work, and add missing encodings to ``encoded``."""
    encoding = settings.encoding or entry(name).encoding
    if encoding not in encoded:
        encoder = make_encoder(encoding, table.space)
        encoded[encoding] = encoder, encoder.encode_codes(table.codes)
    encoder, encodings = encoded[encoding]
    seeds = range(settings.seed, settings.seed + settings.repeats)
    predictors = [make_predictor(name, encoder, seed) for seed in seeds]
    return _PredictorPart(pair, data, name, samples, predictors, encodings, settings)


def _run_part(
    part: tuple[int, _SimulationPart | _PredictorPart],
) -> tuple[int, list[dict[str, object]]]:
    return part[0], part[1].rows()


def _row(
    data: _Data,
    pair: Pair,
    source: str,
    train_samples: int,
    candidates: int,
    deviation_std: float,
    kendall_tau: float,
    outcomes: Sequence[SelectionResults],
) -> dict[str, object]:
    row: dict[str, object] = {
        "device": pair.device,
        "task": pair.task,
        "source": source,
        "train_samples": train_samples,
        "candidates": candidates,
        "deviation_std": deviation_std,
        "kendall_tau": kendall_tau,
        "selections": sum(len(each.selected) for each in outcomes),
    }
    for field in fields(SelectionResults):
        values = np.concatenate([getattr(each, field.name) for each in outcomes])
        row[field.name] = float(values.mean())
        row[f"{field.name}_sd"] = float(values.std())
    return row | {"best_hypervolume": data.best_hypervolume}
