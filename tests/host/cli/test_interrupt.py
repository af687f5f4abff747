"""Ctrl-C while models are timed: what was measured is kept, and marked as cut short."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app
from esm_host.cli.progress import DeviceLines
from esm_models.spaces import load_space
from esm_protos.messages import Progress, State
from tests.helpers import smallest

UNLIMITED = ("--precision", 0.001, "--max-time", 120)


@pytest.fixture(scope="module")
def agent() -> Iterator[str]:
    server = AgentServer("127.0.0.1", 0)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    path = tmp_path / "model.onnx"
    path.write_bytes(space.build(smallest(space)))
    return path


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Python's own, whatever the tests run in."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(state: State) -> Callable[[str, Progress], None]:
    """Return what sends one SIGINT when a device says so."""
    sent: list[Progress] = []

    def told(device: str, progress: Progress) -> None:
        if progress.state is state and not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    return told


@pytest.fixture
def interrupted(agent: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def time(state: State, *options: object) -> Result:
        told = interrupt_at(state)
        monkeypatch.setattr(DeviceLines, "__call__", lambda lines, *rest: told(*rest))
        return CliRunner().invoke(app, ["time", str(model), "--device", agent, *map(str, options)])

    return time


def test_what_was_measured_is_kept_and_marked(
    interrupted: Callable[..., Result], agent: str, tmp_path: Path
) -> None:
    out, csv = tmp_path / "cut.json", tmp_path / "cut.csv"
    result = interrupted(State.MEASURING, *UNLIMITED, "--json", out, "--csv", csv)
    assert result.exit_code == 130, result.output
    assert "press Ctrl-C again to stop at once" in result.stderr
    assert "model.onnx" in result.stdout
    assert "cut short by an interrupt" in result.stdout
    data = json.loads(out.read_text())
    (entry,) = data["results"]
    assert entry["runs"] > 0
    assert data["context"]["devices"][agent]["interrupted"] is True
    assert pd.read_csv(csv)["interrupted"].tolist() == [True]

    later = CliRunner().invoke(app, ["compare", str(out), str(_copied(out))])
    assert f"{out} was cut short by an interrupt" in later.stderr


def _copied(path: Path) -> Path:
    other = path.with_name("other.json")
    other.write_text(path.read_text())
    return other


@pytest.mark.parametrize(
    ("state", "options"),
    [
        (State.QUEUED, UNLIMITED),
        (State.MEASURING, ("--protocol", "sequential", "--runs", 1_000_000)),
    ],
)
def test_nothing_measured_is_nothing_kept(
    interrupted: Callable[..., Result], tmp_path: Path, state: State, options: tuple[object, ...]
) -> None:
    out = tmp_path / "cut.json"
    result = interrupted(state, *options, "--json", out)
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert not out.exists()


def test_in_python_the_interrupt_has_the_timing(agent: str, model: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        esm_host.time(
            model,
            agent,
            precision_percent=0.001,
            max_time_s=120,
            on_progress=interrupt_at(State.MEASURING),
        )
    assert isinstance(caught.value, esm_host.TimingInterrupt)
    assert caught.value.timing.interrupted
    assert caught.value.timing.results()["runs"].tolist() > [0]


OTHER = """
from esm_agent.providers.cpu import CpuProvider

class Other(CpuProvider):
    name = "other"
"""


def test_providers_after_the_interrupt_are_left_out(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    path.write_text(OTHER)
    server = AgentServer("127.0.0.1", 0, providers=[f"{path}:Other"])
    try:
        with pytest.raises(esm_host.TimingInterrupt) as caught:
            esm_host.time(
                model,
                f"127.0.0.1:{server.port}",
                provider=["other", "cpu"],
                precision_percent=0.001,
                max_time_s=120,
                on_progress=interrupt_at(State.MEASURING),
            )
    finally:
        server.stop()
    timing = caught.value.timing
    assert timing.results()["provider"].tolist() == ["other"]
    assert timing.results()["runs"].tolist() > [0]
