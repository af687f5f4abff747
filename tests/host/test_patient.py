"""A device that goes away and comes back costs nothing but time."""

from collections.abc import Callable

import pytest

from esm_host.errors import DeviceError, UnreachableError
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.patient import PatientProfiler
from esm_protos.messages import Block, BlockResult, MeasureSpec, Model, Progress

BLOCK = Block("b", MeasureSpec(runs=3), (Model("m", b"data"),))


class Flaky(FakeProfiler):
    def __init__(self, *errors: Exception) -> None:
        super().__init__(lambda model: 1.0)
        self.errors = list(errors)

    def measure(
        self, block: Block, on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> BlockResult:
        if self.errors:
            raise self.errors.pop(0)
        return super().measure(block, on_progress)


def test_waits_for_a_device_that_comes_back_and_says_so_once() -> None:
    said: list[str] = []
    gone = [UnreachableError("nobody there")] * 3
    result = PatientProfiler(Flaky(*gone), 60, said.append, pause_s=0).measure(BLOCK)
    assert result.block_id == "b"
    assert said == ["nobody there Waiting for it."]


def test_patience_ends() -> None:
    with pytest.raises(UnreachableError):
        PatientProfiler(Flaky(UnreachableError("gone")), 0, pause_s=0).measure(BLOCK)


def test_a_refusal_is_not_waited_out() -> None:
    flaky = Flaky(DeviceError("refused"), DeviceError("again"))
    with pytest.raises(DeviceError, match="refused"):
        PatientProfiler(flaky, 60, pause_s=0).measure(BLOCK)
    assert len(flaky.errors) == 1
