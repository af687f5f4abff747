"""Changed settings of a resumed campaign that had no effect, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esm_host.arguments import argument
from esm_host.extension.campaign_loop import Outcome
from esm_host.extension.settings import Settings
from esm_protos.text import counted

_OF_SPEC = "load_timeout_s"
_OF_MEASURING = (
    *("device", "max_models", "verify", "budget_s", "group_tolerance_percent"),
    _OF_SPEC,
)
"""Settings that only matter while a campaign measures; one is of the spec."""
_NOTHING_LEFT = "nothing is left to measure"


def without_effect(
    stored: Settings,
    settings: Settings,
    outcome: Outcome,
    *,
    checked: int,
    is_measured: bool,
    is_group: bool,
) -> Iterator[str]:
    """Yield one line for each changed setting that had no effect, with marked names.

    Args:
        stored: Settings before the campaign was resumed.
        settings: Settings of the resumed campaign.
        outcome: Outcome of the resumed campaign.
        checked: Number of models of the check.
        is_measured: Whether the resumed campaign measured anything.
        is_group: Whether the campaign has several devices.
    """
    changed = set(_changed(stored, settings))
    unchecked = _without_check(settings, outcome, checked)
    by_budget = settings.budget_s is not None and settings.named_budget in unchecked
    # The budget limits the check until it is raised, however often the campaign is resumed.
    if unchecked and ("verify" in changed or (by_budget and not is_measured)):
        yield f"{_named(settings, 'verify')} has no effect: {unchecked}"
    limits = by_budget or _used_up(settings, outcome)
    if "budget_s" in changed and not (is_measured or limits):
        cure = ""
        if outcome.converged:
            cure = f"; {argument('target_accuracy_percent')} 100 uses all of it"
        yield f"{_named(settings, 'budget_s')} has no effect: {outcome.reason}{cure}"
    limited = outcome.reason.startswith(argument("max_models"))
    if "max_models" in changed and not (is_measured or limited):
        yield f"{_named(settings, 'max_models')} has no effect: {outcome.reason}"
    if "group_tolerance_percent" in changed and not (is_group and is_measured):
        reason = _NOTHING_LEFT if is_group else "the campaign has a single device"
        yield f"{_named(settings, 'group_tolerance_percent')} has no effect: {reason}"
    if _OF_SPEC in changed and not is_measured:
        yield f"{_named(settings, _OF_SPEC)} has no effect: {_NOTHING_LEFT}"


def without_effect_yet(stored: Settings, settings: Settings) -> Iterator[str]:
    """Yield one line for each changed setting that a campaign without a device cannot use."""
    for name in _changed(stored, settings):
        yield (
            f"{_named(settings, name)} has no effect yet: {argument('finish')} measures nothing; "
            "the next resume uses it"
        )


def _changed(stored: Settings, settings: Settings) -> list[str]:
    return [name for name in _OF_MEASURING if _value(stored, name) != _value(settings, name)]


def _value(settings: Settings, name: str) -> Any:
    return getattr(settings.spec if name == _OF_SPEC else settings, name)


def _named(settings: Settings, name: str) -> str:
    if name == "budget_s" and settings.budget_s is not None:
        return settings.named_budget
    return f"{argument(name)} {_value(settings, name)}"


def _used_up(settings: Settings, outcome: Outcome) -> bool:
    return settings.budget_s is not None and outcome.reason.startswith(settings.named_budget)


def _without_check(settings: Settings, outcome: Outcome, checked: int) -> str:
    """Return why the check has another size than requested; empty if it has this size."""
    if checked == settings.verify:
        return ""
    if checked > settings.verify:
        return f"the check has {counted(checked, 'model')} already"
    if _used_up(settings, outcome) or (outcome.converged and settings.budget_s is not None):
        return f"{settings.named_budget} leaves too little device time; give more"
    if outcome.converged:
        return "the search space has no more architectures"
    return f"{outcome.reason}, and only a reached target is checked"
