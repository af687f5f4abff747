"""Who is told how a campaign or a search goes on."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from esm_host.arguments import in_python
from esm_host.dataset import collect
from esm_host.extension.campaign_loop import LoopWatcher
from esm_protos.messages import Progress


class CampaignWatcher(LoopWatcher, collect.Watcher, Protocol):
    """Is told how a campaign goes on."""


class Watcher:
    """A :class:`CampaignWatcher` that cares for nothing, to be derived from."""

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
