"""Reader of a search's folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.search.costs import NetworkCost
from esm_host.search.front import Floats, nondominated
from esm_host.search.latency import LATENCY, energy_delay, measured_at_most, quantity
from esm_host.search.objectives import COUNTED, read_measure
from esm_host.search.problem import Limit, Objective, Problem, quantities_of
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_host.typed import typed
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace

INTERVAL, VERDICT = "interval_percent", "verdict"
_NO_QUANTITY = ("key", "depth", "architecture")


@dataclass(frozen=True, eq=False)
class SearchRecord:
    """Search that has ended or not, as read from its folder.

    Frames have a row per architecture with ``key``, ``architecture`` (text), ``depth`` and the
    quantities. The quantities are those of :mod:`esm_host.search.latency`,
    :mod:`esm_host.search.costs` and the user. Files are read once and never changed.

    Attributes:
        path: Folder of the search.
        settings: Settings of the search.
        runs: Campaigns, one per device.
        rounds: Rounds, as in ``rounds.json``.
        result: Content of ``front.json``; None until the search has ended.
    """

    path: Path
    settings: SearchSettings
    runs: tuple[Run, ...] = field(repr=False)
    rounds: Sequence[Mapping[str, Any]] = field(repr=False)
    result: Mapping[str, Any] | None = field(repr=False)

    @property
    def verifies(self) -> bool:
        """Whether the search measures its front."""
        return self.settings.measure > 0

    @property
    def stable(self) -> bool:
        """Whether the search ended because nothing was left to measure."""
        return bool((self.result or {}).get("stable", False))

    @property
    def devices(self) -> list[str]:
        """Prefixes of the devices' quantities; ``[""]`` for a single device."""
        return self.settings.devices

    @cached_property
    def space(self) -> SearchSpace:
        """Search space in the contexts of the search."""
        return self.runs[0].space.at(**self.settings.contexts)

    @property
    def objectives(self) -> list[Objective]:
        """Objectives, the devices' latencies first."""
        return self.settings.all_objectives

    @property
    def limits(self) -> list[Limit]:
        return self.settings.all_limits

    def front(self) -> pd.DataFrame:
        """Return the front, fastest first: measured, or predicted if nothing was to be measured.

        For a search that has not ended it is the front so far.
        """
        if self.result is not None:
            return self._frame(self.result["results"])
        measured = self.measured()
        kept = measured[measured["on_front"]].drop(columns=["excess", "round", "on_front"])
        both = [m.column(n) for m in self.settings.metrics for n in (INTERVAL, VERDICT)]
        own = [quantity(n, device) for device in self.devices for n in both]
        return kept.drop(columns=own).sort_values(self.objectives[0].name, ignore_index=True)

    def predicted(self) -> pd.DataFrame:
        """Return the front that the first round predicted."""
        return self._frame(self.rounds[0]["front"] if self.rounds else [])

    believed = predicted
    """Former name of :meth:`predicted`."""

    def chosen(self) -> pd.DataFrame:
        """Return the architectures chosen to be measured, with the predictions of their round.

        Further columns are ``round`` (from 1) and ``probability``, the probability that the latency
        is at most :data:`~esm_host.search.latency.AT_MOST`. With a probability below a half the
        latency is at most that bound, too.
        """
        frames = [
            self._frame(each["chosen"]).assign(round=number, probability=each["probability"])
            for number, each in enumerate(self.rounds, start=1)
        ]
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            return self._frame([]).assign(round=0, probability=np.nan)
        return pd.concat(frames, ignore_index=True)

    def measured(self) -> pd.DataFrame:
        """Return what all devices measured in the contexts of the search, also for the campaigns.

        Further columns:
            ``excess``: Violation of the limits (:class:`~esm_host.search.problem.Candidates`),
                infinite where a quantity is unknown.
            ``round``: Round that chose the architecture; 0 for the campaigns' own.
            ``on_front``: Whether the architecture is on the front.
            ``interval_percent``: Half-width of the 95 % confidence interval; prefixed like the
                latency.
            ``verdict``: Verdict on the measurement; prefixed like the latency.
        """
        return self._measured.copy()

    def searches(self) -> pd.DataFrame:
        """Return a row per round.

        Columns:
            ``round``: Number of the round, from 1.
            ``scored``: Number of scored architectures.
            ``front``: Number of architectures on the predicted front.
            ``fresh``: Number of these that were not measured before.
            ``chosen``: Number of these that were chosen to be measured.
            ``probability``: Probability of the latencies' bounds.
        """
        measured = self.measured()
        known = set(measured.loc[measured["round"] == 0, "key"])
        rows = []
        for number, each in enumerate(self.rounds, start=1):
            keys = [row["key"] for row in each["front"]]
            fresh = sum(key not in known for key in keys)
            counts = each["evaluations"], len(keys), fresh, len(each["chosen"])
            rows.append((number, *counts, each["probability"]))
            known |= {row["key"] for row in each["chosen"]}
        names = ["round", "scored", "front", "fresh", "chosen", "probability"]
        return pd.DataFrame(rows, columns=names)

    # Parts of the frames

    @cached_property
    def _measured(self) -> pd.DataFrame:
        rounds = {
            row["key"]: number
            for number, each in enumerate(self.rounds, start=1)
            for row in each["chosen"]
        }
        metrics, share = self.settings.metrics, self.settings.probability
        known = [_known(run, rounds, share, metrics) for run in self.runs]
        by_key = dict(zip(known[0]["key"], known[0]["value"], strict=True))
        frames = [
            own.drop(columns="value").rename(
                columns=lambda n, d=device: n if n == "key" else quantity(n, d)
            )
            for own, device in zip(known, self.devices, strict=True)
        ]
        frame = reduce(lambda one, other: one.merge(other, on="key"), frames)
        written = pd.DataFrame.from_dict((self.result or {}).get("at_most", {}), orient="index")
        # As the search had them, which later measurements do not change.
        for name in written.columns.intersection(frame.columns):
            own = frame["key"].map(written[name]).astype(float)
            frame[name] = own.fillna(frame[name])
        architectures = [by_key[key] for key in frame["key"]]
        codes = self.space.encode(architectures)
        there = self.space.in_contexts(codes)
        architectures = [each for each, kept in zip(architectures, there, strict=True) if kept]
        frame, codes = frame[there].reset_index(drop=True), codes[there]
        for device in self.devices:
            frame = frame.assign(**energy_delay(frame, device))
        frame = frame.assign(
            architecture=[a.to_text() for a in architectures],
            depth=[a.depth for a in architectures],
            round=[rounds.get(key, 0) for key in frame["key"]],
            **NetworkCost(self.space)(codes),
            **self._own(frame["key"], codes),
        )
        frame["excess"] = self._excess(codes, frame)
        if self.result is None or not self.verifies:
            return frame.assign(on_front=best(frame, self.objectives))
        return frame.assign(on_front=frame["key"].isin(r["key"] for r in self.result["results"]))

    def _own(self, keys: pd.Series, codes: Codes) -> dict[str, Floats]:
        """Return the quantities that the user brings.

        Values that the search did not write are computed again; NaN where this fails.
        """
        found = {}
        for spec in self.settings.objective_specs:
            if not spec.source:
                continue
            written = {row["key"]: row[spec.name] for row in self._rows}
            values = np.array([written.get(key) for key in keys], dtype=float)
            left = np.isnan(values)
            with suppress(EsmError, ModelsError):
                values[left] = read_measure(spec, self.space)(codes[left])[spec.name]
            found[spec.name] = values
        return found

    def _excess(self, codes: Codes, frame: pd.DataFrame) -> Floats:
        names = quantities_of(self.objectives, self.limits)
        values = {name: frame[name].to_numpy(float) for name in names}
        return Problem(self.space, (), self.objectives, self.limits).score(codes, values).excess

    @property
    def _rows(self) -> list[Mapping[str, Any]]:
        rounds = [row for each in self.rounds for row in (*each["front"], *each["chosen"])]
        return [*rounds, *(self.result or {}).get("results", [])]

    def _frame(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        both = [n for m in self.settings.metrics for n in (m.key, m.at_most)]
        measured = [quantity(n, device) for device in self.devices for n in both]
        asked = quantities_of(self.objectives, self.limits)
        others = [name for row in rows[:1] for name in row if name not in _NO_QUANTITY]
        others = others if rows else [*COUNTED.values()]
        names = dict.fromkeys([*measured, *asked, *others])
        return pd.DataFrame(
            {
                "key": pd.Series([row["key"] for row in rows], dtype=object),
                "architecture": pd.Series(
                    [Architecture.from_json(row["architecture"]).to_text() for row in rows],
                    dtype=object,
                ),
                "depth": pd.Series([row["depth"] for row in rows], dtype=int),
            }
            | {name: pd.Series([row[name] for row in rows], dtype=float) for name in names}
        )


def best(frame: pd.DataFrame, objectives: Sequence[Objective]) -> NDArray[np.bool_]:
    """Return which rows are on the Pareto front of those within the limits, ``(n,)``.

    Args:
        frame: Objectives' quantities and ``excess``.
        objectives: Objectives of the search.
    """
    kept: NDArray[np.bool_] = (frame["excess"] == 0).to_numpy(copy=True)
    kept[kept] = nondominated(costs(frame[kept], objectives))
    return kept


def costs(frame: pd.DataFrame, objectives: Sequence[Objective]) -> Floats:
    """Return the objectives' quantities, less is better, ``(n, objectives)``."""
    columns = [(-1 if o.maximise else 1) * frame[o.name].to_numpy(float) for o in objectives]
    return np.stack(columns, axis=1)


def holds_search(path: Path) -> bool:
    """Return whether a folder is that of a search, not of a campaign."""
    try:
        return "runs" in json.loads(SearchFolder(path).settings.read_text())
    except (OSError, ValueError, TypeError):
        return False


@typed
def load_search(path: str | Path) -> SearchRecord:
    """Open the folder of a search for reading.

    A campaign is looked for beside the search first, then at the path it had. By default a search
    lies in its campaign's folder.

    Raises:
        UsageError: there is no search, or it has no result yet.
        DatasetError: it is damaged, or a campaign is missing.
    """
    folder = SearchFolder(Path(path))
    settings = folder.read_settings()
    runs = tuple(load_run(_campaign(folder.path, Path(run))) for run in settings.runs)
    result = _read(folder.front)
    rounds = _read(folder.rounds) or []
    if result is None and not rounds:
        named = " ".join(settings.runs)
        raise UsageError(
            f"{folder.path} holds no front yet: continue with esm-host search {named} "
            f"-o {folder.path} --resume"
        )
    record = SearchRecord(folder.path, settings, runs, rounds, result)
    try:
        record.front(), record.predicted(), record.chosen(), record.searches()
    except (KeyError, TypeError, ValueError, ModelsError) as error:
        raise DatasetError(f"{folder.path} is damaged ({error}): restore it from a copy") from error
    return record


def _known(
    run: Run, chosen: Collection[str], probability: float, metrics: Sequence[CampaignMetric]
) -> pd.DataFrame:
    """Return the measurements of a campaign's device, including reference models.

    Measurements after those of this search are left out. Columns: ``key``, ``value`` (the
    architecture), ``latency_ms``, ``latency_at_most_ms``, ``interval_percent``, ``verdict``; of
    another metric the same, such as ``energy_verdict``.
    """
    views = [(metric, run.of(metric.name).figures()) for metric in metrics]
    figures = views[0][1]
    frame = pd.DataFrame(
        {
            "key": [a.key for a in figures.architectures],
            "value": figures.architectures,
            "round": figures.rounds,
        }
    )
    for metric, own in views:
        frame[metric.key] = own.latency_ms
        frame[metric.at_most] = measured_at_most(own.latency_ms, own.interval, probability)
        frame[metric.column(INTERVAL)] = 100 * own.interval
        frame[metric.column(VERDICT)] = own.verdicts
    # Searches number their rounds downwards: smaller numbers belong to later searches.
    last = frame.loc[frame["key"].isin(chosen), "round"].min()
    frame = frame[~(frame["round"] < last)].drop(columns="round")
    return frame.dropna(subset=LATENCY, ignore_index=True)


def _campaign(search: Path, run: Path) -> Path:
    beside = search.absolute().parent.parent / run.name
    for path in (beside, run):
        if RunFolder(path).settings.exists():
            same = run.exists() and run.samefile(path)
            return run if same else path
    raise DatasetError(f"{search} needs the campaign {run}, which is missing: put it back there")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}): restore it from a copy") from error
