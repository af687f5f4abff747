"""Execution providers and their options, as users give them."""

from collections.abc import Mapping, Sequence

import pytest

from esm_host.arguments import on_command_line
from esm_host.errors import UsageError
from esm_host.timing.provider_options import Execution, executions, only


@pytest.mark.parametrize(
    ("providers", "given", "found"),
    [
        (["cpu"], (), [("cpu", {})]),
        (["openvino"], ["a=1", 'b={"x": "y=z"}'], [("openvino", {"a": "1", "b": '{"x": "y=z"}'})]),
        (["openvino"], ["openvino:a=1"], [("openvino", {"a": "1"})]),
        (["cpu", "openvino"], ["openvino:a=1"], [("cpu", {}), ("openvino", {"a": "1"})]),
        (["x", "y"], {"x:a": True, "y:a": 2}, [("x", {"a": "1"}), ("y", {"a": "2"})]),
    ],
)
def test_each_provider_has_its_options(
    providers: Sequence[str],
    given: Sequence[str] | Mapping[str, object],
    found: Sequence[tuple[str, dict[str, str]]],
) -> None:
    told = executions(providers, given)
    assert [(each.provider, each.options) for each in told] == found


@pytest.mark.parametrize(
    ("providers", "given", "said"),
    [
        (["cpu", "cpu"], (), "--ep cpu,cpu: give each provider once"),
        (["cpu", ""], (), "--ep cpu,: give the name of an execution provider"),
        (["cpu", "x"], ["a=1"], "--ep-option a=1: there are 2 providers, give cpu:a=1 or another"),
        (["cpu", "cuda"], ["cud:a=1"], "--ep-option cud:a=1: 'cud' is not in --ep cpu,cuda: did"),
        (["cpu"], ["cuda:a=1"], "--ep-option cuda:a=1: 'cuda' is not in --ep cpu: give one"),
        (["cpu"], ["a"], "--ep-option a: give KEY=VALUE"),
        (["cpu"], [":a=1"], "--ep-option :a=1: give KEY=VALUE"),
        (["cpu"], ["a=1", "cpu:a=2"], "--ep-option cpu:a=2: cpu:a is given twice"),
    ],
)
def test_what_belongs_to_no_provider_is_refused(
    providers: Sequence[str], given: Sequence[str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        executions(providers, given)
    assert on_command_line(caught.value.marked).startswith(said)


def test_a_switch_is_an_option_of_its_provider() -> None:
    assert executions(["cpu", "cuda"], tf32=True)[1] == Execution("cuda", {"tf32": "1"})
    with pytest.raises(UsageError, match="tf32 needs provider cuda"):
        executions(["cpu"], tf32=True)
    with pytest.raises(UsageError, match="tf32=0: leave tf32 out"):
        executions(["cpu", "cuda"], ["cuda:tf32=0"], tf32=True)


def test_a_resumed_campaign_has_a_provider_of_its_own() -> None:
    (told,) = executions(["cpu"], ["cuda:a=1"], is_known=False, tf32=True)
    assert told.options == {"a": "1", "tf32": "1"}


def test_commands_that_take_one_say_so() -> None:
    assert only(executions(["cpu"])) == Execution("cpu")
    with pytest.raises(UsageError, match=r"^provider cpu,cuda: this command measures on one"):
        only(executions(["cpu", "cuda"]))
