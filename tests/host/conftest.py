"""A device of which the truth is known, and a database that a team shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_host.workflows import profile
from tests.helpers import undraw
from tests.host.fake_campaign import latency, number_blocks
from tests.postgres import Server, serving


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="there is no psycopg: pip install '.[postgres]'")
    with serving() as server:
        if server is None:
            pytest.skip("there is no PostgreSQL: make database installs it")
        yield server


@pytest.fixture(scope="session")
def _shared(postgres: Server) -> str:
    return postgres.database("shared")


@pytest.fixture
def shared_store(postgres: Server, _shared: str) -> Iterator[str]:
    """URL of an empty database."""
    yield _shared
    postgres.empty(_shared)


@pytest.fixture(scope="session", autouse=True)
def draw() -> Iterator[Callable[..., None]]:
    """Campaigns draw no plots: they take longer than the rest. Returns what draws them."""
    drawing = profile._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "_draw", lambda folder, run: None)
        yield drawing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Campaigns and studies draw no plots."""
    undraw(monkeypatch)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake device draws the same noise in every run."""
    number_blocks(monkeypatch)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, undrawn: None, numbered: None) -> FakeProfiler:
    """Every device is this one; campaigns on it are the same in every run, and draw no plots."""
    profiler = FakeProfiler(latency, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    return profiler
