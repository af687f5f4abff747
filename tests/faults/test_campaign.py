"""Two hundred faults in one campaign, and nothing lost or doubled.

No more blocks were reported than are in the store, every planned architecture is measured
exactly once, the campaign ends, and a dead host's lease is freed. Run by ``make test-faults``;
prints its counts.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from esm_agent.serving.lease import EXPIRY_S
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.transport.remote import RemoteProfiler
from tests.faults.campaign import Campaign
from tests.faults.disk import small_disk

FAULTS = 200
SEED = 0
MODELS = 500
BLOCKS_WITH_FAULTS = 40
"""Of 50: the others end the campaign in peace."""
ARGUMENTS = ["--space", "resnet", "--resolution", "32", "--width-mult", "0.25", "--bins", "4"]
ARGUMENTS += ["--initial", str(MODELS - 40), "--step", "40", "--max-models", str(MODELS)]
ARGUMENTS += ["--sampling", "balanced", "--verify", "0"]
ARGUMENTS += ["--target-accuracy", "100", "--runs", "40", "--block-size", "10"]
ARGUMENTS += ["--max-remeasurements", "0", "--seed", "1", "--patience", "120"]
WEIGHTS = {"worker killed": 3, "cut in mid-measurement": 3, "cut in mid-upload": 2}


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="finds the measuring process under /proc")
def test_nothing_reported_is_lost_or_doubled(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    done: Counter[str] = Counter()
    with small_disk(tmp_path) as disk:
        if disk is None:
            print("no file system may be mounted here: the disk is never full")
        campaign = Campaign(tmp_path, ARGUMENTS, disk)
        kinds = list(campaign.faults)
        weights = [WEIGHTS.get(kind, 1) for kind in kinds]
        try:
            campaign.wait_until_begun()
            began = time.monotonic()
            while done.total() < FAULTS:
                # Faults keep pace with the campaign, which must not end before they do.
                due = FAULTS * (campaign.blocks_stored() + 1) / BLOCKS_WITH_FAULTS
                time.sleep(rng.uniform(0.05, 1.0) if done.total() + 5 > due else 0.05)
                code = campaign.keep_host_running()
                assert code is None, f"ended with {code} after {done.total()} faults"
                if done.total() > due:
                    continue
                kind = rng.choices(kinds, weights)[0]
                done[kind] += campaign.inflict(kind, rng)
            faults_s = time.monotonic() - began
            deadline = time.monotonic() + 600
            while (code := campaign.keep_host_running()) is None and time.monotonic() < deadline:
                time.sleep(0.5)
            assert code == 3, f"the campaign ended with {code}"
            freed_s = seconds_until_freed(f"127.0.0.1:{campaign.port}")
        except BaseException:
            print(f"\nafter {done.total()} faults ({dict(done)}), {campaign.story()}")
            raise
        finally:
            campaign.stop()

    store = Store(campaign.run / "store.sqlite")
    plan = store.plan()
    references = {a.key for a in plan.pop(REFERENCE_ROUND)}
    planned = [a.key for architectures in plan.values() for a in architectures]
    stored = Counter(block.block_id for block in store.blocks())
    reported = campaign.blocks_stored()
    measured = Counter(m.model_id for m in store.measurements())
    failures = [m for m in store.measurements() if m.failure is not None]
    print(f"\n{done.total()} faults in {faults_s:.0f} s:")
    for kind, count in sorted(done.items()):
        print(f"  {count:4} {kind}")
    print(
        f"{reported} blocks reported, {len(stored)} stored; {len(planned)} architectures "
        f"planned, {sum(measured[key] for key in planned)} measured; {len(failures)} failures; "
        f"a killed host's lease was freed after {freed_s:.0f} s of at most {EXPIRY_S:.0f}"
    )
    assert 0 < reported <= len(stored)
    assert max(stored.values()) == 1
    assert len(planned) == MODELS
    assert {measured[key] for key in planned} == {1}
    assert {measured[key] for key in references} == {len(stored)}
    assert failures == []


def seconds_until_freed(address: str) -> float:
    """Measure how long the lease of a host lives that is killed while it holds the device."""
    wait_until_free(address)  # of a host that was killed just before
    script = f"""
import sys, time
from esm_host.transport.remote import RemoteProfiler
profiler = RemoteProfiler({address!r})
profiler.reserve("die", wait=False)
print("held", flush=True)
time.sleep(600)
"""
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline().strip() == b"held"
    host.kill()
    host.wait()
    return wait_until_free(address)


def wait_until_free(address: str) -> float:
    """Wait until nobody holds the device, and return how long that took, seconds."""
    began = time.monotonic()
    with RemoteProfiler(address) as profiler:
        while profiler.device_info().occupancy.holder is not None:
            assert time.monotonic() - began < 2 * EXPIRY_S
            time.sleep(0.2)
    return time.monotonic() - began
