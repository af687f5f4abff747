"""Settings of a timing, in which the latency itself is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.messages import MeasureSpec, RunOrder
from esm_protos.statistics import MIN_ROUNDS
from esm_protos.text import counted

PRECISION_PERCENT = 2.0
MAX_RUNS = 100_000
MIN_TIME_S = 1.5
"""Least time of a block: covers variations of a device, and is short enough to wait for."""
MAX_TIME_S, MAX_TIME_MORE_S = 20.0, 2.0
"""Default ``max_time_s`` for one model, and for each further one. By default, slow models take
``MIN_ROUNDS`` rounds, even if that is longer."""
WARMUP, RUNS_PER_VISIT = 10, 4
"""Runs of a visit. An interleaved model needs this many to be as fast as alone
(docs/measuring.md); a campaign, which only compares models, takes fewer."""
SESSIONS = 2
"""Sessions of each model in a block."""
_VISITS = 2 * MIN_ROUNDS
"""Visits over which few runs are spread before a visit has several."""

_ARGUMENTS = {"model_timeout_s": "timeout_s", "max_block_s": "max_time_s"}


def timing_spec(
    runs: int | None = None,
    precision_percent: float | None = None,
    max_runs: int | None = None,
    max_time_s: float | None = None,
    sessions: int | None = None,
    **others: Any,
) -> MeasureSpec:
    """Return the settings for exactly ``runs``, or for a precision within limits.

    Args:
        runs: Counted runs of each model; None to run until a precision is reached.
        precision_percent: Half-width of the 95 % interval, in percent of the latency.
        max_runs: Most counted runs of a model.
        max_time_s: Time after which no round begins, s. By default 20, plus 2 for each further
            model; longer if an interval needs more rounds.
        sessions: Sessions of each model in a block; with a precision, the least number. By
            default 2, or 1 for few runs.
        others: Further fields of :class:`MeasureSpec`.

    Raises:
        UsageError: a value is out of range, or values exclude each other.
    """
    most = runs or max_runs or MAX_RUNS
    per_visit = max(1, min(RUNS_PER_VISIT, most // _VISITS))
    together = others.get("run_order") is not RunOrder.SEQUENTIAL
    if sessions is None:
        sessions = SESSIONS if together and most >= _VISITS * SESSIONS else 1
    elif sessions > 1 and not together:
        raise UsageError(
            f"{argument('protocol')} sequential has one session of each model: leave "
            f"{argument('sessions')} out"
        )
    elif sessions > most:
        raise UsageError(
            f"{argument('sessions')} {sessions} is more than the {counted(most, 'run')} of each "
            "model"
        )
    others = {
        "warmup": WARMUP,
        "runs_per_visit": per_visit,
        "references": together,
        "sessions": sessions,
        **others,
    }
    if runs is not None:
        limits = (("precision_percent", precision_percent), ("max_runs", max_runs))
        for name, value in (*limits, ("max_time_s", max_time_s)):
            if value is not None:
                raise UsageError(
                    f"{argument('runs')} takes exactly {runs} runs: leave {argument(name)} out"
                )
        return _spec("runs", runs=runs, **others)
    if others.get("run_order") is RunOrder.SEQUENTIAL:
        raise UsageError(
            f"{argument('protocol')} sequential takes a fixed number of runs: give "
            f"{argument('runs')}"
        )
    percent = PRECISION_PERCENT if precision_percent is None else precision_percent
    if not 0 < percent < 100:
        raise UsageError(
            f"{argument('precision_percent')} {percent:g}: give percent, above 0 and below 100"
        )
    seconds = MAX_TIME_S if max_time_s is None else max_time_s
    if not seconds > 0:  # an agent takes 0 as no limit
        raise UsageError(f"{argument('max_time_s')} {seconds:g}: give seconds, more than 0")
    return _spec(
        "max_runs",
        runs=MAX_RUNS if max_runs is None else max_runs,
        precision=percent / 100,
        max_block_s=seconds,
        min_block_s=min(MIN_TIME_S, seconds),
        min_rounds=MIN_ROUNDS if max_time_s is None else 0,
        short_visits=True,
        **others,
    )


def for_models(spec: MeasureSpec, models: int, max_time_s: float | None) -> MeasureSpec:
    """Return the settings for a block with a number of models; a given time stays."""
    if not spec.precision or max_time_s is not None:
        return spec
    return replace(spec, max_block_s=MAX_TIME_S + (models - 1) * MAX_TIME_MORE_S)


def _spec(runs_name: str, **fields: Any) -> MeasureSpec:
    try:
        return MeasureSpec(**fields)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        given = runs_name if name == "runs" else _ARGUMENTS.get(name, name)
        raise UsageError(f"{argument(given)} {rest}") from error
