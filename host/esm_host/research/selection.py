"""What selecting architectures by predicted latency costs: simulated predictors and real ones.

The simulations are those of Laube et al. (What to expect of hardware metric predictors in NAS,
section 5, Fig. 3 and 4): latencies standardised over the table, deviations of a given standard
deviation added, selected by that, judged by the truth. Real predictors run the same course.
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
from esm_host.predictors import PREDICTORS, make_predictor, predictor_class
from esm_host.predictors.base import Predictor
from esm_host.research.deviation import TYPICAL, Deviations

Floats = NDArray[np.float64]

SIMULATION = "simulation"
"""In place of a predictor's name."""

_SIZES = (100, 500, 1000, 5000, 10000)
_TAU_DRAWS = 20
_AT_ONCE = 250_000  # numbers; what fits a processor's cache


@dataclass(frozen=True)
class Pair:
    """One data set: a device's latencies and a task's accuracies."""

    device: str
    task: str

    def __str__(self) -> str:
        return f"{self.device}:{self.task}"


@dataclass(frozen=True)
class SelectionSettings:
    """What to simulate and what to train.

    Attributes:
        sizes: numbers of candidates, drawn anew for each simulation; None: 100, 500, 1000, 5000 and
            10000, where the table has more. From the whole table is always selected, too.
        stds: of the simulated deviations, in standard deviations of the table's latencies.
        simulations: of every pair, size and standard deviation.
        predictors: names and numbers of training samples; candidates are all others.
        repeats: of every predictor and pair, with other training samples and another seed.
        encoding: of all predictors; None: each predictor's own.
        deviations: shape of the simulated ones.
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
    """The rows of a table of which a pair's numbers are both known, by falling accuracy.

    Attributes:
        rows: of the table, ``(n,)``; so are all others.
        latency: standardised.
    """

    def __init__(self, table: LatencyTable, pair: Pair) -> None:
        latency_ms = table.latency_of(pair.device)
        if pair.task not in table.accuracy_percent:
            known = ", ".join(table.accuracy_percent)
            raise UsageError(
                f"{table.name} has no accuracies of '{pair.task}': choose {known}"
                if known
                else f"{table.name} has no accuracies: choose a table that has, as NAS-Bench-201's"
            )
        accuracy = table.accuracy_percent[pair.task]
        rows = np.flatnonzero(np.isfinite(latency_ms) & np.isfinite(accuracy))
        if len(rows) < 2 or not np.ptp(latency_ms[rows]) > 0:
            raise UsageError(f"{pair} has no two latencies that differ: nothing is to be selected")
        self.rows = rows[by_falling_accuracy(accuracy[rows])]
        self.latency_ms = latency_ms[self.rows]
        self.accuracy_percent = accuracy[self.rows]
        self.mean_ms, self.std_ms = float(self.latency_ms.mean()), float(self.latency_ms.std())
        self.latency = self.standardised(self.latency_ms)

    def standardised(self, latency_ms: Floats) -> Floats:
        return (latency_ms - self.mean_ms) / self.std_ms

    def candidates(self, chosen: NDArray[np.integer] | slice = slice(None)) -> CandidateSets:
        """A set of these rows, by their numbers ``(n,)``, or several, ``(k, n)``."""
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
    """Simulates and trains as the settings say, one part after another unless within
    ``with esm_host.parallel.parallel(...)``.

    Args:
        progress: is told a line after each part of the work.

    Returns:
        One row per pair and setting:

        - ``device``, ``task``, ``source``: ``"simulation"`` or a predictor's name;
        - ``train_samples``: 0 of simulations;
        - ``candidates``: how many were to be selected from. Where that is the table's length, those
          are missing of which the pair has no latency or accuracy, and those that were trained on;
        - ``deviation_std``: of predictions, where the table's latencies have 1;
        - ``kendall_tau``: between predicted and true latencies of all;
        - ``selections``: how many what follows is the mean of. ``selected``, ``verified``,
          ``mra_all_percent``, ``mra_verified_percent`` and ``hypervolume``
          (:class:`esm_host.evaluation.selection.SelectionResults`), each with its standard deviation in
          ``NAME_sd``. The hypervolume is in standard deviations of latency times accuracy as a
          share, and reaches to the table's slowest architecture;
        - ``best_hypervolume``: of the front of the whole table.

    Raises:
        UsageError: there is no such device, task, predictor or encoding, or there are not enough
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
    parts: list[_Simulated | _Trained] = []
    for pair, own in data.items():
        parts.append(_Simulated(pair, own, sizes, settings))
        for name, samples in settings.predictors:
            parts.append(_trained(table, own, pair, name, samples, settings, encoded))
    found: dict[int, list[dict[str, object]]] = {}
    with closing(map_unordered(_numbered, enumerate(parts))) as finished:
        for number, rows in finished:
            found[number] = rows
            progress(f"[{len(found)}/{len(parts)}] {parts[number]}")
    return pd.DataFrame([row for number in sorted(found) for row in found[number]])


def simulate(
    table: LatencyTable, pair: Pair, size: int, settings: SelectionSettings
) -> pd.DataFrame:
    """Selections by simulated predictors among so many candidates: rows of
    :func:`run_selection`, one per standard deviation."""
    return pd.DataFrame(_Simulated(pair, _Data(table, pair), [size], settings).rows())


def from_predictor(
    table: LatencyTable, pair: Pair, name: str, train_samples: int, settings: SelectionSettings
) -> pd.DataFrame:
    """Selections by a real predictor among all that it was not trained on: one row of
    :func:`run_selection`."""
    data = _Data(table, pair)
    return pd.DataFrame(_trained(table, data, pair, name, train_samples, settings, {}).rows())


def example(
    table: LatencyTable, pair: Pair, std: float = 0.5, settings: SelectionSettings | None = None
) -> pd.DataFrame:
    """One simulated selection among all (Laube et al., Fig. 3).

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
    """The numbers of :func:`run_selection` averaged over pairs, per ``source``,
    ``train_samples``, ``candidates`` and, of simulations, ``deviation_std``."""
    of_std = results["deviation_std"].where(results["source"] == SIMULATION, -1.0)
    keys = [results[name] for name in ("source", "train_samples", "candidates")]
    numbers = results.select_dtypes("number").columns.difference(["train_samples", "candidates"])
    means = results.groupby([*keys, of_std.rename("std")], sort=False)[list(numbers)].mean()
    return means.reset_index().drop(columns="std")


def at_tau(results: pd.DataFrame, kendall_tau: float, column: str) -> float:
    """What simulated selections among all candidates come to at a rank correlation, averaged over
    pairs and interpolated; NaN outside of what was simulated."""
    frame = _by_tau(results, int(results["candidates"].max()))
    taus = frame["kendall_tau"]
    return float(np.interp(kendall_tau, taus, frame[column], left=np.nan, right=np.nan))


def tau_worth(results: pd.DataFrame, size: int) -> float:
    """The rank correlation at which selecting among all by predictions gains the hypervolume that
    selecting among ``size`` by perfect measurements does, averaged over pairs and interpolated;
    NaN outside of what was simulated."""
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
class _Simulated:
    """A part of the work: a pair's selections by simulated predictors."""

    pair: Pair
    data: _Data
    sizes: Sequence[int]
    settings: SelectionSettings

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return f"{self.pair}: {self.settings.simulations} simulations with {sizes} candidates each"

    def rows(self) -> list[dict[str, object]]:
        taus = _taus(self.data, self.pair, self.settings)
        return [row for size in self.sizes for row in self._rows(size, taus)]

    def _rows(self, size: int, taus: Sequence[float]) -> list[dict[str, object]]:
        data, pair, settings = self.data, self.pair, self.settings
        outcomes: list[list[SelectionResults]] = [[] for _ in settings.stds]
        for candidates, deviations in _drawn(
            data, size, settings, _generator(settings, pair, size)
        ):
            for std, found in zip(settings.stds, outcomes, strict=True):
                found.append(candidates.select(candidates.latency + std * deviations))
        return [
            _row(data, pair, SIMULATION, 0, size, std, tau, found)
            for std, tau, found in zip(settings.stds, taus, outcomes, strict=True)
        ]


def _drawn(
    data: _Data, size: int, settings: SelectionSettings, rng: np.random.Generator
) -> Iterator[tuple[CandidateSets, Floats]]:
    """Candidates and deviations, a few simulations at a time. All standard deviations are tried
    on the same, so that what differs between them is their doing."""
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
    """Per standard deviation, over all rows, the mean of a few draws: they hardly differ."""
    rng = _generator(settings, pair, 0)
    draws = [settings.deviations.draw(rng, data.latency.shape) for _ in range(_TAU_DRAWS)]
    return [
        float(np.mean([kendalltau(data.latency, data.latency + std * each)[0] for each in draws]))
        for std in settings.stds
    ]


@dataclass(frozen=True, eq=False)
class _Trained:
    """A part of the work: a pair's selections by a real predictor.

    Attributes:
        predictors: one per repeat, not fitted.
        encodings: of the whole table, ``(n, d)``.
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
        return f"{self.pair}: {self.name} with {self.samples} samples, {times}"

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


def _trained(
    table: LatencyTable,
    data: _Data,
    pair: Pair,
    name: str,
    samples: int,
    settings: SelectionSettings,
    encoded: _Encoded,
) -> _Trained:
    """Encodes what ``encoded`` does not hold yet: parts of the work have all that they need."""
    encoding = settings.encoding or PREDICTORS[name].encoding
    if encoding not in encoded:
        encoder = make_encoder(encoding, table.space)
        encoded[encoding] = encoder, encoder.encode_codes(table.codes)
    encoder, encodings = encoded[encoding]
    seeds = range(settings.seed, settings.seed + settings.repeats)
    predictors = [make_predictor(name, encoder, seed) for seed in seeds]
    return _Trained(pair, data, name, samples, predictors, encodings, settings)


def _numbered(part: tuple[int, _Simulated | _Trained]) -> tuple[int, list[dict[str, object]]]:
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
