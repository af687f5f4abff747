"""Watchers of campaigns and searches: objects whose methods are called as they go on."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from esm_host.arguments import argument, in_python
from esm_host.dataset import collect
from esm_host.errors import UsageError
from esm_host.extension.campaign_loop import LoopWatcher
from esm_protos.messages import Progress


class CampaignWatcher(LoopWatcher, collect.Watcher, Protocol):
    """Is told how a campaign goes on."""


class Watcher:
    """Watcher that cares for nothing, to derive from.

    Example::

        class Progress(esm_host.Watcher):
            def on_evaluated(self, result):
                print(result["accuracy_percent"])
    """

    def on_round(self, number: int, architectures: int) -> None:
        """A round begins; so many architectures are planned for it."""

    def on_progress(self, progress: Progress, device: str) -> None:
        """Of a block; ``device`` is empty where there is one only."""

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        """A block is kept; ``pending`` models of the round are not measured yet."""

    def on_remeasure(self, blocks: int) -> None:
        """That many blocks failed quality control and are measured again."""

    def on_compare(self, begins: bool) -> None:
        """The devices of a group are compared from now on, or have been."""

    def on_training(self) -> None:
        """Predictors are trained on what was measured so far."""

    def on_evaluated(self, result: dict[str, Any]) -> None:
        """A round is over; ``result`` is its entry in the campaign's ``result["rounds"]``."""

    def warn(self, text: str) -> None:
        """Something speaks against the result, or a device went away; a warning of Python's."""
        warnings.warn(in_python(text), stacklevel=2)


def complete(watcher: object | None) -> CampaignWatcher:
    """Return a watcher with all methods: an object's own, and for the others those of Watcher.

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
            f"{', '.join(names)}: give it one, or derive it from esm_host.Watcher"
        )
    completed = Watcher()
    vars(completed).update(own)
    return completed
