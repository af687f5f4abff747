"""Watchers of campaigns and searches."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from esm_host.arguments import argument, in_python
from esm_host.campaign.estimate import Estimate
from esm_host.dataset import collect
from esm_host.errors import UsageError
from esm_host.extension.campaign_loop import LoopWatcher
from esm_protos.messages import Progress


class CampaignWatcher(LoopWatcher, collect.Watcher, Protocol):
    """Receiver of the events of a campaign."""

    def on_estimate(self, estimate: Estimate) -> None:
        """Report the estimated device time of a campaign, new or resumed."""


class Watcher:
    """Watcher that ignores every event; derive from it and override methods.

    Example::

        class Progress(esm_host.Watcher):
            def on_evaluated(self, result):
                print(result["accuracy_percent"])
    """

    def on_estimate(self, estimate: Estimate) -> None:
        """Report the estimated device time of a campaign, new or resumed."""

    def on_round(self, number: int, architectures: int) -> None:
        """Report that a round begins, and its number of planned architectures."""

    def on_check(self, architectures: int) -> None:
        """Report that a round begins that checks the predictor on random architectures."""

    def on_progress(self, progress: Progress, device: str) -> None:
        """Report the progress of a block; ``device`` is empty for a single device."""

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        """Report a stored block; ``pending`` models of the round are not yet measured."""

    def on_remeasure(self, blocks: int) -> None:
        """Report the number of blocks that failed quality control and are measured again."""

    def on_compare(self, begins: bool) -> None:
        """Report that the comparison of a group's devices begins, or has ended."""

    def on_training(self) -> None:
        """Report that predictors are trained on the measurements so far."""

    def on_evaluated(self, result: dict[str, Any]) -> None:
        """Report that a round ended; ``result`` is its entry in ``result["rounds"]``."""

    def warn(self, text: str) -> None:
        """Issue a Python warning about the result or a lost device."""
        warnings.warn(in_python(text), stacklevel=2)


def hears(watcher: CampaignWatcher, event: str) -> bool:
    """Return whether a completed watcher has its own method for an event."""
    own = getattr(watcher, event)
    return getattr(own, "__func__", own) is not getattr(Watcher, event)


def complete(watcher: object | None) -> CampaignWatcher:
    """Return a watcher with all methods; missing ones come from :class:`Watcher`.

    Raises:
        UsageError: the object has none of the methods.
    """
    if watcher is None or isinstance(watcher, Watcher):
        return watcher or Watcher()
    names = [name for name in vars(Watcher) if not name.startswith("_")]
    own = {name: getattr(watcher, name) for name in names if hasattr(watcher, name)}
    if not own:
        raise UsageError(
            f"{argument('watcher')} {type(watcher).__name__} has none of the methods "
            f"{', '.join(names)}: add one, or derive the class from esm_host.Watcher"
        )
    # Its exceptions stay as they are: a program may end a campaign by one of its own.
    completed = Watcher()
    vars(completed).update(own)
    return completed
