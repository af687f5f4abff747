"""Settings of sessions, as users give them."""

from typing import Any

import pytest

from esm_host.arguments import on_command_line
from esm_host.errors import UsageError
from esm_host.timing.session_options import session_settings
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.limits import check_spec
from esm_protos.messages import MeasureSpec
from esm_protos.session_settings import SessionSettings


def test_texts_and_values_are_the_same_settings() -> None:
    found = session_settings(
        "basic", "parallel", 2, ["session.x=a=b", "session.y=0"], ["N=1", "a=b=2"]
    )
    assert found == session_settings(
        "basic", "parallel", 2, {"session.x": "a=b", "session.y": False}, {"N": 1, "a=b": 2}
    )
    assert found.session_options == {"session.x": "a=b", "session.y": "0"}
    assert found.free_dims == {"N": 1, "a=b": 2}
    assert session_settings() == SessionSettings()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"opt_level": "bsic"}, "--opt-level: unknown value 'bsic': did you mean 'basic'?"),
        ({"execution_mode": "both"}, "--execution-mode: unknown value 'both': choose sequential"),
        ({"inter_op": 2}, "--inter-op 2 needs --execution-mode parallel: ONNX Runtime ignores it"),
        ({"inter_op": 0, "execution_mode": "parallel"}, "--inter-op 0: give a number from 1"),
        ({"inter_op": 9999, "execution_mode": "parallel"}, "--inter-op 9999 is outside 0 to 1024"),
        ({"session_options": ["x"]}, "--session-option x: give KEY=VALUE"),
        ({"session_options": ["x=1", "x=2"]}, "--session-option x=2: x is given twice"),
        (
            {"session_options": {"ep.context_enable": 1}},
            "--session-option ep.context_enable=1: entries that name files",
        ),
        (
            {"session_options": ["session.execution_mode=1"]},
            "--session-option session.execution_mode=1: --execution-mode sets it",
        ),
        ({"free_dims": ["N"]}, "--free-dim N: give NAME=SIZE"),
        ({"free_dims": ["N=x"]}, "--free-dim N=x: give NAME=SIZE"),
        ({"free_dims": ["N=1", "N=1"]}, "--free-dim N=1: N is given twice"),
        ({"free_dims": {"N": 0}}, "--free-dim N=0: give NAME=SIZE, a whole number from 1"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        session_settings(**given)
    told = on_command_line(caught.value.marked)
    assert told.startswith(said)
    assert "\n" not in told


def test_an_agent_that_would_ignore_them_is_refused() -> None:
    old = FakeProfiler(lambda model: 1.0, session_settings=False).device_info()
    check_spec(old, MeasureSpec())
    for settings in (SessionSettings("basic"), SessionSettings(free_dims={"N": 1})):
        with pytest.raises(UsageError, match=r"^session settings \(.*\): the device's agent is"):
            check_spec(old, MeasureSpec(session=settings))


def test_a_device_is_asked_for_no_more_threads_than_it_can_use() -> None:
    device = FakeProfiler(lambda model: 1.0).device_info()
    check_spec(device, MeasureSpec(session=SessionSettings("all", "parallel", 8)))
    with pytest.raises(UsageError, match=r"^inter_op 9: the device has 1 processor"):
        check_spec(device, MeasureSpec(session=SessionSettings("all", "parallel", 9)))
    bad = SessionSettings(session_options={"ep.context_enable": "1"})
    with pytest.raises(UsageError, match=r"^session_options ep\.context_enable=1: "):
        check_spec(device, MeasureSpec(session=bad))
