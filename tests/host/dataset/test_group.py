"""A campaign on several devices: shared, on one scale, refused when they differ, never stuck."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from esm_host.campaign.result import devices as device_entries
from esm_host.cli.app import app
from esm_host.cli.live import Live
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import DeviceError, MismatchError, UnreachableError
from esm_host.transport.base import OnProgress, Profiler
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Block, BlockResult, DeviceInfo, Failure, MeasureSpec, Model
from tests.host.dataset.test_collect import plan
from tests.host.fake_campaign import SPACE, Log, assemble, latency

ROOT = Path(__file__).parents[3]
SPEC = MeasureSpec(runs=12)


class Device(FakeProfiler):
    """A fake whose n-th block for the data set may do something first; the others wait for it.

    Args:
        rendezvous: holds each device's first such block until all have one, so that all take part.
    """

    def __init__(
        self,
        hostname: str,
        slow: float = 1.0,
        rendezvous: threading.Barrier | None = None,
        noise: float = 0.0,
        of_model: Callable[[Model], float | Failure] = latency,
        cpu_model: str = "fake",
    ) -> None:
        super().__init__(of_model, lambda number: slow, noise, hostname)
        self.rendezvous = rendezvous
        self.before: dict[int, Callable[[], None]] = {}
        self.gone = False
        self.cpu_model = cpu_model

    def device_info(self) -> DeviceInfo:
        if self.gone:
            raise UnreachableError(f"no agent answers at {self._hostname}")
        return replace(super().device_info(), cpu_model=self.cpu_model)

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        number = len(self.measured)
        if len(block.models) > 4:
            if number == 0 and self.rendezvous is not None:
                self.rendezvous.wait(timeout=20)
            self.before.pop(number, lambda: None)()
        return super().answer(block, on_progress)

    @property
    def measured(self) -> list[Block]:
        """Blocks for the data set."""
        return [block for block in self.blocks if len(block.models) > 4]

    @property
    def checks(self) -> int:
        return len(self.blocks) - len(self.measured)

    def leave(self) -> None:
        self.gone = True
        raise UnreachableError(f"no agent answers at {self._hostname}")


def rack(*slow: float, **options) -> dict[str, Device]:
    """pi-1, pi-2..., all of which get a block before any is through with its first."""
    together = threading.Barrier(len(slow))
    return {f"pi-{i}": Device(f"pi-{i}", s, together, **options) for i, s in enumerate(slow, 1)}


def truth(planned: list[Architecture]) -> np.ndarray:
    return np.array([latency(Model(a.key, SPACE.build(a))) for a in planned])


def counts(devices: Mapping[str, Device]) -> Counter[str]:
    return Counter(m.model_id for d in devices.values() for b in d.measured for m in b.models)


def test_members_share_the_models_and_each_block_says_whose_it_is(tmp_path: Path) -> None:
    devices = rack(1, 1)
    store, collector, _ = assemble(tmp_path, devices, Log(), block_size=5)
    planned = plan(store)
    assert collector.collect(0).passed
    measured = counts(devices)
    assert {measured[a.key] for a in planned} == {1}
    for block in store.blocks():
        ids = {each.block_id for each in devices[block.device].blocks}
        assert block.block_id in ids
        assert block.hostname == block.device
    checks = [b.device for b in store.blocks() if b.round == REFERENCE_ROUND]
    assert sorted(checks) == ["pi-1", "pi-2"], "one look each is enough where nothing varies"


def test_a_small_difference_is_divided_out(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    store, collector, _ = assemble(tmp_path / "alone", Device("pi-1"), Log())
    plan(store)
    collector.collect(0)
    alone = Measurements(store, SPEC).dataset().latency_ms
    devices = rack(1, 1.04)
    store, collector, _ = assemble(tmp_path, devices, Log(), block_size=5)
    plan(store)
    assert collector.collect(0).passed
    assert {block.device for block in store.blocks() if block.round == 0} == set(devices)
    measurements = Measurements(store, SPEC)
    np.testing.assert_allclose(measurements.dataset().latency_ms, alone, rtol=0.01)
    first, second = sorted(device_entries(store, measurements), key=lambda entry: entry["name"])
    assert (first["pace"], second["pace"]) == (pytest.approx(1), pytest.approx(1.04, abs=0.002))
    assert first["models"] + second["models"] == 40


def test_the_scale_is_the_median_devices_however_much_each_measured(tmp_path: Path) -> None:
    """The slowest one measures most."""
    devices = rack(0.95, 1, 1.06, noise=0.02)
    for quick in ("pi-1", "pi-2"):
        devices[quick].before[1] = devices[quick].leave
    store, collector, _ = assemble(
        tmp_path, devices, Log(), block_size=4, spec=replace(SPEC, runs=60)
    )
    planned = plan(store, 60)
    assert collector.collect(0).passed
    shares = Counter(block.device for block in store.blocks() if block.round == 0)
    assert shares == {"pi-1": 1, "pi-2": 1, "pi-3": 13}
    error = Measurements(store, SPEC).dataset().latency_ms / truth(planned) - 1
    assert abs(np.median(error)) < 0.01


@pytest.mark.parametrize("slow", [2.02, 0.5])
def test_two_that_differ_are_refused_before_anything_is_measured(
    tmp_path: Path, slow: float
) -> None:
    store, collector, _ = assemble(tmp_path, rack(1, slow), Log())
    plan(store)
    with pytest.raises(MismatchError, match=r"takes 2\.0\d times .*limit is 10 %.*doctor pi-"):
        collector.collect(0)
    assert {block.round for block in store.blocks()} == {REFERENCE_ROUND}


def test_one_of_three_that_differs_is_left_out_and_the_figures_are_said(tmp_path: Path) -> None:
    log = Log()
    devices = rack(1, 2.02, 1)
    devices["pi-1"].rendezvous = devices["pi-3"].rendezvous = threading.Barrier(2)
    store, collector, _ = assemble(tmp_path, devices, log)
    planned = plan(store)
    assert collector.collect(0).passed
    assert devices["pi-2"].measured == []
    (warning,) = log.warnings
    assert "continuing without pi-2: pi-2 takes 2.02 times" in warning
    assert "devices doctor pi-2" in warning
    measurements = Measurements(store, SPEC)
    np.testing.assert_allclose(measurements.dataset().latency_ms, truth(planned), rtol=1e-4)
    entry = {e["name"]: e for e in device_entries(store, measurements)}["pi-2"]
    assert (entry["blocks"], entry["pace"]) == (0, pytest.approx(2.02, abs=0.01))
    assert entry["left_at"] is not None


def test_noise_is_not_taken_for_a_difference_and_is_looked_at_again(tmp_path: Path) -> None:
    devices = rack(1, 1, noise=0.3)
    store, collector, _ = assemble(
        tmp_path, devices, Log(), reference_tolerance_percent=50.0, max_remeasurements=0
    )
    plan(store)
    collector.collect(0)
    assert devices["pi-2"].checks > 1


def test_devices_of_one_pace_but_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Two references faster, two slower: 0 on average."""
    devices = rack(1, 1)
    store, collector, _ = assemble(tmp_path, devices, Log())
    plan(store)
    references = [a.key for a in store.plan()[REFERENCE_ROUND]]
    devices["pi-2"]._latency = lambda model: (
        latency(model) * (1.08 if references.index(model.model_id) % 2 else 1 / 1.08)
    )
    with pytest.raises(MismatchError, match=r"runs a reference 8\.0 % .*off its pace.*limit is 3"):
        collector.collect(0)


def test_who_leaves_is_done_without_and_taken_in_again_in_the_next_round(tmp_path: Path) -> None:
    log = Log()
    devices = rack(1, 1)
    store, collector, _ = assemble(tmp_path, devices, log, block_size=5)
    devices["pi-2"].before[1] = devices["pi-2"].leave
    first = plan(store)
    assert collector.collect(0).passed
    assert len(log.warnings) == 1
    assert "continuing without pi-2: no agent answers" in log.warnings[0]
    assert len(devices["pi-2"].measured) == 1
    assert {counts(devices)[a.key] for a in first} == {1}
    entries = {entry["name"]: entry for entry in device_entries(store, Measurements(store, SPEC))}
    assert entries["pi-2"]["left_because"] == "no agent answers at pi-2"

    devices["pi-2"].gone = False
    checked = devices["pi-2"].checks
    together = threading.Barrier(2)
    for device in devices.values():
        device.before[len(device.measured)] = lambda: together.wait(20)
    second = plan(store, 20, round_number=1)
    assert collector.collect(1).passed
    assert devices["pi-2"].checks == checked + 1, "it may have come back another"
    assert {counts(devices)[a.key] for a in second} == {1}
    assert len(devices["pi-2"].measured) > 1


def test_the_last_one_that_leaves_ends_it_and_nothing_is_lost(tmp_path: Path) -> None:
    devices = rack(1, 1)
    store, collector, _ = assemble(tmp_path, devices, Log(), block_size=5)
    devices["pi-2"].before[1] = devices["pi-2"].leave
    devices["pi-1"].before[2] = devices["pi-1"].leave
    planned = plan(store)
    with pytest.raises(UnreachableError, match="no agent answers at pi-"):
        collector.collect(0)
    stored = [block for block in store.blocks() if block.round == 0]
    assert len(stored) == 3
    devices["pi-1"].gone = False
    store, collector, _ = assemble(tmp_path, {"pi-1": devices["pi-1"]}, Log(), block_size=5)
    assert collector.collect(0).passed, "one of the group's devices may go on alone"
    assert {counts(devices)[a.key] for a in planned} == {1}


def test_who_measured_for_it_may_go_on_alone_on_a_slower_day(tmp_path: Path) -> None:
    """The others' past says nothing about today."""
    store, collector, _ = assemble(tmp_path, rack(1, 1), Log(), block_size=5)
    plan(store)
    collector.collect(0)
    plan(store, 10, round_number=1)
    log = Log()
    _, collector, _ = assemble(tmp_path, {"pi-2": Device("pi-2", 1.3)}, log, block_size=5)
    collector.collect(1)
    assert log.warnings == []
    assert {block.device for block in store.blocks() if block.round == 1} == {"pi-2"}


def test_interrupted_all_devices_let_go(tmp_path: Path) -> None:
    log = Log()
    devices = rack(1, 1)
    store, collector, _ = assemble(tmp_path, devices, log, block_size=5)
    planned = plan(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    log.on_block_do = interrupt
    with pytest.raises(KeyboardInterrupt):
        collector.collect(0)
    assert not [t for t in threading.enumerate() if t.name.startswith("esm-pi-")]
    stored = [block for block in store.blocks() if block.round == 0]
    assert len(stored) == 1
    store, collector, _ = assemble(tmp_path, rack_again := rack(1, 1), Log(), block_size=5)
    assert collector.collect(0).passed
    assert sum(counts(rack_again)[a.key] for a in planned) == 35


def test_a_model_too_large_for_all_is_nobodys_fault(tmp_path: Path) -> None:
    log = Log()
    devices = rack(1, 1)
    devices["pi-2"]._memory_bytes = 60_000_000
    store, collector, _ = assemble(tmp_path, devices, log)
    plan(store)
    with pytest.raises(DeviceError, match=r"has 60 MB for models"):
        collector.collect(0)
    assert log.warnings == []


def test_only_members_of_one_kind_may_take_part(tmp_path: Path) -> None:
    devices = rack(1, 1)
    devices["pi-2"].cpu_model = "other"
    store, collector, _ = assemble(tmp_path, devices, Log())
    plan(store)
    with pytest.raises(MismatchError, match=r"pi-2 .*cpu_model other instead of fake"):
        collector.collect(0)
    assert store.blocks() == []


def test_strangers_may_not_go_on_with_a_groups_campaign(tmp_path: Path) -> None:
    store, collector, _ = assemble(tmp_path, rack(1, 1), Log())
    plan(store)
    collector.collect(0)
    plan(store, 10, round_number=1)
    strangers: list[Mapping[str, Profiler]] = [
        {"pi-9": Device("pi-9")},
        {"pi-1": Device("pi-9")},
        rack(1, 1, 1),
    ]
    for devices in strangers:
        _, collector, _ = assemble(tmp_path, devices, Log())
        with pytest.raises(MismatchError, match="another run"):
            collector.collect(1)
    assert max(block.round for block in store.blocks()) == 0
    by_address = Device("pi-2")
    _, collector, _ = assemble(tmp_path, {"10.0.0.2:7343": by_address}, Log())
    collector.collect(1)
    assert len(by_address.measured) == 1


def test_a_group_may_not_go_on_with_a_single_devices_campaign(tmp_path: Path) -> None:
    store, collector, _ = assemble(tmp_path, Device("pi-1"), Log())
    plan(store)
    collector.collect(0)
    plan(store, 10, round_number=1)
    _, collector, _ = assemble(tmp_path, rack(1, 1), Log())
    with pytest.raises(MismatchError, match="begun on one device"):
        collector.collect(1)
    _, collector, _ = assemble(tmp_path, {"10.0.0.1:7343": Device("pi-1")}, Log())
    assert collector.collect(1).passed
    (entry,) = device_entries(store, Measurements(store, SPEC))
    assert (entry["name"], entry["models"], entry["pace"]) == ("10.0.0.1:7343", 50, None)


# Real agents

CAMPAIGN = [
    "--verify",
    "0",
    "--sampling",
    "balanced",
    "--resolution",
    "32",
    "--width-mult",
    "0.25",
    "--step",
    "5",
    "--bins",
    "2",
]
CAMPAIGN += ["--block-size", "5", "--patience", "1", "--device", "rack"]
AGENT = ("esm_agent.cli", "serve", "--port", "0", "--until-stdin-closes")


@contextmanager
def agents(config: Path, *commands: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """Agents that are called pi-1, pi-2... and are the group ``rack``."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        for command in commands
    ]
    try:
        lines = []
        for number, process in enumerate(processes, 1):
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            lines += [f"[devices.pi-{number}]", f'address = "{address}"']
        names = ", ".join(f'"pi-{number}"' for number in range(1, len(processes) + 1))
        config.write_text("\n".join([*lines, "[groups]", f"rack = [{names}]"]))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESM_CONFIG", str(tmp_path / "devices.toml"))
    return tmp_path / "devices.toml"


def profile(run: Path, *arguments: object) -> Result:
    command = ["profile", "--run", run, *CAMPAIGN, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in command])


@pytest.mark.faults
def test_an_agent_of_half_the_speed_is_noticed(tmp_path: Path, config: Path) -> None:
    with agents(config, AGENT, ("tests.host.slow_agent",)):
        result = profile(tmp_path / "run", "--initial", 20, "--runs", 60)
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    found = re.search(r"pi-2 takes (\d\.\d\d) times \(± .*\) as long as pi-1", last)
    assert found, last
    assert 1.4 < float(found[1]) < 3
    blocks = Store(tmp_path / "run/store.sqlite").blocks()
    assert {block.round for block in blocks} == {REFERENCE_ROUND}


@pytest.mark.faults
def test_an_agent_that_is_killed_costs_the_campaign_nothing_but_its_help(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    # They share this machine, which may well be noisy.
    lenient = ["--group-tolerance", 400, "--reference-tolerance", 400, "--runs", 15]
    with agents(config, AGENT, AGENT) as (_, second):
        monkeypatch.setattr(Live, "on_block", lambda *_: second.kill())
        result = profile(run, "--initial", 40, "--target-accuracy", 1, *lenient)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("continuing without pi-2") == 1
        entries = {e["name"]: e for e in json.loads((run / "result.json").read_text())["devices"]}
        assert entries["pi-1"]["models"] + entries["pi-2"]["models"] == 40
        assert entries["pi-2"]["left_at"] in result.stdout
        store = Store(run / "store.sqlite")
        keys = Counter(m.model_id for m in store.measurements())
        assert {keys[a.key] for a in store.plan()[0]} == {1}
        store.close()

        more = ["--resume", "--target-accuracy", 100, "--max-models", 45]
        result = profile(run, *more)
        assert result.exit_code == 3, result.output
        assert "continuing without pi-2" in result.stderr
        assert json.loads((run / "result.json").read_text())["measured_models"] == 45
