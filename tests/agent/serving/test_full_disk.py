"""A disk without room, or without inodes, is waited for: it ends no campaign and no agent."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esm_agent.serving.server import AgentServer
from esm_host.errors import NotNowError
from esm_host.transport.patient import PatientProfiler
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, File, MeasureSpec, Model
from tests.faults.disk import SmallDisk, small_disk
from tests.helpers import ARITHMETIC

SPEC = MeasureSpec(runs=3)
FAULTS: dict[str, Callable[[SmallDisk], None]] = {
    "no bytes": SmallDisk.fill,
    "no inodes": SmallDisk.take_inodes,
}
DATA = ARITHMETIC.read_bytes()
PLAIN = Model("plain", DATA)
CACHED = Model("cached", File(hashlib.sha256(DATA).digest(), len(DATA), ARITHMETIC))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as disk:
        if disk is None:
            pytest.skip("no file system may be mounted here: run as root")
        yield disk


@pytest.fixture
def address(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    cache = disk.folder / "cache"
    server = AgentServer("127.0.0.1", 0, cache_folder=cache, cache_bytes=8 << 20)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.parametrize("model", [PLAIN, CACHED], ids=["plain", "cached"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_host_waits_for_room(address: str, disk: SmallDisk, fault: str, model: Model) -> None:
    block = Block("b", SPEC, (model,))
    FAULTS[fault](disk)
    with RemoteProfiler(address) as profiler:
        with pytest.raises(NotNowError, match="No space left on device"):
            profiler.measure(block)
        patient = PatientProfiler(profiler, 30.0, lambda reason: disk.free(), pause_s=0.1)
        (measurement,) = patient.measure(block).measurements
    assert measurement.failure is None


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_sent_before_is_linked_once_there_is_room(
    address: str, disk: SmallDisk, fault: str
) -> None:
    """A link needs no bytes of its own, but a folder to lie in."""
    block = Block("b", SPEC, (CACHED,))
    with RemoteProfiler(address) as profiler:
        assert profiler.measure(block).measurements[0].failure is None
        FAULTS[fault](disk)
        with pytest.raises(NotNowError):
            profiler.measure(block)
        disk.free()
        again = profiler.submit(block)
        assert again.result().measurements[0].failure is None
        assert again.bytes_sent < CACHED.files[0].size_bytes
