"""A search from beginning to end: put together from its parts, run, and written to its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esm_host.atomic import write_bytes, write_json
from esm_host.dataset.collect import Collector
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.dataset.table import Dataset, Measurements
from esm_host.encoding.base import Encoder
from esm_host.errors import DatasetError, RunExistsError, UsageError
from esm_host.extension.settings import Settings
from esm_host.folder import RunFolder
from esm_host.measuring import PATIENCE_S, connected, measuring
from esm_host.predictors import make_predictor
from esm_host.run import Run, load_run
from esm_host.search.anchors import most_alike
from esm_host.search.costs import NetworkCost
from esm_host.search.front import Floats
from esm_host.search.latency import LATENCY, Latency, measured_at_most
from esm_host.search.method import SearchMethod
from esm_host.search.methods import make_method
from esm_host.search.objectives import read_measure
from esm_host.search.problem import Found, Measure, Objective, Problem
from esm_host.search.promise import Promise
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_host.search.verify import Round, Verified, verified_search
from esm_host.watcher import CampaignWatcher, Watcher
from esm_models.architecture import Architecture
from esm_models.space import Codes, SearchSpace
from esm_protos.messages import Protocol

SCHEMA_VERSION = 1
_ANCHORS = 5
_OTHER_PACE = 1.1


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search came to.

    Attributes:
        front: architectures on it, with their quantities: measured, or predicted where nothing
            was to be measured.
        closest: of what keeps not all limits, what comes closest, where the front is empty.
        verified: how it was measured; None if it was not.
        problem: that was posed.
    """

    front: Found
    closest: Found
    verified: Verified | None
    problem: Problem
    result: dict[str, Any]


def run_search(
    settings: SearchSettings,
    output: str | Path,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
    wait: bool = True,
    watcher: CampaignWatcher | None = None,
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> Searched:
    """Searches, and measures what it finds with the campaigns' devices; broken off, it goes on
    from what was measured.

    What is measured is kept in the campaigns' stores, and their predictors learn from it.

    Args:
        output: folder, which is made.
        resume: go on with the folder's search, whose settings these are.
        patience_s: how long to wait for a device that went away.
        wait: False gives up on a device that somebody else uses.
        on_round: is told all rounds before what the last one chose is measured.

    Raises:
        UsageError: something that was asked for makes no sense.
        DatasetError: a campaign or the folder is unusable.
        BusyError: somebody else uses a campaign's folder, or a device and ``wait`` is False.
        DeviceError: a device is gone or refuses.
    """
    folder, watcher = SearchFolder(Path(output)), watcher or Watcher()
    runs = [load_run(path) for path in settings.runs]
    if settings.measure:  # a team's campaign may have gone on elsewhere
        for run in runs:
            RunFolder(run.path).prepare(resume=True)
        runs = [load_run(path) for path in settings.runs]
    space = _common_space(runs)
    names = _names(runs)
    own = [read_measure(wish, space) for wish in settings.wishes if wish.source]
    method = make_method(settings.method, space, settings.seed)

    def problem(latencies: Sequence[Measure]) -> Problem:
        prefixes = [f"{name}." if name else "" for name in names]
        objectives: list[Objective] = []
        for wish in settings.wishes:
            objectives += wish.objectives([f"{prefix}{LATENCY}" for prefix in prefixes])
        measures = [*latencies, NetworkCost(space), *own]
        return Problem(space, measures, objectives, settings.all_limits(prefixes))

    _prepare(folder, settings, resume)
    with ExitStack() as stack:
        sites: list[_CampaignSite] = []
        for run, name in zip(runs, names, strict=True):
            run_folder = RunFolder(run.path)
            encoder = run_folder.encoder(run.settings, space)
            if settings.measure:
                found = stack.enter_context(
                    connected(run.settings, space, True, patience_s, wait, watcher.warn)
                )
                stack.enter_context(run_folder.locked())
                parts = stack.enter_context(
                    measuring(run.settings, run_folder, space, found, watcher)
                )
                store, measurements, collector = parts.store, parts.measurements, parts.collector
            else:
                store = stack.enter_context(closing(run_folder.open_store()))
                measurements, collector = Measurements(store, run.settings.spec), None
            sites.append(
                _CampaignSite(
                    run, run_folder, encoder, store, measurements, collector, watcher, name
                )
            )
        if settings.measure:
            searched = _verified(settings, folder, problem, sites, method, on_round)
            for site in sites:
                site.keep_predictor()
        else:
            posed = problem([site.latency(settings.probability) for site in sites])
            outcome = method.search(posed)
            searched = outcome.front, outcome.closest, None, posed
    front, closest, verified, posed = searched
    result = _result(settings, front, verified, posed)
    write_json(folder.front, result)
    return Searched(front, closest, verified, posed, result)


def _verified(
    settings: SearchSettings,
    folder: SearchFolder,
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[_CampaignSite],
    method: SearchMethod,
    on_round: Callable[[Sequence[Round]], None] | None,
) -> tuple[Found, Found, Verified | None, Problem]:
    posed = problem([site.latency(settings.probability) for site in sites])

    def keep(rounds: Sequence[Round]) -> None:
        write_json(folder.rounds, [_round_json(each, posed.space) for each in rounds])
        if on_round is not None:
            on_round(rounds)

    verified = verified_search(
        problem,
        sites,
        method,
        settings.measure,
        settings.batch,
        settings.probability,
        past=_past(folder, posed),
        on_round=keep,
    )
    return verified.front, verified.closest, verified, posed


class _CampaignSite:
    """A campaign's device: what it measured is known, and its predictor tells the rest."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        encoder: Encoder,
        store: Store,
        measurements: Measurements,
        collector: Collector | None,
        watcher: CampaignWatcher,
        name: str,
    ) -> None:
        self._run = run
        self._folder = folder
        self._space = run.space
        self._encoder = encoder
        self._store = store
        self._measurements = measurements
        self._collector = collector
        self._watcher = watcher
        self._name = name

    @property
    def _settings(self) -> Settings:
        return self._run.settings

    def known(self) -> Codes:
        planned = [a for each in self._store.plan().values() for a in each]
        return self._space.encode(planned)

    def latency(self, probability: float) -> Measure:
        figures = self._measurements.figures()
        return Latency(
            self._promise(self._measurements.dataset()),
            self._space.encode(figures.architectures),
            figures.latency_ms,
            measured_at_most(figures.latency_ms, figures.interval, probability),
            probability,
            self._name,
        )

    def measure(self, codes: Codes) -> None:
        assert self._collector is not None
        plan = self._store.plan()
        there = {a.key for each in plan.values() for a in each}
        fresh = [a for a in self._space.decode(codes) if a.key not in there]
        if fresh:
            number = min(plan) - 1
            self._store.add_plan(number, fresh)
            self._watcher.on_round(REFERENCE_ROUND - number, len(fresh))
        for number in sorted((n for n in self._store.plan() if n < REFERENCE_ROUND), reverse=True):
            # What is there already costs nothing.
            self._collector.collect(number, self._anchors)
        self._check_pace()

    def _anchors(self, chosen: Sequence[Architecture]) -> list[Architecture]:
        """Of the campaign's own architectures those that are most like the chosen ones. None where
        models run one after the other, for then they have no pace in common."""
        if self._settings.spec.protocol is not Protocol.INTERLEAVED:
            return []
        figures = self._measurements.figures()
        trusted = self._settings.trusted_verdicts
        own = [
            architecture
            for architecture, number, verdict in zip(
                figures.architectures, figures.rounds, figures.verdicts, strict=True
            )
            if number > REFERENCE_ROUND and verdict in trusted
        ]
        rows = most_alike(self._encoder.encode(own), self._encoder.encode(chosen), _ANCHORS)
        return [own[row] for row in rows.tolist()]

    def _check_pace(self) -> None:
        """Warns where the device is not what it was in the campaign."""
        table = self._measurements.table()
        paces = zip(table.blocks, table.quality.factors.tolist(), strict=True)
        now = np.median([pace for block, pace in paces if block.round < REFERENCE_ROUND])
        if not 1 / _OTHER_PACE < now < _OTHER_PACE:
            self._watcher.warn(
                f"{self._settings.device} takes {now:.2f} times as long as in most of the campaign "
                f"{self._run.path}: that is divided out by what networks of the campaign take now, "
                "but not every network is affected alike; search again in a quieter hour"
            )

    def keep_predictor(self) -> None:
        """The campaign's, which has learnt from what was measured since."""
        exported = self._fitted(self._measurements.dataset()).to_onnx()
        if exported is not None:
            write_bytes(self._folder.predictor_onnx, exported)
        self._folder.share()

    def _fitted(self, dataset: Dataset) -> Any:
        settings = self._settings
        trusted = dataset.only(settings.trusted_verdicts)
        predictor = make_predictor(settings.predictor, self._encoder, settings.seed)
        return predictor.fit(
            self._encoder.encode(trusted.architectures),
            trusted.latency_ms,
            trusted.weights(settings.weights),
        )

    def _promise(self, dataset: Dataset) -> Promise:
        judged = self._run.measurements()
        return Promise(
            self._fitted(dataset),
            self._encoder,
            judged["latency_ms"].to_numpy(),
            judged["predicted_ms"].to_numpy(),
        )


def _common_space(runs: Sequence[Run]) -> SearchSpace:
    first, *others = runs
    for run in runs:
        if run.result is None:
            raise UsageError(
                f"{run.path} has no predictor yet: esm-host profile --run {run.path} --resume "
                "makes it"
            )
    for other in others:
        if other.space.code_shape != first.space.code_shape or (
            other.space.name != first.space.name
            or other.space.resolutions != first.space.resolutions
        ):
            raise UsageError(
                f"{first.path} and {other.path} are of different search spaces: a search is of one"
            )
    return first.space


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells the devices' quantities apart; nothing where there is one."""
    if len(runs) == 1:
        return [""]
    names = [run.path.name for run in runs]
    if len(set(names)) < len(names):
        raise UsageError("two campaigns' folders have one name: rename one of them")
    return names


def _prepare(folder: SearchFolder, settings: SearchSettings, resume: bool) -> None:
    if resume:
        known = folder.read_settings()
        if known != settings:
            raise UsageError(f"{folder.path} holds another search: give --resume alone")
        return
    if folder.settings.exists():
        raise RunExistsError(
            f"{folder.path} holds a search: --resume goes on with it; or give another --output"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder.path} cannot be made: {error.strerror}") from error
    write_json(folder.settings, settings.to_json())


# What is written


def _result(
    settings: SearchSettings, front: Found, verified: Verified | None, problem: Problem
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "settings": settings.to_json(),
        "objectives": [{"name": o.name, "maximise": o.maximise} for o in problem.objectives],
        "limits": [str(limit) for limit in problem.limits],
        "verified": verified is not None,
        "results": _rows(front, problem.space),
    }
    if verified is not None:
        result |= {
            "stable": verified.stable,
            "measured": verified.measured,
            "rounds": [_round_json(each, problem.space) for each in verified.rounds],
        }
    return result


def _rows(found: Found, space: SearchSpace) -> list[dict[str, Any]]:
    return [
        {
            **{name: _number(values[row]) for name, values in found.values.items()},
            "key": architecture.key,
            "depth": architecture.depth,
            "architecture": architecture.to_json(),
        }
        for row, architecture in enumerate(space.decode(found.codes))
    ]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _round_json(each: Round, space: SearchSpace) -> dict[str, Any]:
    return {
        "evaluations": each.evaluations,
        "probability": each.probability,
        "front": _rows(each.front, space),
        "chosen": _rows(each.chosen, space),
    }


def _past(folder: SearchFolder, problem: Problem) -> list[Round]:
    try:
        entries = json.loads(folder.rounds.read_text())
        return [
            Round(
                _found(entry["front"], problem),
                _found(entry["chosen"], problem),
                entry["evaluations"],
                entry["probability"],
            )
            for entry in entries
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder.rounds} is damaged ({error}): remove it") from error


def _found(rows: Sequence[Mapping[str, Any]], problem: Problem) -> Found:
    codes = problem.space.encode([Architecture.from_json(row["architecture"]) for row in rows])
    names = [n for n in (rows[0] if rows else {}) if n not in ("key", "depth", "architecture")]
    if not rows:
        names = list({o.name for o in problem.objectives} | {li.name for li in problem.limits})
    values: dict[str, Floats] = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)
        for name in names
    }
    return problem.score(codes, values)
