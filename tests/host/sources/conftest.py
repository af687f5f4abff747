"""Tables to import, campaigns, and an own place for what is imported."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder
from esm_host.dataset.benchmarks import LatencyTable
from esm_host.sampling.random import RandomSampler
from esm_host.transport.fake import FakeProfiler
from esm_models.space import Codes, SearchSpace
from esm_models.spaces import load_space
from tests.helpers import depth_bins
from tests.host.fake_campaign import SETTINGS, Log, assemble, latency

PUBLIC = Path(os.environ.get("ESM_DATA", Path(__file__).parents[3].parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM_SOURCES", str(tmp_path / "imported"))
    monkeypatch.chdir(tmp_path)


def draw(space: SearchSpace, n: int, seed: int = 0) -> Codes:
    """Codes of different architectures."""
    sampler = RandomSampler(space, depth_bins(space, 1))
    return space.encode(sampler.sample(n, np.random.default_rng(seed)))


def made_table(name: str = "boards", n: int = 60, space: str = "nasbench201") -> LatencyTable:
    """Two boards that rank alike, ``a`` and ``b``; a third, ``c``, that ranks the other way round
    and misses the first ten; accuracies."""
    codes = draw(load_space(space), n)
    rng = np.random.default_rng(1)
    size = 2 + codes.reshape(n, -1).clip(min=0).sum(axis=1)
    a = size * np.exp(rng.normal(0, 0.02, n))
    b = 3 * size * np.exp(rng.normal(0, 0.02, n))
    c = 100 / size * np.exp(rng.normal(0, 0.02, n))
    c[:10] = np.nan
    latency_ms = {"a": a, "b": b, "c": c}
    return LatencyTable(name, load_space(space), codes, latency_ms, {"toys": 50 + size})


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of 60 models on a made-up device; its space is resnet, 32 px, width x0.25."""
    return measured(tmp_path_factory.mktemp("runs") / "edge", 60)


def measured(path: Path, models: int) -> Path:
    """A campaign's folder."""
    folder = RunFolder(path)
    folder.prepare(resume=False)
    store, _, loop = assemble(
        path, FakeProfiler(latency, noise=0.01), Log(), initial=models, max_models=models
    )
    loop.run()
    store.close()
    settings = replace(SETTINGS, device="edge", resolution=32, width_mult=0.25)
    write_json(folder.settings, settings.to_json())
    return path
