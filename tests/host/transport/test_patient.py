"""A device that goes away and comes back costs nothing but time."""

from collections.abc import Callable

import pytest

from esm_host.errors import DeviceError, NotNowError, UnreachableError
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.patient import PatientProfiler
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    Diagnosis,
    MeasureSpec,
    Model,
    Progress,
)

BLOCK = Block("b", MeasureSpec(runs=3), (Model("m", b"data"),))


class Flaky(FakeProfiler):
    """Loses some blocks, and stays away for some calls after each."""

    def __init__(self, *errors: Exception, away: int = 0) -> None:
        super().__init__(lambda model: 1.0)
        self.errors = list(errors)
        self.away = away

    def device_info(self) -> DeviceInfo:
        if self.away:
            self.away -= 1
            raise UnreachableError("nobody there")
        return super().device_info()

    def answer(self, block: Block, on_progress: Callable[[Progress], None]) -> BlockResult:
        if self.errors:
            raise self.errors.pop(0)
        return super().answer(block, on_progress)


def test_waits_for_a_device_that_comes_back_and_says_so() -> None:
    said: list[str] = []
    flaky = Flaky(UnreachableError("lost"), away=3)
    result = PatientProfiler(flaky, 60, said.append, pause_s=0).measure(BLOCK)
    assert result.block_id == "b"
    assert said == ["lost", "nobody there Waiting for the device."]


def test_patience_ends() -> None:
    flaky = Flaky(UnreachableError("lost"), away=3)
    with pytest.raises(UnreachableError, match="nobody there"):
        PatientProfiler(flaky, 0, pause_s=0).measure(BLOCK)


def test_a_block_that_kills_the_agent_every_time_ends_with_a_cure() -> None:
    flaky = Flaky(*[UnreachableError("lost")] * 19)
    with pytest.raises(DeviceError, match=r"lost 10 times.*block_size"):
        PatientProfiler(flaky, 60, pause_s=0).measure(BLOCK)


def test_a_device_that_asks_to_try_again_is_asked_again_for_as_long_as_patience_lasts() -> None:
    said: list[str] = []
    flaky = Flaky(*[NotNowError("no room")] * 30)
    assert PatientProfiler(flaky, 60, said.append, pause_s=0).measure(BLOCK).block_id == "b"
    assert said == ["no room"]
    flaky = Flaky(*[NotNowError("no room")] * 3)
    with pytest.raises(NotNowError, match="no room"):
        PatientProfiler(flaky, 0, pause_s=0.001).measure(BLOCK)


def test_a_refusal_is_not_waited_out() -> None:
    flaky = Flaky(DeviceError("refused"), DeviceError("again"))
    with pytest.raises(DeviceError, match="refused"):
        PatientProfiler(flaky, 60, pause_s=0).measure(BLOCK)
    assert len(flaky.errors) == 1


def test_a_diagnosis_waits_too() -> None:
    class Away(Flaky):
        def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
            self.device_info()
            return super().diagnose(probe_s)

    assert PatientProfiler(Away(away=2), 60, pause_s=0).diagnose(1.0).fit
