"""A campaign through an agent with a user's meter, whose watts follow from the processor time."""

from __future__ import annotations

from pathlib import Path

import pytest

from esm_host import Settings, profile
from esm_protos.messages import MeasureSpec
from tests.extending.page import PROGRAMS, serving

IDLE_W, BUSY_W = 3.0, 5.0
METER = f"""
import time

from esm_agent.energy.source import EnergySource


class Known(EnergySource):
    covers = "the truth"
    tick_s = 0.001

    def joules(self):
        return {IDLE_W} * time.perf_counter() + {BUSY_W} * time.process_time()
"""


@pytest.mark.programs
@pytest.mark.usefixtures("undrawn")
def test_a_campaign_learns_the_energy_of_a_meter(tmp_path: Path) -> None:
    (tmp_path / "known.py").write_text(METER)
    command = [*PROGRAMS["esm-agent"], "serve", "--energy", "known.py:Known"]
    with serving(command, tmp_path) as address:
        settings = Settings(
            address,
            resolution=32,
            width_mult=0.25,
            initial=10,
            max_models=10,
            block_size=10,
            references=1,
            folds=2,
            bins=1,
            predictor="ridge",
            target_accuracy_percent=0,
            verify=0,
            sampling="balanced",
            spec=MeasureSpec(runs=5),
            metric="latency,energy",
            energy_time_s=2.2,
        )
        run = profile(settings, tmp_path / "run")
    frame = run.measurements()
    # All inferences run back to back in a window, on one thread: the processor is busy all the
    # time, or waits for others.
    assert (frame["power_w"] > IDLE_W).all()
    assert (frame["power_w"] < 1.05 * (IDLE_W + BUSY_W)).all()
    assert (frame["energy_mj"] < 1.2 * frame["energy_gross_mj"]).all()
    # Deep networks take more than shallow ones, however busy the machine is.
    by_latency = frame.sort_values("latency_ms")["energy_mj"]
    assert by_latency.tail(3).mean() > by_latency.head(3).mean()
    assert run.result is not None
    assert run.result["metrics"]["energy"]["measured_models"] == 10
    drawn = run.sample(5)
    assert (run.of("energy").predict(drawn) > 0).all()
