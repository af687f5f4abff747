"""Several hosts on one agent, over real connections."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from esm_agent.door.auth import LISTED
from esm_agent.serving.machine_lock import MachineLock
from esm_agent.serving.server import AgentServer
from esm_host.errors import BusyError, NotNowError, UnreachableError
from esm_host.transport.lease import Lease
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, MeasureSpec, Model, Progress, State
from tests.helpers import ARITHMETIC

DATA = ARITHMETIC.read_bytes()
LONG = Block("long", MeasureSpec(runs=1_000_000), (Model("m", DATA),))
SHORT = Block("short", MeasureSpec(runs=5), (Model("m", DATA),))


@pytest.fixture
def agent() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1", 0, lease_expiry_s=2.0)
    yield server
    server.stop()


@pytest.fixture
def address(agent: AgentServer) -> str:
    return f"127.0.0.1:{agent.port}"


def test_others_see_who_measures_and_give_up_if_they_will(address: str) -> None:
    with RemoteProfiler(address) as first, RemoteProfiler(address) as second:
        first.reserve("profile resnet")
        with pytest.raises(BusyError, match=r"in use by \w.*@.* \(profile resnet\)"):
            second.reserve("time", wait=False)
        occupancy = second.device_info().occupancy
        assert occupancy.holder is not None
        assert (occupancy.holder.purpose, occupancy.waiting) == ("profile resnet", 0)
        assert second.reserve("time").ahead == 1
        assert first.device_info().occupancy.waiting == 1
    with RemoteProfiler(address) as third:
        assert third.reserve("time", wait=False).ahead == 0, "the others gave their leases back"


def test_only_its_own_host_ends_a_block_early(address: str) -> None:
    with (
        RemoteProfiler(address) as host,
        RemoteProfiler(address) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        pending = host.submit(LONG)
        result = pool.submit(pending.result)
        wait_until_measuring(host)
        other.submit(LONG).finish()
        with pytest.raises(TimeoutError):
            result.result(timeout=1)
        pending.finish()
        assert 0 < result.result().measurements[0].latency_ns.size < 1_000_000


def test_an_agent_that_cannot_end_a_block_early_drops_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esm_agent.door.auth.LISTED", LISTED - {"/esm.v1.Profiler/FinishBlock"})
    with RemoteProfiler(address) as host:
        pending = host.submit(LONG)
        wait_until_measuring(host)
        pending.finish()
        with pytest.raises(UnreachableError):
            pending.result()


def test_a_waiting_block_is_told_of_its_place(address: str) -> None:
    with RemoteProfiler(address) as first, RemoteProfiler(address) as second:
        measuring = first.submit(LONG)
        wait_until_measuring(first)
        told: list[Progress] = []
        waiting = second.submit(SHORT)
        threading.Timer(1.0, measuring.cancel).start()
        assert waiting.result(told.append).block_id == "short"
        places = [p.standing.ahead for p in told if p.state is State.QUEUED and p.standing]
        assert 1 in places


def test_a_host_that_falls_silent_loses_the_device(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemoteProfiler(address) as silent, RemoteProfiler(address) as other:
        monkeypatch.setattr(Lease, "_beat", lambda self: None)
        measuring = silent.submit(LONG)
        wait_until_measuring(other)
        monkeypatch.undo()
        began = time.monotonic()
        assert other.measure(SHORT).block_id == "short"
        assert time.monotonic() - began < 20, "a lease lives two seconds"
        with pytest.raises(NotNowError, match="lease has ended"):
            measuring.result()
        assert silent.measure(SHORT).block_id == "short", "it may come again"


def test_an_agent_that_stops_hands_waiting_blocks_back(agent: AgentServer, address: str) -> None:
    with RemoteProfiler(address) as profiler:
        pending = [profiler.submit(LONG)]
        wait_until_measuring(profiler)
        pending.append(profiler.submit(SHORT))
        agent.stop()
        for block in pending:
            with pytest.raises((NotNowError, UnreachableError)):
                block.result()


def test_hosts_take_turns(address: str) -> None:
    """Everybody's first block is measured before anybody's third."""
    done: list[int] = []

    def host(number: int) -> None:
        with RemoteProfiler(address) as profiler:
            profiler.reserve(f"host {number}")
            ready.wait()
            for _ in range(4):
                profiler.measure(SHORT)
                done.append(number)

    ready = threading.Barrier(4)
    threads = [threading.Thread(target=host, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == sorted([*range(4)] * 4)
    for number in range(4):
        first = done.index(number)
        assert all(done[:first].count(other) <= 2 for other in range(4)), done


def test_local_agents_of_a_user_measure_one_at_a_time(tmp_path: Path) -> None:
    agents = [AgentServer("127.0.0.1", 0, machine=MachineLock(tmp_path)) for _ in range(2)]
    first, second = (RemoteProfiler(f"127.0.0.1:{agent.port}", "local") for agent in agents)
    try:
        first.reserve("time 1 model", wait=False)
        with pytest.raises(
            BusyError, match=r"another measurement on this machine \(time 1 model\)"
        ):
            second.reserve("profile", wait=False)
        measuring = first.submit(LONG)
        told: list[Progress] = []
        waiting = second.submit(SHORT)
        threading.Timer(1.0, measuring.cancel).start()
        assert waiting.result(told.append).block_id == "short"
        queued = [p.standing.holder.owner for p in told if p.standing and p.standing.holder]
        assert "another measurement on this machine" in queued
        assert first.measure(SHORT).block_id == "short", "the machine is free again"
    finally:
        for profiler, agent in zip((first, second), agents, strict=True):
            profiler.close()
            agent.stop()


def test_where_the_lock_cannot_be_kept_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for lock in [MachineLock(tmp_path / "file" / "below") for _ in range(2)]:
        assert lock.acquire("time")


def test_an_agent_with_many_blocks_lets_one_that_waits_go_first(tmp_path: Path) -> None:
    busy, waiting = MachineLock(tmp_path), MachineLock(tmp_path)
    assert busy.acquire("profile")
    assert not waiting.acquire("time")
    busy.release()
    assert not busy.acquire("profile")
    assert waiting.acquire("time")


def wait_until_measuring(profiler: RemoteProfiler) -> None:
    deadline = time.monotonic() + 30
    while profiler.device_info().occupancy.holder is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
