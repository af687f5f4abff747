"""A search's folder, read: what it believed, what its campaigns measured, and what is left."""

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
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.search.costs import NetworkCost
from esm_host.search.front import Floats, nondominated
from esm_host.search.latency import AT_MOST, LATENCY, measured_at_most, quantity
from esm_host.search.objectives import COUNTED, read_measure
from esm_host.search.problem import Limit, Objective, Problem, asked_about
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace

INTERVAL, VERDICT = "interval_percent", "verdict"
_NO_QUANTITY = ("key", "depth", "architecture")


@dataclass(frozen=True, eq=False)
class SearchRecord:
    """A search, finished or not; read once, when it is first asked for, and never changed.

    Frames have a row per architecture: ``key``, ``architecture`` (as text), ``depth``, and its
    quantities by name (:mod:`esm_host.search.latency`, :mod:`esm_host.search.costs`, and the
    user's own).

    Attributes:
        settings: that it was asked for with.
        runs: the campaigns, one per device.
        rounds: of searching and measuring, as ``rounds.json`` has them.
        result: what ``front.json`` holds; None until the search has come to an end.
    """

    path: Path
    settings: SearchSettings
    runs: tuple[Run, ...] = field(repr=False)
    rounds: Sequence[Mapping[str, Any]] = field(repr=False)
    result: Mapping[str, Any] | None = field(repr=False)

    @property
    def verifies(self) -> bool:
        """Whether it was to measure what it finds."""
        return self.settings.measure > 0

    @property
    def stable(self) -> bool:
        """Whether it ended because nothing was left to measure."""
        return bool((self.result or {}).get("stable", False))

    @property
    def devices(self) -> list[str]:
        """What tells the devices' quantities apart: ``""`` where there is one."""
        return self.settings.devices

    @property
    def space(self) -> SearchSpace:
        return self.runs[0].space

    @property
    def objectives(self) -> list[Objective]:
        """The devices' latencies first."""
        return self.settings.all_objectives

    @property
    def limits(self) -> list[Limit]:
        return self.settings.all_limits

    def front(self) -> pd.DataFrame:
        """What is best, from the fastest on: as measured, or as predicted where nothing was to be
        measured; of a search that has not ended, what is best so far."""
        if self.result is not None:
            return self._frame(self.result["results"])
        measured = self.measured()
        kept = measured[measured["on_front"]].drop(columns=["excess", "round", "on_front"])
        own = [quantity(n, device) for device in self.devices for n in (INTERVAL, VERDICT)]
        return kept.drop(columns=own).sort_values(self.objectives[0].name, ignore_index=True)

    def believed(self) -> pd.DataFrame:
        """The front that the first search believed in."""
        return self._frame(self.rounds[0]["front"] if self.rounds else [])

    def chosen(self) -> pd.DataFrame:
        """What was chosen to be measured, as predicted just before, with ``round`` (from 1) and
        the ``probability`` with which its latency was predicted to be at most
        :data:`~esm_host.search.latency.AT_MOST`. Below a half the latency is that as well."""
        frames = [
            self._frame(each["chosen"]).assign(round=number, probability=each["probability"])
            for number, each in enumerate(self.rounds, start=1)
        ]
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            return self._frame([]).assign(round=0, probability=np.nan)
        return pd.concat(frames, ignore_index=True)

    def measured(self) -> pd.DataFrame:
        """Everything that all devices have measured, the campaigns' own and the search's: besides
        its quantities ``excess``, by how much limits are broken as
        :class:`~esm_host.search.problem.Found` has it (infinite where a quantity is not known);
        ``round``, of the search that chose it, 0 of the campaigns' own; ``on_front``; and of each
        device, named like its latency, ``interval_percent`` (half-width of the 95 % interval) and
        ``verdict``."""
        return self._measured.copy()

    def searches(self) -> pd.DataFrame:
        """A row per round: ``round`` (from 1), architectures ``scored``, how many were on its
        ``front``, how many of these were ``fresh``, not measured before, and were ``chosen``, and
        the ``probability`` asked of latencies."""
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

    # What the frames are made of

    @cached_property
    def _measured(self) -> pd.DataFrame:
        rounds = {
            row["key"]: number
            for number, each in enumerate(self.rounds, start=1)
            for row in each["chosen"]
        }
        known = [_known(run, rounds, self.settings.probability) for run in self.runs]
        by_key = dict(zip(known[0]["key"], known[0]["value"], strict=True))
        frames = [
            own.drop(columns="value").rename(
                columns=lambda n, d=device: n if n == "key" else quantity(n, d)
            )
            for own, device in zip(known, self.devices, strict=True)
        ]
        frame = reduce(lambda one, other: one.merge(other, on="key"), frames)
        architectures = [by_key[key] for key in frame["key"]]
        codes = self.space.encode(architectures)
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
        """Quantities that the user brings: told again of what the search did not write down, and
        NaN where they can no longer be told."""
        found = {}
        for wish in self.settings.wishes:
            if not wish.source:
                continue
            told = {row["key"]: row[wish.name] for row in self._rows}
            values = np.array([told.get(key) for key in keys], dtype=float)
            left = np.isnan(values)
            with suppress(EsmError, ModelsError):
                values[left] = read_measure(wish, self.space)(codes[left])[wish.name]
            found[wish.name] = values
        return found

    def _excess(self, codes: Codes, frame: pd.DataFrame) -> Floats:
        names = asked_about(self.objectives, self.limits)
        values = {name: frame[name].to_numpy(float) for name in names}
        return Problem(self.space, (), self.objectives, self.limits).score(codes, values).excess

    @property
    def _rows(self) -> list[Mapping[str, Any]]:
        rounds = [row for each in self.rounds for row in (*each["front"], *each["chosen"])]
        return [*rounds, *(self.result or {}).get("results", [])]

    def _frame(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        latencies = [quantity(n, device) for device in self.devices for n in (LATENCY, AT_MOST)]
        asked = asked_about(self.objectives, self.limits)
        told = [name for row in rows[:1] for name in row if name not in _NO_QUANTITY]
        told = told if rows else [*COUNTED.values()]
        names = dict.fromkeys([*latencies, *asked, *told])
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
    """Which rows keep the limits and are beaten by no other that does, ``(n,)``.

    Args:
        frame: with the objectives' quantities and ``excess``.
    """
    kept: NDArray[np.bool_] = (frame["excess"] == 0).to_numpy(copy=True)
    kept[kept] = nondominated(costs(frame[kept], objectives))
    return kept


def costs(frame: pd.DataFrame, objectives: Sequence[Objective]) -> Floats:
    """The objectives' quantities, less is better, ``(n, objectives)``."""
    columns = [(-1 if o.maximise else 1) * frame[o.name].to_numpy(float) for o in objectives]
    return np.stack(columns, axis=1)


def holds_search(path: Path) -> bool:
    """Whether a folder is that of a search, and not of a campaign."""
    try:
        return "runs" in json.loads(SearchFolder(path).settings.read_text())
    except (OSError, ValueError, TypeError):
        return False


def load_search(path: str | Path) -> SearchRecord:
    """Opens a search's folder for reading. Its campaigns are looked for beside it (a search lies
    in its campaign's folder if nothing else was said), and then where they were.

    Raises:
        UsageError: there is no search, or it has found nothing yet.
        DatasetError: it is damaged, or a campaign is gone.
    """
    folder = SearchFolder(Path(path))
    settings = folder.read_settings()
    runs = tuple(load_run(_campaign(folder.path, Path(run))) for run in settings.runs)
    result = _read(folder.front)
    rounds = _read(folder.rounds) or []
    if result is None and not rounds:
        named = " ".join(settings.runs)
        raise UsageError(
            f"{folder.path} holds no front yet: esm-host search {named} -o {folder.path} --resume "
            "goes on"
        )
    record = SearchRecord(folder.path, settings, runs, rounds, result)
    try:
        record.front(), record.believed(), record.chosen(), record.searches()
    except (KeyError, TypeError, ValueError, ModelsError) as error:
        raise DatasetError(f"{folder.path} is damaged ({error}): restore it from a copy") from error
    return record


def _known(run: Run, chosen: Collection[str], probability: float) -> pd.DataFrame:
    """What a campaign's device measured until it had these, reference models included: ``key``,
    the architecture as ``value``, ``latency_ms``, ``latency_at_most_ms``, ``interval_percent`` and
    ``verdict``."""
    figures = run.figures()
    at_most_ms = measured_at_most(figures.latency_ms, figures.interval, probability)
    frame = pd.DataFrame(
        {
            "key": [a.key for a in figures.architectures],
            "value": figures.architectures,
            "round": figures.rounds,
            LATENCY: figures.latency_ms,
            AT_MOST: at_most_ms,
            INTERVAL: 100 * figures.interval,
            VERDICT: figures.verdicts,
        }
    )
    # Searches count their rounds downwards: what is below is another's, which came later.
    last = frame.loc[frame["key"].isin(chosen), "round"].min()
    frame = frame[~(frame["round"] < last)].drop(columns="round")
    return frame.dropna(subset=LATENCY, ignore_index=True)


def _campaign(search: Path, run: Path) -> Path:
    beside = search.absolute().parent.parent / run.name
    for path in (beside, run):
        if RunFolder(path).settings.exists():
            same = run.exists() and run.samefile(path)
            return run if same else path
    raise DatasetError(f"{search} is of the campaign {run}, which is gone: put it back there")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}): restore it from a copy") from error
