"""A whole campaign on a fake device, in a fraction of a second per round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from esm_host.dataset.collect import Collector
from esm_host.dataset.cost import share_of_blocks
from esm_host.dataset.lanes import Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.extension.campaign_loop import CampaignLoop
from esm_host.extension.loop import Loop
from esm_host.extension.settings import Settings
from esm_host.extension.training import Learner
from esm_host.predictors.base import Predictor
from esm_host.sampling.random import RandomSampler
from esm_host.transport.base import Profiler
from esm_models.spaces import load_space
from esm_protos.messages import MeasureSpec, Model, Progress

SPACE = load_space("resnet", resolution=32, width_mult=0.25)
SETTINGS = Settings(
    device="fake",
    initial=40,
    step=20,
    bins=4,
    predictor="mlp",
    weights="equal",
    block_size=10,
    max_models=200,
    verify=0,
    sampling="balanced",
    spec=MeasureSpec(runs=12),
)


def number_blocks(patch: pytest.MonkeyPatch, first: int = 0) -> None:
    """Number a campaign's blocks from ``first`` on: a fake draws its noise from their ids."""
    numbers = count(first)
    made = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(numbers):032x}"))
    patch.setattr("esm_host.dataset.lanes.uuid", made)


def latency(model: Model) -> float:
    """The larger the graph, the slower: a latency that depends on depth alone."""
    return model.size_bytes / 1e4


class ByDepth(Predictor):
    """The mean latency of the nearest depth among the training samples."""

    def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weights: np.ndarray) -> None:
        depth = encodings.sum(axis=1)
        self.depths_ = np.unique(depth)
        self.means_ = np.array([latency_ms[depth == d].mean() for d in self.depths_])

    def _predict(self, encodings: np.ndarray) -> np.ndarray:
        distance = np.abs(encodings.sum(axis=1)[:, None] - self.depths_)
        result: np.ndarray = self.means_[distance.argmin(axis=1)]
        return result


@dataclass
class Log:
    """Watches and remembers; ``on_block_do`` may break the campaign off."""

    blocks: list[str] = field(default_factory=list)
    remeasured: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    on_block_do: Callable[[], None] = lambda: None

    warnings: list[str] = field(default_factory=list)

    def on_progress(self, progress: Progress, device: str) -> None: ...

    def on_compare(self, begins: bool) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        self.blocks.append(block_id)
        self.on_block_do()

    def on_remeasure(self, blocks: int) -> None:
        self.remeasured += blocks

    def on_round(self, number: int, architectures: int) -> None: ...

    def on_check(self, architectures: int) -> None:
        self.checks.append(architectures)

    def on_training(self) -> None: ...

    def on_evaluated(self, result: dict[str, Any]) -> None:
        self.rounds.append(result)


def assemble(
    tmp_path: Path,
    devices: Profiler | Mapping[str, Profiler],
    log: Log,
    make_predictor: Callable[[], Predictor] = ByDepth,
    **changes: Any,
) -> tuple[Store, Collector, CampaignLoop]:
    """A campaign over the store in ``tmp_path``, new or gone on with, on a device or a group."""
    named = devices if isinstance(devices, Mapping) else {"fake": devices}
    settings = replace(SETTINGS, **changes)
    store = Store(tmp_path / "store.sqlite")
    bins = settings.depth_bins(SPACE)
    if REFERENCE_ROUND not in store.plan():
        references = RandomSampler(SPACE, bins).sample(
            settings.references, np.random.default_rng(99)
        )
        store.add_plan(REFERENCE_ROUND, references)
    measurements = Measurements(store, settings.spec)
    collector = Collector(
        store,
        measurements,
        [Member(name, profiler) for name, profiler in named.items()],
        SPACE,
        store.plan()[REFERENCE_ROUND],
        settings,
        log,
    )
    loop = Loop(
        SPACE,
        settings,
        learner=Learner(settings.encoder(SPACE), lambda member: make_predictor(), settings),
        seconds=lambda latency_ms: share_of_blocks(store, settings.spec).seconds(latency_ms),
    )
    campaign = CampaignLoop(loop, settings, store, measurements, collector, log)
    return store, collector, campaign
