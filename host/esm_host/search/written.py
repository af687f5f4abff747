"""Writer and reader of the files of a search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esm_host.atomic import write_json
from esm_host.errors import DatasetError
from esm_host.search.front import Floats
from esm_host.search.latency import bounded_by
from esm_host.search.problem import Candidates, Problem, quantities_of
from esm_host.search.settings import SearchFolder, SearchSettings
from esm_host.search.verify import Round, Verification
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import SearchSpace

SCHEMA_VERSION = 1


def write_front(
    folder: SearchFolder,
    settings: SearchSettings,
    front: Candidates,
    verified: Verification | None,
    problem: Problem,
    proxy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the result of a search to ``front.json`` and return it."""
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
            "at_most": _bounds(verified.known, problem.space),
            "rounds": [_round_json(each, problem.space) for each in verified.rounds],
        }
    if proxy is not None:
        result["proxy"] = proxy
    write_json(folder.front, result)
    return result


def write_rounds(folder: SearchFolder, rounds: Sequence[Round], space: SearchSpace) -> None:
    """Write all rounds so far."""
    write_json(folder.rounds, [_round_json(each, space) for each in rounds])


def read_rounds(folder: SearchFolder, problem: Problem) -> list[Round]:
    """Return the rounds that :func:`write_rounds` wrote; none if there is no file.

    Raises:
        DatasetError: the file is damaged.
    """
    try:
        entries = json.loads(folder.rounds.read_text())
        return [
            Round(
                _candidates(entry["front"], problem),
                _candidates(entry["chosen"], problem),
                entry["evaluations"],
                entry["probability"],
            )
            for entry in entries
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, ModelsError) as error:
        raise DatasetError(f"{folder.rounds} is damaged ({error}): remove it") from error


def _rows(found: Candidates, space: SearchSpace) -> list[dict[str, Any]]:
    return [
        {
            **{name: _number(values[row]) for name, values in found.values.items()},
            "key": architecture.key,
            "depth": architecture.depth,
            "architecture": architecture.to_json(),
        }
        for row, architecture in enumerate(space.decode(found.codes))
    ]


def _bounds(found: Candidates, space: SearchSpace) -> dict[str, dict[str, float | None]]:
    """Return the upper bounds of measured architectures by their keys, then by quantity."""
    names = [name for name in found.values if bounded_by(name) != name]
    return {
        architecture.key: {name: _number(found.values[name][row]) for name in names}
        for row, architecture in enumerate(space.decode(found.codes))
    }


def _number(value: float) -> float | None:
    """Return None for NaN, which JSON lacks."""
    return float(value) if np.isfinite(value) else None


def _round_json(each: Round, space: SearchSpace) -> dict[str, Any]:
    return {
        "evaluations": each.evaluations,
        "probability": each.probability,
        "front": _rows(each.front, space),
        "chosen": _rows(each.chosen, space),
    }


def _candidates(rows: Sequence[Mapping[str, Any]], problem: Problem) -> Candidates:
    codes = problem.space.encode([Architecture.from_json(row["architecture"]) for row in rows])
    names = [n for n in (rows[0] if rows else {}) if n not in ("key", "depth", "architecture")]
    if not rows:
        names = quantities_of(problem.objectives, problem.limits)
    values: dict[str, Floats] = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)
        for name in names
    }
    return problem.score(codes, values)
