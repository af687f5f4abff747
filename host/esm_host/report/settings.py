"""Settings of campaigns, timings and searches as facts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esm_host.arguments import flag
from esm_host.report.page import Fact, Facts, duration

_WITHOUT_OPTION = ("folds", "long_visits", "min_block_s", "min_rounds", "short_visits")
_NOTHING_AT_0 = ("held_out", "inter_op", "max_block_s", "precision", "spread_s")
_SHARES = ("precision", "probability")
"""Options whose values are percentages."""


def setting_facts(settings: Mapping[str, Any]) -> Facts:
    """Return each setting that has a value and an option, with its unit.

    Args:
        settings: Settings by their names in ``to_json``.
    """
    facts = []
    for name, value in settings.items():
        nothing = value is None or value is False or value in ("", [], (), {})
        if nothing or name in _WITHOUT_OPTION or (name in _NOTHING_AT_0 and not value):
            continue
        option = flag("max_runs" if name == "runs" and settings.get("precision") else name)
        facts.append(Fact(option, _text(name, value)))
    return Facts(facts)


def _text(name: str, value: Any) -> str:
    if value is True:
        return "yes"
    if name in _SHARES:
        return f"{100 * value:g} %"
    if name.endswith("_percent"):
        return f"{value:g} %"
    if name.endswith("_s"):
        return duration(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_listed(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value).replace(",", ", ") if name in ("train_on", "warm_start") else str(value)


def _listed(value: Any) -> str:
    """Return the values of an option as they are given to it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
